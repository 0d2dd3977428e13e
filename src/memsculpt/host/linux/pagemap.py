# SPDX-License-Identifier: Apache-2.0
"""Which of a process's pages are resident, which swapped: /proc/PID/maps, smaps and pagemap.

Documentation/admin-guide/mm/pagemap.rst: one 64-bit entry a page, bit 63 present, bit 62 swapped, bit 56 mapped by
this process alone. The ioctl PAGEMAP_SCAN (52526ca7fdb9, Linux 6.7) finds the pages of a mapping without reading an
entry for each page that was never touched; without it, the entries are read all the same.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import REGION_BYTES, REGION_PAGES, Extents, Mapping
from memsculpt.host.linux import runs

UInt64: TypeAlias = npt.NDArray[np.uint64]

PAGE = mmap.PAGESIZE
ENTRY_BYTES = 8
PRESENT = 1 << 63
SWAPPED = 1 << 62
EXCLUSIVE = 1 << 56
FRAME = (1 << 55) - 1  # bits 0 to 54: the frame's number, 0 for those who may not know
# What MADV_PAGEOUT can take: it passes over pages that a forked child shares, and the page of zeros.
MOVABLE = PRESENT | EXCLUSIVE
# Entries are read in parts, so that a process of any size costs the agent little memory of its own.
PART_BYTES = 64 << 20

PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, four masks
SCAN_ARGUMENT = struct.Struct("=12Q")
PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_PFNZERO, PAGE_IS_HUGE = 1 << 3, 1 << 4, 1 << 5, 1 << 6
# The kernel gathers so many in a buffer of its own; where it is given room for more, it mixes them up (seen on 6.18).
REGIONS_MOST = 512
# A gap is read along when that is cheaper than another read.
GAP_BYTES = 2 << 20
# Older kernels, and kernels without CONFIG_PROC_PAGE_MONITOR's ioctl.
NO_SCAN = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOSYS})


def parse_private(content: bytes) -> list[tuple[int, int]]:
    """Return the address ranges of private, writable, anonymous memory: heap and anonymous mappings.

    Stacks, files, shared and special mappings are left out: they are small, or not the process's alone.
    """
    ranges: list[tuple[int, int]] = []
    for line in content.splitlines():
        words = line.split(None, 5)
        if len(words) < 5 or words[1] != b"rw-p":
            continue
        name = words[5] if len(words) == 6 else b""
        if name not in {b"", b"[heap]"} and not name.startswith(b"[anon:"):
            continue
        found = _range_from(words[0])
        if found is not None:
            ranges.append(found)
    return ranges


def parse_locked(content: bytes) -> Int64:
    """Return the runs of /proc/PID/smaps that may not leave: `lo` among their VmFlags (proc_pid_smaps(5))."""
    found: list[tuple[int, int]] = []
    mapping: tuple[int, int] | None = None
    for line in content.splitlines():
        head, _, rest = line.partition(b" ")
        if head == b"VmFlags:":
            if mapping is not None and b"lo" in rest.split():
                found.append(mapping)
        elif not head.endswith(b":"):
            mapping = _range_from(head)
    return runs.joined([np.array(found, np.int64).reshape(-1, 2)])


def read_runs(descriptor: int, ranges: list[tuple[int, int]], flags: int) -> Int64:
    """Return the runs of pages in `ranges` whose entry has all of `flags`. Raises OSError.

    `descriptor` is an open /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
    """
    return read_entries(descriptor, touched_ranges(descriptor, ranges), flags)


def read_entries(descriptor: int, ranges: list[tuple[int, int]], flags: int) -> Int64:
    """Return the same from an entry for each page of `ranges`, touched or not. Raises OSError."""
    wanted = np.uint64(flags)
    parts: list[Int64] = []
    for start, end in ranges:
        for at in range(start, end, PART_BYTES):
            entries = _entries(descriptor, at, min(end, at + PART_BYTES))
            parts.append(runs.runs_of((entries & wanted) == wanted, at, PAGE))
    return runs.joined(parts)


def read_runs_in_frames(descriptor: int, ranges: list[tuple[int, int]], frames: Int64) -> Int64:
    """Return the runs of pages in `ranges` that are in memory behind one of the runs of `frames`. Raises OSError.

    None where frames may not be read (without CAP_SYS_ADMIN the kernel shows 0).
    """
    parts: list[Int64] = []
    edges = frames.ravel()
    for start, end in touched_ranges(descriptor, ranges):
        for at in range(start, end, PART_BYTES):
            entries = _entries(descriptor, at, min(end, at + PART_BYTES))
            held = (entries & np.uint64(PRESENT)) != 0
            numbers = np.where(held, entries & np.uint64(FRAME), 0).astype(np.int64)
            # Behind an odd number of edges a frame lies within a run.
            inside = held & (np.searchsorted(edges, numbers, side="right") % 2 == 1)
            parts.append(runs.runs_of(inside, at, PAGE))
    return runs.joined(parts)


def read_regions(descriptor: int, addresses: list[int], pages: int) -> UInt64:
    """Return the entries of `pages` pages from each of the ascending `addresses` on, shape (n, pages).

    Regions that touch are read in one call; zeros past the last address. Raises OSError.
    """
    found = np.zeros((len(addresses), pages), np.uint64)
    first = 0
    for row in range(1, len(addresses) + 1):
        if row == len(addresses) or addresses[row] != addresses[row - 1] + pages * PAGE:
            content = os.pread(descriptor, (row - first) * pages * ENTRY_BYTES, addresses[first] // PAGE * ENTRY_BYTES)
            entries = np.frombuffer(content[: len(content) // ENTRY_BYTES * ENTRY_BYTES], np.uint64)
            found[first:row].reshape(-1)[: len(entries)] = entries
            first = row
    return found


def read_tables(descriptor: int, ranges: list[tuple[int, int]]) -> tuple[Int64, UInt64]:
    """Return the addresses of the regions of 2 MiB of `ranges` that hold anything, and the entries of their pages.

    Shapes (n_regions,) and (n_regions, 512); ranges are widened to whole regions. Raises OSError.
    """
    found = np.array(touched_ranges(descriptor, ranges), np.int64).reshape(-1, 2)
    found[:, 0] //= REGION_BYTES
    found[:, 1] = -(-found[:, 1] // REGION_BYTES)
    whole = runs.joined([found * REGION_BYTES])
    addresses: list[Int64] = []
    entries: list[UInt64] = []
    for start, end in whole.tolist():
        for at in range(start, end, PART_BYTES):
            regions = (min(end, at + PART_BYTES) - at) // REGION_BYTES
            tables = read_regions(descriptor, [at], regions * REGION_PAGES).reshape(-1, REGION_PAGES)
            kept = np.flatnonzero(tables.any(axis=1))
            addresses.append(at + kept.astype(np.int64) * REGION_BYTES)
            entries.append(tables[kept])
    return (
        np.concatenate([np.empty(0, np.int64), *addresses]),
        np.concatenate([np.empty((0, REGION_PAGES), np.uint64), *entries]),
    )


def read_extents(descriptor: int, mappings: Sequence[Mapping]) -> Extents:
    """Return where there is memory. Raises OSError."""
    addresses, entries = read_tables(descriptor, [(one.start, one.end) for one in mappings])
    present = (entries & np.uint64(PRESENT)) != 0
    return Extents(regions=addresses, present=present.sum(axis=1).astype(np.int64))


def read_huge_runs(descriptor: int, ranges: list[tuple[int, int]]) -> Int64:
    """Return the runs of `ranges` that huge pages map. Raises OSError.

    By PAGEMAP_SCAN; on kernels before it, a region of 2 MiB counts whose 512 frames follow one another from a border
    of 2 MiB on, which without a huge page is as good as never so.
    """
    found = _scanned(descriptor, ranges, PAGE_IS_HUGE)
    if found is None:
        addresses, tables = read_tables(descriptor, ranges)
        frames = (tables & np.uint64(FRAME)).astype(np.int64)
        first = frames[:, :1]
        is_huge = (first[:, 0] > 0) & (first[:, 0] % REGION_PAGES == 0)
        is_huge &= (frames == first + np.arange(REGION_PAGES)).all(axis=1)
        starts = addresses[is_huge]
        return runs.joined([np.stack((starts, starts + REGION_BYTES), axis=1)])
    return runs.joined(found)


def read_zero_runs(descriptor: int, ranges: list[tuple[int, int]]) -> Int64:
    """Return the runs of `ranges` where the kernel's page of zeros is mapped, which takes no memory. Raises OSError.

    Memory that was only read has it, as the memory of a guest that has migrated here. None on kernels that cannot tell.
    """
    found = _scanned(descriptor, ranges, PAGE_IS_PFNZERO)
    return runs.NONE if found is None else runs.joined(found)


def longest_frames(descriptor: int, ranges: list[tuple[int, int]]) -> Int64:
    """Return the longest stretch of each range whose frames follow one another, in bytes, shape (n_ranges,).

    0 where nothing is in memory, or frames may not be read (without CAP_SYS_ADMIN the kernel shows 0). Raises OSError.
    """
    longest = np.zeros(len(ranges), np.int64)
    for number, (start, end) in enumerate(ranges):
        under_way, last = 0, -1  # of the stretch that reaches the border of a part
        for at in range(start, end, PART_BYTES):
            entries = _entries(descriptor, at, min(end, at + PART_BYTES))
            present = (entries & np.uint64(PRESENT)) != 0
            frames = np.where(present, entries & np.uint64(FRAME), 0).astype(np.int64)
            if not len(frames):
                break
            follows = (np.diff(frames, prepend=last) == 1) & (frames > 0)
            edges = np.flatnonzero(~follows)
            head = int(edges[0]) if len(edges) else len(frames)
            lengths = np.diff(np.append(edges, len(frames)))
            inside = int(lengths[frames[edges] > 0].max(initial=0))
            longest[number] = max(int(longest[number]), under_way + head, inside)
            tail = int(lengths[-1]) if len(edges) and frames[-1] > 0 else 0
            under_way = tail if len(edges) else under_way + head
            last = int(frames[-1]) or -1
    return longest * PAGE


def touched_ranges(descriptor: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of `ranges` may hold pages: a reserved terabyte costs nothing. All of it on kernels that cannot tell.

    Gaps below GAP_BYTES are kept. Raises OSError.
    """
    found = _scanned(descriptor, ranges, PAGE_IS_PRESENT | PAGE_IS_SWAPPED)
    if found is None:
        return ranges
    return [(start, end) for start, end in runs.joined(found, GAP_BYTES).tolist()]


