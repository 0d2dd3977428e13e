# SPDX-License-Identifier: Apache-2.0
"""Chosen pages go out to swap or come back, by the way that suits the swap devices.

Compressed memory works within the call: a page that leaves is free at once, one that is read comes mapped and
gives its copy up. A disk works behind it. What leaves stays in the swap cache, charged to its owner, until
somebody reclaims it after the write, and the kernel, short of room meanwhile, takes other workloads' pages. What
comes back one fault after another waits for each small read. So there

- pages leave in two steps: the write is asked for, and a little later, when it is done, the clean page is mapped
  and advised away once more, which frees it (pages that were clean already go at the first step, which the size
  of the swap cache tells);
- pages come back in two steps: `MADV_WILLNEED` queues the reads of a stretch, and the pages are mapped as they come.

Measured with a swap file (docs/decisions/0037-disk-swap.md): 370 MiB back in 0.25 s instead of 1.15 s.
"""

import errno
import re
from collections import deque
from collections.abc import Generator

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.host.linux import madvise, meminfo, procfs, runs
from memsculpt.host.linux.pagemap import PAGE

# Ranges that were unmapped, locked or hidden meanwhile: passed over, the rest goes on.
PASSED_OVER = frozenset({errno.ENOMEM, errno.EINVAL, errno.EAGAIN, errno.EINTR, errno.EFAULT})
# A kernel without preemption lets nobody in before a call returns: 256 KiB take some 0.7 ms to compress.
# Measured against calls of 4 MiB: 340 MiB out in 0.85 s instead of 0.75 s.
CALL_BYTES = 256 << 10
# Pages are listed one by one only for so much at a time.
LISTED_BYTES = 64 << 20
STRETCH_BYTES = 4 << 20
STRETCHES_UNDER_WAY = 8
PROMPT_DEVICES = re.compile(rb"^/dev/(zram|ram|pmem)\d")


def is_prompt(proc: str) -> bool:
    """Tell whether every swap device works within the call (compressed or plain memory). Raises OSError."""
    lines = procfs.read_file(f"{proc}/swaps").splitlines()[1:]
    return all(PROMPT_DEVICES.match(line) for line in lines)


def send(pid: int, pidfd: int, chosen: Int64, proc: str) -> None:
    """Page the runs out. What is locked or gone meanwhile stays. Raises OSError."""
    if is_prompt(proc):
        _advise(pidfd, chosen, madvise.MADV_PAGEOUT, CALL_BYTES)
        return
    being_written: deque[Int64] = deque()
    cached = meminfo.read_swap_cached_bytes(proc)
    for stretch in stretches_of(chosen, STRETCH_BYTES):
        _advise(pidfd, stretch, madvise.MADV_PAGEOUT, STRETCH_BYTES)
        before, cached = cached, meminfo.read_swap_cached_bytes(proc)
        if cached - before > -runs.size_of(stretch) // 2:
            being_written.append(stretch)
        if len(being_written) > STRETCHES_UNDER_WAY:
            _free_written(pid, pidfd, being_written.popleft())
            cached = meminfo.read_swap_cached_bytes(proc)
    for stretch in being_written:
        _free_written(pid, pidfd, stretch)


def send_again(pidfd: int, left: Int64) -> None:
    """Advise away once more what was still being written; by now it may be clean. Raises OSError."""
    _advise(pidfd, left, madvise.MADV_PAGEOUT, STRETCH_BYTES)


def map_and_send(pid: int, pidfd: int, left: Int64) -> None:
    """Map what is in memory without being mapped, and page it out. Raises OSError."""
    for stretch in stretches_of(left, STRETCH_BYTES):
        _touch(pid, stretch)
        _advise(pidfd, stretch, madvise.MADV_PAGEOUT, CALL_BYTES)


def bring(pid: int, pidfd: int, chosen: Int64, proc: str) -> int:
    """Map the runs, reading them from swap; return how many pages were read. Raises OSError."""
    if is_prompt(proc):
        return sum(_touch(pid, stretch) for stretch in stretches_of(chosen, LISTED_BYTES))
    done = 0
    under_way: deque[Int64] = deque()
    for stretch in stretches_of(chosen, STRETCH_BYTES):
        _advise(pidfd, stretch, madvise.MADV_WILLNEED, STRETCH_BYTES)
        under_way.append(stretch)
        if len(under_way) > STRETCHES_UNDER_WAY:
            done += _touch(pid, under_way.popleft())
    return done + sum(_touch(pid, stretch) for stretch in under_way)


def stretches_of(chosen: Int64, size_bytes: int) -> Generator[Int64]:
    """Cut runs into parts of `size_bytes`, in order; the last may be less. Neighbours stay apart."""
    ends = np.cumsum(chosen[:, 1] - chosen[:, 0])
    starts = ends - (chosen[:, 1] - chosen[:, 0])
    for low in range(0, int(ends[-1]) if len(ends) else 0, size_bytes):
        high = low + size_bytes
        inside = (starts < high) & (ends > low)
        part = chosen[inside].copy()
        part[:, 0] += np.maximum(low - starts[inside], 0)
        part[:, 1] -= np.maximum(ends[inside] - high, 0)
        yield part


def _free_written(pid: int, pidfd: int, stretch: Int64) -> None:
    _touch(pid, stretch)
    _advise(pidfd, stretch, madvise.MADV_PAGEOUT, STRETCH_BYTES)


def _advise(pidfd: int, chosen: Int64, advice: int, call_bytes: int) -> None:
    """Give the advice in calls of at most `call_bytes` and RANGES_MOST ranges."""
    pending: list[tuple[int, int]] = []
    size = 0
    for start, end in chosen.tolist():
        at = start
        while at < end:
            length = min(end - at, call_bytes - size)
            pending.append((at, length))
            size += length
            at += length
            if size >= call_bytes or len(pending) == madvise.RANGES_MOST:
                _advise_all(pidfd, pending, advice)
                pending, size = [], 0
    if pending:
        _advise_all(pidfd, pending, advice)


def _advise_all(pidfd: int, ranges: list[tuple[int, int]], advice: int) -> None:
    at = 0
    while at < len(ranges):
        try:
            advised = madvise.advise(pidfd, ranges[at:], advice)
        except OSError as error:
            if error.errno not in PASSED_OVER:
                raise
            advised = 0
        # The kernel stops at the first range that may not leave (a locked one, say): go on behind it.
        while at < len(ranges) and advised >= ranges[at][1]:
            advised -= ranges[at][1]
            at += 1
        at += 1


def _touch(pid: int, stretch: Int64) -> int:
    pages = runs.pages_of(stretch, PAGE)
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
