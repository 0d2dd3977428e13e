# SPDX-License-Identifier: Apache-2.0
"""Wait for a deadline, a call from another thread, or pressure on memory, all in one poll."""

import os
import select
import time
from collections.abc import Sequence


class Waiting:
    """The host's clock and its bell. `add_triggers` takes PSI descriptors; they are closed with it."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._triggers: list[int] = []
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)

    def add_triggers(self, fds: Sequence[int]) -> None:
        """Let these descriptors end a wait when they have POLLPRI (a PSI trigger that fired)."""
        for fd in fds:
            self._poll.register(fd, select.POLLPRI)
            self._triggers.append(fd)

    def now_s(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wait_until(self, deadline_s: float) -> bool:
        """Return at the deadline (False), or when somebody rang or pressure rose (True)."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            events = dict(self._poll.poll(left_s * 1000))
            for fd in [fd for fd, event in events.items() if event & (select.POLLERR | select.POLLNVAL)]:
                self._drop(fd, events.pop(fd))
            if self._bell in events:
                os.eventfd_read(self._bell)
            if events:
                return True
        return False

    def wake(self) -> None:
        """End a wait that is under way; also safe from other threads."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Close the bell and the triggers."""
        for fd in (self._bell, *self._triggers):
            os.close(fd)
        self._triggers.clear()

    def _drop(self, fd: int, event: int) -> None:
        """Stop listening to a trigger whose cgroup is gone: it would end every wait at once."""
        self._poll.unregister(fd)
        if fd in self._triggers:
            self._triggers.remove(fd)
            os.close(fd)
