# SPDX-License-Identifier: Apache-2.0
"""What pages of another process hold, read so that nothing comes into memory for it.

Only pages that are in memory are read (/proc/PID/pagemap), and of these only anonymous ones, which KSM can merge:
neither file pages nor the kernel's pages of zeros, which take no memory. process_vm_readv(2) marks what it reads as
used on the kernel's lists of pages (mark_page_accessed), as one access by its owner would.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import Mapping
from memsculpt.domain.sharing import PageContents, UInt64
from memsculpt.host.linux import madvise, pagemap, runs
from memsculpt.host.linux.pagemap import ENTRY_BYTES, FRAME, PAGE, PART_BYTES, PRESENT

FILE_OR_SHMEM = 1 << 61  # of an entry of pagemap
PAGE_IS_FILE, PAGE_IS_PFNZERO = 1 << 2, 1 << 5  # of PAGEMAP_SCAN
# Gone, unmapped or locked away meanwhile: that page is passed over.
PASSED_OVER = frozenset({errno.EFAULT, errno.EIO, errno.ENOMEM})


def private_ranges(mappings: Sequence[Mapping], ranges: Int64) -> list[tuple[int, int]]:
    """Return what of `ranges` is private memory without a file behind it."""
    return [
        (max(start, one.start), min(end, one.end))
        for start, end in ranges.tolist()
        for one in mappings
        if one.start < end and start < one.end and not one.is_shared and not one.is_file
    ]


def anonymous_runs(descriptor: int, ranges: list[tuple[int, int]]) -> Int64:
    """Return the runs of anonymous pages in memory, merged ones included, pages of zeros of the kernel's not.

    `descriptor` is an open /proc/PID/pagemap. Raises OSError.
    """
    try:
        return _scanned(descriptor, ranges)
    except OSError as error:
        if error.errno not in pagemap.NO_SCAN:
            raise
    zero = _frame_of_zeros()
    parts: list[Int64] = []
    for start, end in ranges:
        for at in range(start, end, PART_BYTES):
            count = (min(end, at + PART_BYTES) - at) // PAGE
            content = os.pread(descriptor, count * ENTRY_BYTES, at // PAGE * ENTRY_BYTES)
            entries = np.frombuffer(content[: len(content) // ENTRY_BYTES * ENTRY_BYTES], np.uint64)
            wanted = (entries & np.uint64(PRESENT | FILE_OR_SHMEM)) == np.uint64(PRESENT)
            parts.append(runs.runs_of(wanted & ((entries & np.uint64(FRAME)) != np.uint64(zero)), at, PAGE))
    return runs.joined(parts)


def count_zero_pages(descriptor: int, ranges: list[tuple[int, int]]) -> int:
    """Return how many pages of the ranges the kernel's page of zeros stands for; 0 on kernels that do not tell.

    Since Linux 6.12 a huge page that is split gives up its pages of zeros so (mm/huge_memory.c), and KSM
    splits what it merges from: memory that is saved without being counted as merged. Raises OSError.
    """
    regions = np.empty((pagemap.REGIONS_MOST, 3), np.uint64)
    count = 0
    try:
        for start, end in ranges:
            at = start
            while at < end:
                words = (pagemap.SCAN_ARGUMENT.size, 0, at, end, 0, regions.ctypes.data, len(regions), 0)
                argument = bytearray(pagemap.SCAN_ARGUMENT.pack(*words, 0, PAGE_IS_PFNZERO, 0, 0))
                found = fcntl.ioctl(descriptor, pagemap.PAGEMAP_SCAN, argument)
                count += int((regions[:found, 1] - regions[:found, 0]).sum()) // PAGE
                at = int(pagemap.SCAN_ARGUMENT.unpack(argument)[4])
    except OSError as error:
        if error.errno not in pagemap.NO_SCAN:
            raise
    return count


def read_pages(pid: int, wanted: Int64) -> PageContents:
    """Return the pages of the runs; those that went away meanwhile are left out. Raises OSError when all did."""
    addresses = runs.pages_of(wanted, PAGE)
    words: UInt64 = np.empty((len(addresses), PAGE // 8), np.uint64)
    is_read = np.zeros(len(addresses), np.bool_)
    at = 0
    while at < len(addresses):
        size = min(len(addresses) - at, madvise.RANGES_MOST)
        try:
            done = madvise.copy_pages(pid, addresses[at : at + size], words[at : at + size])
        except OSError as error:
            if error.errno not in PASSED_OVER:
                raise
            done = 0
        is_read[at : at + done] = True
        at += done if done == size else done + 1
    return PageContents(addresses=addresses[is_read], words=words[is_read])


def _scanned(descriptor: int, ranges: list[tuple[int, int]]) -> Int64:
    regions = np.empty((pagemap.REGIONS_MOST, 3), np.uint64)
    unwanted = PAGE_IS_FILE | PAGE_IS_PFNZERO
    found: list[Int64] = []
    for start, end in ranges:
        at = start
        while at < end:
            # Inverted: the two that must not be; all of: present, and neither of these.
            words = (pagemap.SCAN_ARGUMENT.size, 0, at, end, 0, regions.ctypes.data, len(regions), 0)
            masks = (unwanted, pagemap.PAGE_IS_PRESENT | unwanted, 0, 0)
            argument = bytearray(pagemap.SCAN_ARGUMENT.pack(*words, *masks))
            count = fcntl.ioctl(descriptor, pagemap.PAGEMAP_SCAN, argument)
            found.append(regions[:count, :2].astype(np.int64))
            at = int(pagemap.SCAN_ARGUMENT.unpack(argument)[4])
    return runs.joined(found)


def _frame_of_zeros() -> int:
    """Return the frame of the kernel's page of zeros, as the page tables of a page of ours that was only read tell."""
    page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(buffer)
    _ = buffer.value  # a read: the page table now points to the page of zeros
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entry = int.from_bytes(os.pread(descriptor, ENTRY_BYTES, address // PAGE * ENTRY_BYTES), "little")
    finally:
        os.close(descriptor)
    return entry & FRAME
