# SPDX-License-Identifier: Apache-2.0
"""Begin an interval: clear the accessed bits of a process, wholly or in parts, so that stale TLB entries hide nothing.

A processor sets the accessed bit only when it loads a translation. As long as one lies in the TLB, a bit that was
cleared stays clear however much the page is used: a clear is worth something only with a flush.

- /proc/PID/clear_refs (fs/proc/task_mmu.c): "1" clears all, pages that other processes map as well, and does not
  flush; the process cannot map or unmap anything meanwhile (mmap_lock is held for writing), nor take a page fault. "4"
  is meant for soft-dirty bits, and does flush. Where the kernel keeps no soft-dirty bits the flush is all that it does;
  where it does, every page would be write-protected, so it is left alone there.
- process_madvise(MADV_COLD) (mm/madvise.c): clears ranges and flushes, with mmap_lock held for reading. It passes over
  pages that several processes map, over locked and huge-TLB memory and over pages that have come so lately that they
  are on no list yet (lru.py), and takes pages from the active to the inactive
  list: they lose their place in the kernel's own order of age, not their protection when they are touched again.
"""

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from memsculpt.domain.pages import REGION_BYTES, Mapping
from memsculpt.host.linux import madvise
from memsculpt.host.linux.opened import OpenedProcess

MADV_COLD = 20
# A call's ranges together: some 0.7 ms.
PART_BYTES = 64 << 20
# What clear_refs takes, twice, for a GiB (bench sense); the hold of the lock is foreseen with it.
REFS_S_PER_GIB = 0.008
SOFT_DIRTY = 1 << 55
# Of a range that was unmapped meanwhile (the rest is done), or that may not be advised (locked, huge TLB, devices).
PASSED_OVER = frozenset({errno.ENOMEM, errno.EINVAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """What a clear did."""

    cleared_bytes: int
    longest_hold_s: float
    refused: tuple[tuple[int, int], ...] = ()  # ranges that could not be cleared


def foreseen_hold_s(resident_bytes: int) -> float:
    """Return for how long one write to clear_refs will stop a process of this size from mapping memory."""
    return resident_bytes / (1 << 30) * REFS_S_PER_GIB


def clear_whole(opened: OpenedProcess, resident_bytes: int) -> Clearing:
    """Clear everything by clear_refs. Raises OSError."""
    holds_s: list[float] = []
    for what in (b"1",) if keeps_soft_dirty() else (b"1", b"4"):
        begin_s = time.perf_counter()
        opened.write("clear_refs", what)
        holds_s.append(time.perf_counter() - begin_s)
    return Clearing(cleared_bytes=resident_bytes, longest_hold_s=max(holds_s))


def clear_parts(opened: OpenedProcess, ranges: Sequence[tuple[int, int]]) -> Clearing:
    """Clear ranges by MADV_COLD, some of them a call. Raises OSError."""
    done = 0
    longest_s = 0.0
    refused: list[tuple[int, int]] = []
    waiting = parts_of(ranges)[::-1]
    while waiting:
        call: list[tuple[int, int]] = []
        size = 0
        while waiting and size < PART_BYTES and len(call) < madvise.RANGES_MOST:
            start, end = waiting.pop()
            call.append((start, end - start))
            size += end - start
        begin_s = time.perf_counter()
        try:
            advised = madvise.advise(opened.pidfd, call, MADV_COLD)
        except OSError as error:
            if error.errno not in PASSED_OVER:
                raise
            advised = 0
        longest_s = max(longest_s, time.perf_counter() - begin_s)
        done += advised
        for number, (start, length) in enumerate(call):  # the call stops at the first range that it refuses
            if advised < length:
                refused.append((start, start + length))
                waiting.extend((at, at + rest) for at, rest in reversed(call[number + 1 :]))
                break
            advised -= length
    return Clearing(cleared_bytes=done, longest_hold_s=longest_s, refused=tuple(refused))


def clear_quickly(
    opened: OpenedProcess, ranges: Sequence[tuple[int, int]], mappings: Sequence[Mapping]
) -> tuple[tuple[int, int], ...]:
    """Clear a few MiB; return what could not be cleared. Raises OSError.

    The kernel is asked for whole ranges first: holes in them are no harm (it does the rest and says so), only where
    something may not be advised does it stop, and is then asked mapping by mapping.
    """
    try:
        wanted = sum(end - start for start, end in ranges)
        if madvise.advise(opened.pidfd, [(start, end - start) for start, end in ranges], MADV_COLD) == wanted:
            return ()
    except OSError as error:
        if error.errno not in PASSED_OVER:
            raise
        if error.errno == errno.ENOMEM and len(ranges) == 1:
            return ()
    return clear_parts(opened, ranges_within(mappings, ranges)).refused


def parts_of(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges cut into parts of at most PART_BYTES, on borders of huge pages, which a cut would split."""
    parts: list[tuple[int, int]] = []
    for start, end in ranges:
        at = start
        while at < end:
            cut = min(end, (at + PART_BYTES) // REGION_BYTES * REGION_BYTES)
            parts.append((at, cut))
            at = cut
    return parts


def ranges_within(mappings: Sequence[Mapping], ranges: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Return what of the mappings lies in `ranges` (None: everything), each in one mapping, ascending."""
    if ranges is None:
        return [(one.start, one.end) for one in mappings]
    found: list[tuple[int, int]] = []
    wanted = sorted(ranges)
    number = 0
    for one in mappings:
        while number < len(wanted) and wanted[number][1] <= one.start:
            number += 1
        at = number
        while at < len(wanted) and wanted[at][0] < one.end:
            found.append((max(one.start, wanted[at][0]), min(one.end, wanted[at][1])))
            at += 1
    return found


@cache
def keeps_soft_dirty() -> bool:
    """Tell whether the kernel has soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): a new page of our own shows one then."""
    import ctypes
    import mmap
    import os

    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        handle = ctypes.c_char.from_buffer(memory)
        offset = ctypes.addressof(handle) // mmap.PAGESIZE * 8
        del handle
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entry = int.from_bytes(os.pread(descriptor, 8, offset), "little")
        finally:
            os.close(descriptor)
    return bool(entry & SOFT_DIRTY)
