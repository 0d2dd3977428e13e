# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process are in memory and which in swap: /proc/PID/pagemap, walked with numpy.

Source: Documentation/admin-guide/mm/pagemap.rst (bit 63 present, bit 62 swapped, bit 61 file or shared).
"""

import os
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.host.linux import files, procfs
from memsculpt.host.linux.procfs import Mapping

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PRESENT = np.uint64(1 << 63)
SWAPPED = np.uint64(1 << 62)

_SHARED_OR_FILE = np.uint64(1 << 61)
_WINDOW_BYTES = 64 << 20  # of address space: 128 KiB of pagemap at once


class Pagemap:
    """The page tables of one process, read only while its descriptor is open. Raises OSError."""

    def __init__(self, pid: int, fd: int, proc: bytes = b"/proc") -> None:
        self._maps = b"%s/%d/maps" % (proc, pid)
        self._fd = fd

    def pages(self, flag: np.uint64) -> Int64:
        """Return the addresses of the private anonymous pages that have `flag`, shape (n,), ascending."""
        found = [np.empty(0, dtype=np.int64)]
        for mapping in movable(procfs.parse_maps(files.read(self._maps))):
            for start in range(mapping.start, mapping.end, _WINDOW_BYTES):
                end = min(mapping.end, start + _WINDOW_BYTES)
                found.append(self._window(start, end, flag))
        return np.concatenate(found)

    def have(self, addresses: Int64, flag: np.uint64) -> int:
        """Return how many of `addresses` (ascending) have `flag` now."""
        return int(np.isin(addresses, self.pages(flag), assume_unique=True).sum())

    def _window(self, start: int, end: int, flag: np.uint64) -> Int64:
        data = os.pread(self._fd, (end - start) // PAGE_BYTES * 8, start // PAGE_BYTES * 8)
        entries = np.frombuffer(data[: len(data) // 8 * 8], dtype=np.uint64)
        if flag == PRESENT:  # in a private mapping: a page of the zero page or of a file is nobody's to send out
            entries = np.where(entries & _SHARED_OR_FILE, np.uint64(0), entries)
        return (np.flatnonzero(entries & flag) * PAGE_BYTES + start).astype(np.int64, copy=False)


@contextmanager
def opened(pid: int, proc: bytes = b"/proc") -> Generator[Pagemap, None, None]:
    """Yield the page tables of a process. Raises OSError."""
    fd = os.open(b"%s/%d/pagemap" % (proc, pid), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Pagemap(pid, fd, proc)
    finally:
        os.close(fd)


def movable(mappings: list[Mapping]) -> list[Mapping]:
    """Return the mappings whose pages may be sent out: private, writable, anonymous; the heap, but no stack."""
    return [
        mapping
        for mapping in mappings
        if mapping.permissions == b"rw-p"
        and (not mapping.name or mapping.name == b"[heap]" or mapping.name.startswith(b"[anon:"))
    ]
