# SPDX-License-Identifier: Apache-2.0
"""Move pages of other processes, and choose which: what was out last time goes out again, and comes back first.

The least churn wins: a page that left once and was not missed costs a page table walk, another one costs a fault
to learn that it was needed.
"""

import errno
import os
import time

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient
from memsculpt.host.linux import errnos, madvise, pagemap
from memsculpt.host.linux.pagemap import PAGE_BYTES, PRESENT, SWAPPED, Pagemap
from memsculpt.host.protocol import Moved

CALL_BYTES = 256 << 10
"""What one call asks for at most. A kernel without preemption lets nobody else in before it returns; measured:
0.85 s instead of 0.75 s per 340 MiB."""

REMEMBERED_COUNT = 256  # processes whose sent pages are kept; 8 bytes a page

_SKIP = frozenset({errno.EINVAL, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
"""Of process_madvise, go on behind it: EINVAL locked, ENOMEM unmapped meanwhile, EINTR and EAGAIN not now."""


class LinuxPager:
    """The host's two page moves, and what they remember: the addresses sent out, per process instance."""

    def __init__(self, proc: bytes = b"/proc") -> None:
        self._proc = proc
        self._sent: dict[Instance, Int64] = {}

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        begun = _Begun(size_bytes)
        place = f"process {process.pid}"
        with madvise.opened(process, self._proc) as pidfd, errnos.at(place), pagemap.opened(process.pid) as pages:
            chosen = choose_out(pages.pages(PRESENT), self._sent.get(process), size_bytes // PAGE_BYTES)
            if chosen.size == 0:
                return begun.moved(0)
            last_error = _send(pidfd, chosen)
            out = pages.pages(SWAPPED)
        moved_count = int(np.isin(chosen, out, assume_unique=True).sum())
        self._remember(process, out)
        if moved_count == 0:
            words = os.strerror(last_error) if last_error else "swap takes none of its pages (full, or no swap is on)"
            raise Transient(place=place, problem=words, retry_in_s=errnos.RETRY_IN_S)
        return begun.moved(moved_count)

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        begun = _Begun(size_bytes)
        place = f"process {process.pid}"
        with madvise.opened(process, self._proc), errnos.at(place), pagemap.opened(process.pid) as pages:
            chosen = choose_in(pages.pages(SWAPPED), self._sent.get(process), size_bytes // PAGE_BYTES)
            if chosen.size == 0:
                return begun.moved(0)
            _fetch(process.pid, chosen)
            return begun.moved(_count_present(pages, chosen))

    def forget_vanished(self) -> None:
        """Drop what is remembered of processes that are gone (a reused pid is another instance)."""
        self._sent = {one: pages for one, pages in self._sent.items() if self._lives(one)}

    def _remember(self, process: Instance, out: Int64) -> None:
        self._sent.pop(process, None)
        self._sent[process] = out
        if len(self._sent) > REMEMBERED_COUNT:
            self.forget_vanished()
        while len(self._sent) > REMEMBERED_COUNT:
            del self._sent[next(iter(self._sent))]  # whoever was sent out the longest ago

    def _lives(self, process: Instance) -> bool:
        return os.path.exists(b"%s/%d" % (self._proc, process.pid))


def choose_out(resident: Int64, sent: Int64 | None, page_count: int) -> Int64:
    """Return the addresses to send out, ascending: those that were sent last time first, else the highest.

    resident, sent: ascending addresses, shape (n,). The highest are the newest mappings' on x86-64.
    """
    wanted = max(0, min(page_count, resident.size))
    again = np.zeros(resident.size, dtype=np.bool_) if sent is None else np.isin(resident, sent, assume_unique=True)
    ordered = np.concatenate((resident[~again], resident[again]))
    return np.sort(ordered[ordered.size - wanted :])


def choose_in(swapped: Int64, sent: Int64 | None, page_count: int) -> Int64:
    """Return the addresses to bring back: those that were sent by us first, then the lowest of the others."""
    wanted = max(0, min(page_count, swapped.size))
    ours = np.zeros(swapped.size, dtype=np.bool_) if sent is None else np.isin(swapped, sent, assume_unique=True)
    return np.sort(np.concatenate((swapped[ours], swapped[~ours]))[:wanted])


def runs_of(pages: Int64) -> tuple[Int64, Int64]:
    """Return starts and lengths in bytes of the runs of neighbours in `pages` (ascending), none above CALL_BYTES."""
    if pages.size == 0:
        return pages, pages
    call_pages = CALL_BYTES // PAGE_BYTES
    first = np.concatenate(([0], np.flatnonzero(np.diff(pages) != PAGE_BYTES) + 1))
    counts = np.diff(np.concatenate((first, [pages.size])))
    within = np.arange(pages.size) - np.repeat(first, counts)  # place of a page in its run
    cuts = np.flatnonzero(within % call_pages == 0)
    lengths = np.diff(np.concatenate((cuts, [pages.size])))
    return pages[cuts], (lengths * PAGE_BYTES).astype(np.int64)


def _send(pidfd: int, pages: Int64) -> int:
    """Send pages out, call by call; return the last errno that made it go on behind a range, 0 for none."""
    starts, lengths = runs_of(pages)
    ends = np.cumsum(lengths)
    last_error = at = 0
    while at < starts.size:
        before = int(ends[at - 1]) if at else 0
        upto = int(np.searchsorted(ends, before + CALL_BYTES, side="right"))
        upto = max(at + 1, min(upto, at + madvise.IOV_MAX))
        try:
            done_bytes = madvise.page_out(pidfd, starts[at:upto], lengths[at:upto])
        except OSError as error:
            if error.errno not in _SKIP:
                raise
            last_error, done_bytes = error.errno or 0, 0
        # Where the kernel stopped inside of the list, the range there is the one it may not move: go on behind it.
        passed = int(np.searchsorted(ends, before + done_bytes, side="right"))
        at = upto if passed >= upto else max(passed, at) + 1
    return last_error


def _fetch(pid: int, pages: Int64) -> None:
    """Touch pages, as many a call as the kernel takes; one that is not mapped any more is skipped."""
    at = 0
    while at < pages.size:
        part = pages[at : at + madvise.IOV_MAX]
        try:
            done = madvise.touch(pid, part)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            done = 0
        at += done if done == part.size else done + 1


def _count_present(pages: Pagemap, chosen: Int64) -> int:
    still_out = pages.pages(SWAPPED)
    return chosen.size - int(np.isin(chosen, still_out, assume_unique=True).sum())


class _Begun:
    """When a move began, in time and in this thread's processor time."""

    def __init__(self, asked_bytes: int) -> None:
        self._asked_bytes = asked_bytes
        self._s, self._cpu_s = time.monotonic(), time.thread_time()

    def moved(self, page_count: int) -> Moved:
        return Moved(
            asked_bytes=self._asked_bytes,
            moved_bytes=page_count * PAGE_BYTES,
            duration_s=time.monotonic() - self._s,
            cpu_s=time.thread_time() - self._cpu_s,
        )
