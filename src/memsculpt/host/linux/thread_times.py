# SPDX-License-Identifier: Apache-2.0
"""How long some threads of a process have run: /proc/PID/task/TID/schedstat, or stat where there is none."""

import os

from memsculpt.host.linux import procfs

KEPT_OPEN_MOST = 256  # of one process


class ThreadTimes:
    """Adds up what threads have run; never falls when one ends."""

    def __init__(self, proc: str, pid: int) -> None:
        self._folder = f"{proc}/{pid}/task"
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._open: dict[int, int] = {}
        self._last_s: dict[int, float] = {}
        self._threads: tuple[int, ...] = ()
        self._ended_s = 0.0

    def read_s(self, threads: tuple[int, ...]) -> float:
        """Return the processor seconds of these threads, and of those that were among them and have ended."""
        if threads != self._threads:
            self._threads = threads
            for thread in [each for each in self._last_s if each not in threads]:
                self._forget(thread)
        for thread in threads[:KEPT_OPEN_MOST]:
            try:
                self._last_s[thread] = max(self._last_s.get(thread, 0.0), self._ran_s(thread))
            except (FileNotFoundError, ProcessLookupError):
                self._forget(thread)
            except OSError:  # not ours to read, or no descriptor is left: as far as it was known
                continue
        return self._ended_s + sum(self._last_s.values())

    def close(self) -> None:
        """Release every descriptor."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _forget(self, thread: int) -> None:
        self._ended_s += self._last_s.pop(thread, 0.0)
        descriptor = self._open.pop(thread, None)
        if descriptor is not None:
            os.close(descriptor)

    def _ran_s(self, thread: int) -> float:
        descriptor = self._open.get(thread)
        if descriptor is None:
            path = f"{self._folder}/{thread}/schedstat"
            descriptor = self._open[thread] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return procfs.parse_schedstat(os.pread(descriptor, 128, 0)) or 0.0
