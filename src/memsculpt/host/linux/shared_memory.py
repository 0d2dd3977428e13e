# SPDX-License-Identifier: Apache-2.0
"""Which pages of shared memory are in memory, and which are swapped: asked of the file behind a mapping.

The page tables do not tell. Reclaim empties the entry of a shared page, and it is the file that remembers where the
page went (mm/shmem.c), so pagemap shows neither bit and VmSwap counts none of it. But /proc/PID/map_files/START-END
opens what a mapping maps (proc(5); for CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), SEEK_DATA finds what the file holds,
swapped pages among it, and mincore(2) which of that is in memory; a page in the swap cache is. What was never touched
is a hole. Verified against `Swap:` of smaps, which the kernel counts in another way (tests/vm/test_guest_pools.py).
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import Mapping
from memsculpt.host.linux import runs
from memsculpt.host.linux.pagemap import PAGE

# linux/magic.h; anonymous shared memory, memfd and /dev/shm are all tmpfs (mm/shmem.c).
TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6
STATFS_BYTES = 256  # struct statfs has 120 on x86-64; its first word is the type
HUGE_TLB = "huge TLB memory: it neither leaves nor is gathered"
ON_DISK = "a file's on a disk: it leaves to its file by itself"
MINCORE_PART_BYTES = 1 << 30  # a byte of answer for each page

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


class SharedMemory:
    """What one shared mapping of another process maps, held open. Addresses are that process's."""

    def __init__(self, folder: int, mapping: Mapping) -> None:
        """Open it by a descriptor of /proc/PID. Raises OSError: denied, or unmapped meanwhile."""
        self.mapping = mapping
        self._map: mmap.mmap | None = None
        self._file = os.open(f"map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        try:
            self.problem = _problem_of(self._file)  # why its pages are not moved; "" where they may be
        except OSError:
            self.close()
            raise

    def held(self, ranges: Int64) -> Int64:
        """Return what of ascending `ranges` exists, in memory or swapped; holes are left out. Raises OSError."""
        mapping = self.mapping
        shift = mapping.start - mapping.offset
        found: list[tuple[int, int]] = []
        for start, end in self._inside(ranges).tolist():
            at = start - shift
            while at < end - shift:
                try:
                    low = os.lseek(self._file, at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # nothing up to the file's end
                        raise
                    break
                if low >= end - shift:
                    break
                at = min(os.lseek(self._file, low, os.SEEK_HOLE), end - shift)
                found.append((low + shift, at + shift))
        return runs.joined([np.array(found, np.int64).reshape(-1, 2)])

    def resident(self, ranges: Int64) -> Int64:
        """Return what of ascending `ranges` is in memory, mapped or not. Raises OSError."""
        parts: list[Int64] = []
        for start, end in self._inside(ranges).tolist():
            for at in range(start, end, MINCORE_PART_BYTES):
                size = min(end - at, MINCORE_PART_BYTES)
                told = np.zeros(size // PAGE, np.uint8)
                if _libc.mincore(self._address() + at - self.mapping.start, size, told.ctypes.data):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
                parts.append(runs.runs_of((told & 1).astype(np.bool_), at, PAGE))
        return runs.joined(parts)

    def unmapped(self, ranges: Int64, mapped: Int64) -> tuple[Int64, Int64]:
        """Return what of `ranges` is in memory though not `mapped`, and what is swapped. Raises OSError."""
        waiting = runs.difference(self.held(ranges), mapped)
        resident = self.resident(waiting)
        return resident, runs.difference(waiting, resident)

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _inside(self, ranges: Int64) -> Int64:
        return runs.intersection(ranges, np.array([(self.mapping.start, self.mapping.end)], np.int64))

    def _address(self) -> int:
        """Return where it is mapped here: no page of it is ever touched through this, mincore(2) only wants a place."""
        if self._map is None:
            size = self.mapping.end - self.mapping.start
            self._map = mmap.mmap(
                self._file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=self.mapping.offset
            )
        view = np.frombuffer(self._map, np.uint8, count=1)
        return int(view.ctypes.data)


def open_within(folder: int, mappings: Sequence[Mapping], ranges: Sequence[tuple[int, int]]) -> list[SharedMemory]:
    """Return the shared mappings that meet `ranges`, each held open; the caller closes them. Raises OSError."""
    found: list[SharedMemory] = []
    try:
        for one in mappings:
            if one.is_shared and any(start < one.end and one.start < end for start, end in ranges):
                found.append(SharedMemory(folder, one))  # noqa: PERF401  those before a failure are closed
    except OSError:
        for one in found:
            one.close()
        raise
    return found


def _problem_of(file: int) -> str:
    told = ctypes.create_string_buffer(STATFS_BYTES)
    if _libc.fstatfs(file, told):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    kind = ctypes.c_long.from_buffer(told).value
    if kind == HUGETLBFS_MAGIC:
        return HUGE_TLB
    return "" if kind == TMPFS_MAGIC else ON_DISK