def _scanned(descriptor: int, ranges: list[tuple[int, int]], any_of: int) -> list[Int64] | None:
    """Return the runs of `ranges` that are `any_of` these, part by part; None on kernels that cannot tell."""
    found: list[Int64] = []
    regions = np.empty((REGIONS_MOST, 3), np.uint64)
    try:
        for start, end in ranges:
            at = start
            while at < end:
                count, at = _scan(descriptor, at, end, regions, any_of)
                found.append(regions[:count, :2].astype(np.int64))
    except OSError as error:
        if error.errno not in NO_SCAN:
            raise
        return None
    return found


def _scan(descriptor: int, start: int, end: int, regions: UInt64, any_of: int) -> tuple[int, int]:
    """Fill `regions` with what is `any_of` these; return how many, and where the kernel stopped."""
    # The category masks are: inverted, all of, any of, and what is told of each region: nothing, so neighbours join.
    words = (SCAN_ARGUMENT.size, 0, start, end, 0, regions.ctypes.data, len(regions), 0, 0, 0, any_of, 0)
    argument = bytearray(SCAN_ARGUMENT.pack(*words))
    count = fcntl.ioctl(descriptor, PAGEMAP_SCAN, argument)
    return count, int(SCAN_ARGUMENT.unpack(argument)[4])


def _range_from(word: bytes) -> tuple[int, int] | None:
    start, dash, end = word.partition(b"-")
    if not dash:
        return None
    try:
        return int(start, 16), int(end, 16)
    except ValueError:  # no line of maps (a torn read): whatever it is, nothing of it is moved
        return None


def _entries(descriptor: int, start: int, end: int) -> npt.NDArray[np.uint64]:
    """Return the entries of the pages from `start` to `end`, fewer where the address space ends. Raises OSError."""
    content = os.pread(descriptor, (end - start) // PAGE * ENTRY_BYTES, start // PAGE * ENTRY_BYTES)
    return np.frombuffer(content[: len(content) // ENTRY_BYTES * ENTRY_BYTES], dtype=np.uint64)
