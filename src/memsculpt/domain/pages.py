# SPDX-License-Identifier: Apache-2.0
"""What the page tables of one process say at one moment, and what it has mapped.

A heap of 16 GiB is four million pages: they are kept as bits, by regions of 2 MiB (what one table of the last level
spans, and what a huge page is).
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Int64, freeze_columns

PAGE_BYTES = 4096
REGION_BYTES = 2 << 20
REGION_PAGES = REGION_BYTES // PAGE_BYTES

Bits: TypeAlias = npt.NDArray[np.uint8]
"""One bit for each page of a region, lowest address first, little end first: shape (n_regions, 64)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageBits:
    """Columns by region, ascending by address; regions without any entry are left out.

    `accessed` and `dirty` are set only where `present` is. A huge page has one accessed and one dirty bit: all 512 of
    its pages show it.
    """

    addresses: Int64  # of each region's first byte
    is_huge: Bool
    present: Bits
    accessed: Bits
    dirty: Bits
    swapped: Bits
    is_complete: bool = True  # False: the process ended or changed faster than it could be read

    def __post_init__(self) -> None:
        """Check the shapes, and let nobody write."""
        count = len(self.addresses)
        for field in fields(self)[:-1]:
            column = getattr(self, field.name)
            shape = (count,) if column.ndim == 1 else (count, REGION_PAGES // 8)
            if column.shape != shape:
                raise ValueError(f"{field.name} has the shape {column.shape}, not {shape}")
            column.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One mapping of an address space (proc_pid_maps(5))."""

    start: int
    end: int
    name: str  # "[heap]", "[stack]", a file's path, "[anon:name]", "" for memory without a name
    is_shared: bool
    is_file: bool  # a file or shared memory is behind it
    is_writable: bool = True
    is_executable: bool = False
    offset: int = 0  # in the file, of the first byte

    @property
    def is_sculptable(self) -> bool:
        """Tell whether it is private, writable, anonymous memory: heap or anonymous mapping, no stack."""
        is_named = self.name not in {"", "[heap]"} and not self.name.startswith("[anon:")
        return self.is_writable and not self.is_shared and not self.is_file and not is_named


def count_bits(bits: Bits) -> Int64:
    """Return how many pages are set in each region, shape (n_regions,)."""
    return np.bitwise_count(bits.view(np.uint64)).sum(axis=1, dtype=np.int64)


class Grain(StrEnum):
    """The smallest thing that a source of page accesses can tell apart."""

    PAGE = "page"
    REGION = "region"  # stretches of addresses that the source chose itself, with sampled counts
    MAPPING = "mapping"  # whole mappings: how many pages, not which


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Touches:
    """Counts of pages since the last clear, shape (n_rows,), ascending by address, rows disjoint.

    With a source that knows pages a row is a block of 64 KiB, cut where its mapping ends, and `touched_pages` says
    which of its pages were touched, its first page in the lowest bit. With a coarser source a row is what that can tell
    apart. Rows in which nothing is in memory or swapped are left out.
    """

    mappings: tuple[Mapping, ...]
    grain: Grain
    starts: Int64
    ends: Int64
    mapping_index: Int64
    present: Int64
    touched: Int64
    dirty: Int64  # written, since the page was last written back or mapped; zeros where not `has_dirty`
    swapped: Int64
    unknown: Int64  # present, and not to be told whether touched
    is_huge: Bool
    touched_pages: npt.NDArray[np.uint16] | None = None
    has_dirty: bool = True
    is_complete: bool = True

    def __post_init__(self) -> None:
        """Check the shapes, and let nobody write."""
        names = (name for name in self.__slots__ if isinstance(getattr(self, name), np.ndarray))
        freeze_columns(self, names, self.starts.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extents:
    """Where a process has memory: regions of 2 MiB, ascending, shape (n_regions,)."""

    regions: Int64  # address of each one's first byte
    present: Int64  # pages in memory; a region with swapped pages alone has 0

    def __post_init__(self) -> None:
        """Check the shapes, and let nobody write."""
        freeze_columns(self, ("regions", "present"), self.regions.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What it took to begin a new interval."""

    method: str  # "MADV_COLD", "clear_refs", ...: what was done to the process
    cleared_bytes: int
    longest_hold_s: float  # the longest single call: so long the process may have waited to map or unmap memory
    duration_s: float
    note: str = ""  # what could not be cleared, and why
