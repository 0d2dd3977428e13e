# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process leave, and which come back; moved by madvise.py, measured by pagemap.py.

The pages that left last time leave first, and are the ones that come back first: a set that alternates
with another keeps the part that stayed, and nothing is moved that could have stayed.
"""

import errno
import os
import time
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from memsculpt.host.linux import madvise, pagemap, procfs
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.pagemap import PAGE, PRESENT, SWAPPED
from memsculpt.host.protocol import Moved

# A kernel without preemption lets nobody in before a call returns: 256 KiB take some 0.7 ms to compress.
# Measured against calls of 4 MiB: 340 MiB out in 0.85 s instead of 0.75 s.
CALL_BYTES = 256 << 10
REMEMBERED_MOST = 256
# Ranges that were unmapped, locked or hidden meanwhile: passed over, the rest goes on.
PASSED_OVER = frozenset({errno.ENOMEM, errno.EINVAL, errno.EAGAIN, errno.EINTR, errno.EFAULT})


class LinuxPager:
    """Moves pages of other processes; remembers which it sent out, by process instance."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._sent: dict[Instance, Int64] = {}

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        """Send up to `size_bytes` of private resident pages out; see the protocol."""
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with self._opened(process) as (pidfd, descriptor, ranges):
            resident = pagemap.read_pages(descriptor, ranges, PRESENT)
            chosen = choose_out(resident, self._sent.get(process), size_bytes // PAGE)
            _send(pidfd, pagemap.runs_of(chosen, ranges))
            swapped = pagemap.read_pages(descriptor, ranges, SWAPPED)
        moved = int(np.isin(chosen, swapped, assume_unique=True).sum())
        self._remember(process, swapped)
        return _moved(size_bytes, moved, begin_s, begin_cpu_s)

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        """Bring up to `size_bytes` of swapped pages back and map them; see the protocol."""
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with self._opened(process) as (_, descriptor, ranges):
            swapped = pagemap.read_pages(descriptor, ranges, SWAPPED)
            chosen = choose_in(swapped, self._sent.get(process), size_bytes // PAGE)
            touched = _bring(process.pid, chosen)
        return _moved(size_bytes, touched, begin_s, begin_cpu_s)

    @contextmanager
    def _opened(self, process: Instance) -> Generator[tuple[int, int, list[tuple[int, int]]]]:
        place = f"process {process.pid}"
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            raise translate(error, place) from error
        try:
            # The descriptor holds this very process; only now the pid cannot be another's.
            stat = procfs.parse_stat(procfs.read_file(f"{self._proc}/{process.pid}/stat"), 1)
            if stat is None or stat.start_ticks != process.start_ticks:
                raise Vanished(place=place)
            ranges = pagemap.read_private(self._proc, process.pid)
            descriptor = os.open(f"{self._proc}/{process.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield pidfd, descriptor, ranges
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, place) from error
        finally:
            os.close(pidfd)

    def _remember(self, process: Instance, pages: Int64) -> None:
        self._sent[process] = pages
        if len(self._sent) > REMEMBERED_MOST:
            self._sent = {one: sent for one, sent in self._sent.items() if os.path.exists(f"{self._proc}/{one.pid}")}


def choose_out(resident: Int64, sent_before: Int64 | None, count: int) -> Int64:
    """Return the pages to send, ascending: those that were sent before first, then the highest addresses."""
    if count >= resident.size:
        return resident
    if sent_before is None:
        return resident[resident.size - count :]
    again = np.isin(resident, sent_before, assume_unique=True)
    ordered = np.concatenate((resident[~again], resident[again]))
    return np.sort(ordered[ordered.size - count :])


def choose_in(swapped: Int64, sent_before: Int64 | None, count: int) -> Int64:
    """Return the pages to bring back, ascending: those that were sent by us first."""
    if count >= swapped.size or sent_before is None:
        return swapped[:count]
    ours = np.isin(swapped, sent_before, assume_unique=True)
    return np.sort(np.concatenate((swapped[ours], swapped[~ours]))[:count])


def _send(pidfd: int, runs: list[tuple[int, int]]) -> None:
    pending: list[tuple[int, int]] = []
    size = 0
    for start, end in runs:
        at = start
        while at < end:
            length = min(end - at, CALL_BYTES - size)
            pending.append((at, length))
            size += length
            at += length
            if size >= CALL_BYTES or len(pending) == madvise.RANGES_MOST:
                _advise_out(pidfd, pending)
                pending, size = [], 0
    if pending:
        _advise_out(pidfd, pending)


def _advise_out(pidfd: int, ranges: list[tuple[int, int]]) -> None:
    at = 0
    while at < len(ranges):
        try:
            advised = madvise.advise(pidfd, ranges[at:], madvise.MADV_PAGEOUT)
        except OSError as error:
            if error.errno not in PASSED_OVER:
                raise
            advised = 0
        # The kernel stops at the first range that may not leave (a locked one, say): go on behind it.
        while at < len(ranges) and advised >= ranges[at][1]:
            advised -= ranges[at][1]
            at += 1
        at += 1


def _bring(pid: int, pages: Int64) -> int:
    done = at = 0
    while at < pages.size:
        part = pages[at : at + madvise.RANGES_MOST]
        try:
            read = madvise.touch(pid, part)
        except OSError as error:
            if error.errno not in PASSED_OVER:
                raise
            read = 0
        done += read
        # A page that could not be read ended the call: go on behind it.
        at += read if read == len(part) else read + 1
    return done


def _moved(asked_bytes: int, pages: int, begin_s: float, begin_cpu_s: float) -> Moved:
    return Moved(
        asked_bytes=asked_bytes,
        moved_bytes=pages * PAGE,
        duration_s=time.monotonic() - begin_s,
        cpu_s=time.thread_time() - begin_cpu_s,
    )
