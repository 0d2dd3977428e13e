# SPDX-License-Identifier: Apache-2.0
"""Which of a process's pages are resident, which swapped: /proc/PID/maps and /proc/PID/pagemap.

Documentation/admin-guide/mm/pagemap.rst: one 64-bit entry a page, bit 63 present, bit 62 swapped.
"""

import mmap
import os
from collections.abc import Sequence

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.host.linux import procfs

PAGE = mmap.PAGESIZE
ENTRY_BYTES = 8
PRESENT = np.uint64(1 << 63)
SWAPPED = np.uint64(1 << 62)
# Entries are read in parts, so that a process of any size costs the agent little memory of its own.
PART_BYTES = 64 << 20


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
        if name not in {b"", b"[heap]"} and not name.startswith(b"[anon"):
            continue
        start, dash, end = words[0].partition(b"-")
        if not dash:
            continue
        try:
            ranges.append((int(start, 16), int(end, 16)))
        except ValueError:  # no line of maps (a torn read): whatever it is, nothing of it is moved
            continue
    return ranges


def read_private(proc: str, pid: int) -> list[tuple[int, int]]:
    """Return the private ranges of a process. Raises OSError."""
    return parse_private(procfs.read_file(f"{proc}/{pid}/maps", 1 << 20))


def read_pages(descriptor: int, ranges: list[tuple[int, int]], flag: np.uint64) -> Int64:
    """Return the addresses of the pages in `ranges` whose entry has `flag`, ascending. Raises OSError."""
    parts: list[Int64] = []
    for start, end in ranges:
        for at in range(start, end, PART_BYTES):
            count = (min(end, at + PART_BYTES) - at) // PAGE
            content = os.pread(descriptor, count * ENTRY_BYTES, at // PAGE * ENTRY_BYTES)
            entries = np.frombuffer(content[: len(content) // ENTRY_BYTES * ENTRY_BYTES], dtype=np.uint64)
            found: Int64 = np.flatnonzero(entries & flag).astype(np.int64)
            parts.append(found * PAGE + at)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def runs_of(pages: Int64, mappings: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Return ascending page addresses as ranges (start, end), none of which reaches into a second mapping.

    Neighbouring mappings differ in something: one that is locked must not hold up the other.
    """
    if pages.size == 0:
        return []
    begins = np.array([start for start, _ in mappings], dtype=np.int64)
    breaks = np.flatnonzero((np.diff(pages) != PAGE) | np.isin(pages[1:], begins))
    starts = pages[np.concatenate(([0], breaks + 1))]
    ends = pages[np.concatenate((breaks, [pages.size - 1]))] + PAGE
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
