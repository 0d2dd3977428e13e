# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process leave, and which come back; moved by madvise.py, measured by pagemap.py.

The pages that left last time leave first, and are the ones that come back first: a set that alternates
with another keeps the part that stayed, and nothing is moved that could have stayed.
"""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from memsculpt.domain.arrays import Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient, Vanished
from memsculpt.host.linux import meminfo, pagemap, procfs, runs, transfer
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.pagemap import MOVABLE, PAGE, SWAPPED
from memsculpt.host.protocol import Moved

REMEMBERED_MOST = 256
# Of what is still being written when the rest has left, so much is waited for at most.
SETTLE_TRIES = 10
SETTLE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A process that was opened: nothing here can become another's when the pid is used again."""

    pidfd: int
    pagemap: int
    ranges: list[tuple[int, int]]  # private anonymous memory
    locked: Int64  # what of it may not leave


class LinuxPager:
    """Moves pages of other processes; remembers which it sent out, by process instance."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._sent: dict[Instance, Int64] = {}

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        """Send up to `size_bytes` of private resident pages out; see the protocol."""
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with self._opened(process) as target:
            movable = runs.difference(pagemap.read_runs(target.pagemap, target.ranges, MOVABLE), target.locked)
            before = self._sent.get(process, runs.NONE)
            chosen = choose_out(movable, before, size_bytes // PAGE * PAGE)
            parts = runs.split(chosen, [start for start, _ in target.ranges])
            send_and_settle(process.pid, target.pidfd, target.pagemap, parts, self._proc)
            swapped = pagemap.read_runs(target.pagemap, target.ranges, SWAPPED)
        moved = runs.intersection(chosen, swapped)
        if len(chosen) and not len(moved):
            self._check_swap(process)
        self._remember(process, runs.union(moved, runs.intersection(before, swapped)))
        return _moved(size_bytes, runs.size_of(moved), begin_s, begin_cpu_s)

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        """Bring up to `size_bytes` of swapped pages back and map them; see the protocol."""
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with self._opened(process) as target:
            swapped = pagemap.read_runs(target.pagemap, target.ranges, SWAPPED)
            chosen = choose_in(swapped, self._sent.get(process, runs.NONE), size_bytes // PAGE * PAGE)
            touched = transfer.bring(process.pid, target.pidfd, chosen, self._proc)
        return _moved(size_bytes, touched * PAGE, begin_s, begin_cpu_s)

    @contextmanager
    def _opened(self, process: Instance) -> Generator[_Target]:
        place = f"process {process.pid}"
        opened: list[int] = []
        try:
            opened.append(os.pidfd_open(process.pid))
            # Both descriptors hold the process that has the pid now; its start tells whether it is the right one.
            folder = os.open(f"{self._proc}/{process.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(folder)
            stat = procfs.parse_stat(procfs.read_file("stat", dir_fd=folder), 1)
            if stat is None or stat.start_ticks != process.start_ticks:
                raise Vanished(place=place)
            ranges = pagemap.parse_private(procfs.read_file("maps", 1 << 20, dir_fd=folder))
            locked = runs.NONE
            if procfs.parse_locked_bytes(procfs.read_file("status", dir_fd=folder)) > 0:
                locked = pagemap.parse_locked(procfs.read_file("smaps", 1 << 20, dir_fd=folder))
            opened.append(os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder))
            yield _Target(pidfd=opened[0], pagemap=opened[-1], ranges=ranges, locked=locked)
        except OSError as error:
            raise translate(error, place) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _check_swap(self, process: Instance) -> None:
        """Raise Transient when nothing could leave because there is no room to go to."""
        free_bytes = meminfo.read_host_memory(self._proc).swap_free_bytes
        if free_bytes < PAGE:
            raise Transient(place=f"process {process.pid}", problem="no page left, the swap is full", retry_in_s=10.0)

    def _remember(self, process: Instance, sent: Int64) -> None:
        self._sent[process] = sent
        if len(self._sent) > REMEMBERED_MOST:
            alive = {one: kept for one, kept in self._sent.items() if os.path.exists(f"{self._proc}/{one.pid}")}
            # Those last used stay: a dict keeps the order in which entries were made.
            self._sent = dict(list(alive.items())[-REMEMBERED_MOST:])


def send_and_settle(pid: int, pidfd: int, descriptor: int, chosen: Int64, proc: str) -> None:
    """Page the runs out; where they go to a disk, wait a little for what is still being written. Raises OSError.

    `descriptor` is an open /proc/PID/pagemap.
    """
    transfer.send(pid, pidfd, chosen, proc)
    if transfer.is_prompt(proc):
        return
    left, tries = chosen, 0
    while tries < SETTLE_TRIES:
        before = runs.size_of(left)
        found: list[tuple[int, int]] = [(start, end) for start, end in left.tolist()]
        left = runs.intersection(left, pagemap.read_runs(descriptor, found, MOVABLE))
        # Its owner needs it again, or it cannot leave: what does not get less is not worth waiting for.
        if not len(left) or (tries and runs.size_of(left) > before // 2):
            break
        time.sleep(SETTLE_S)
        transfer.send_again(pidfd, left)
        tries += 1


def choose_out(movable: Int64, sent_before: Int64, size_bytes: int) -> Int64:
    """Return the runs to send: those that were sent before first, then the highest addresses."""
    again = runs.last(runs.intersection(movable, sent_before), size_bytes)
    fresh = runs.last(runs.difference(movable, sent_before), size_bytes - runs.size_of(again))
    return runs.union(again, fresh)


def choose_in(swapped: Int64, sent_before: Int64, size_bytes: int) -> Int64:
    """Return the runs to bring back: those that were sent by us first, then the lowest addresses."""
    ours = runs.first(runs.intersection(swapped, sent_before), size_bytes)
    others = runs.first(runs.difference(swapped, sent_before), size_bytes - runs.size_of(ours))
    return runs.union(ours, others)


def _moved(asked_bytes: int, moved_bytes: int, begin_s: float, begin_cpu_s: float) -> Moved:
    return Moved(
        asked_bytes=asked_bytes,
        moved_bytes=moved_bytes,
        duration_s=time.monotonic() - begin_s,
        cpu_s=time.thread_time() - begin_cpu_s,
    )
