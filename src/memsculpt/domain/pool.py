# SPDX-License-Identifier: Apache-2.0
"""Pools and their blocks: the memory of one process that may be sculpted, and what is known of each granule of it.

A pool of 24 GiB is 393,216 blocks of 64 KiB: what is kept of a block is small numbers in columns (30 bytes, 12 MiB for
that pool), and its address follows from its place.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64, freeze_columns
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.workload import Instance, WorkloadId

BLOCK_BYTES = 64 << 10
BLOCK_MOST_BYTES = REGION_BYTES
# The pages of a block are told apart by a bit each; of a block above 64 KiB a bit stands for a sixteenth of it.
PARTS = 16
AGE_PLANES = 4
AGE_MOST = (1 << AGE_PLANES) - 1

UInt8: TypeAlias = npt.NDArray[np.uint8]
UInt16: TypeAlias = npt.NDArray[np.uint16]
Float32: TypeAlias = npt.NDArray[np.float32]


class Zone(IntEnum):
    """What a block is for at this time."""

    WARM = 0  # nothing special: in use now and then
    HOT = 1  # gathered in huge pages, or to be
    COLD = 2  # gone, or about to go
    PREFETCH = 3  # brought back ahead of need


class Tier(IntEnum):
    """Where most of a block lies."""

    DRAM = 0
    HUGE = 1
    SLOW = 2
    COMPRESSED = 3
    DISK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Address ranges of one process that may be sculpted, in blocks on borders of `block_bytes`."""

    id: str  # the workload's, with "#PID" behind it where that has several processes
    workload: WorkloadId
    process: Instance
    ranges: tuple[tuple[int, int], ...]  # (start, end), ascending, disjoint, on borders of blocks
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        size = self.block_bytes
        if not BLOCK_BYTES <= size <= BLOCK_MOST_BYTES or size & (size - 1):
            raise ValueError(f"a block is a power of two from {BLOCK_BYTES} to {BLOCK_MOST_BYTES} bytes, not {size}")
        before = 0
        for start, end in self.ranges:
            if start < before or end <= start or start % size or end % size:
                raise ValueError(f"pool {self.id}: [{start:#x}, {end:#x}) is no run of blocks above {before:#x}")
            before = end

    @property
    def count(self) -> int:
        """Return how many blocks there are."""
        return sum(end - start for start, end in self.ranges) // self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """What is known of each block of a pool, shape (n_blocks,), ascending by address. Times are host seconds.

    The age of a page is the number of looks since it was last touched, 0 to 15, as four planes of bits: a 16-bit word
    of plane i holds bit i of the ages of the block's 16 pages (of a larger block: of its sixteenths).
    """

    pool: Pool
    began_s: float  # the seconds of the columns count from here
    zone: UInt8
    tier: UInt8
    heat: npt.NDArray[np.float16]  # touches of its pages in a second, over time; see profile/blocks.py
    touched_at_s: Float32  # end of the last interval that touched it, since `began_s`
    looked_at_s: Float32  # when it was last looked at and cleared, since `began_s`; NaN: never
    return_s: Float32  # after how long it was last touched again: it is not cold before that has passed
    present: UInt16  # pages in memory
    swapped: UInt16
    ages: UInt16  # shape (AGE_PLANES, n_blocks)
    touched: UInt16  # which pages (or sixteenths) the last interval touched

    def __post_init__(self) -> None:
        count = self.pool.count
        names = ("zone", "tier", "heat", "touched_at_s", "looked_at_s", "return_s", "present", "swapped", "touched")
        freeze_columns(self, names, (count,))
        freeze_columns(self, ("ages",), (AGE_PLANES, count))

    def addresses(self) -> Int64:
        """Return the address of each block's first byte, made anew: 8 bytes a block."""
        size = self.pool.block_bytes
        return np.concatenate(
            [np.empty(0, np.int64), *(np.arange(start, end, size, dtype=np.int64) for start, end in self.pool.ranges)]
        )

    def rows_of(self, addresses: Int64) -> Int64:
        """Return the row of the block that each ascending address lies in, -1 where none does."""
        starts = np.array([start for start, _ in self.pool.ranges], np.int64)
        ends = np.array([end for _, end in self.pool.ranges], np.int64)
        rows = np.full(len(addresses), -1, np.int64)
        before = 0
        low = np.searchsorted(addresses, starts)
        high = np.searchsorted(addresses, ends)
        for number in range(len(starts)):
            inside = addresses[low[number] : high[number]]
            rows[low[number] : high[number]] = (inside - starts[number]) // self.pool.block_bytes + before
            before += int(ends[number] - starts[number]) // self.pool.block_bytes
        return rows

    def zone_bytes(self, zone: Zone) -> int:
        """Return how much the blocks of a zone hold, in memory and swapped."""
        rows = self.zone == zone
        return int((self.present[rows].sum(dtype=np.int64) + self.swapped[rows].sum(dtype=np.int64)) * PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotZone:
    """Gather up to so much of what is touched most in huge pages."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdZone:
    """Send up to so much of what will not be needed soon out of memory."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Bring back what will be needed within so many seconds."""

    window_s: float


SculptRequest: TypeAlias = HotZone | ColdZone | Prefetch


class Verdict(StrEnum):
    """What came of a sculpt."""

    NOTHING = "nothing-to-do"
    REHEARSED = "rehearsed"  # observe mode: what would have been done
    UNDER_WAY = "under-way"  # done; its window has not passed yet
    PAID = "paid"
    UNDONE = "undone"  # it did not pay, and was taken back
    REFUSED = "refused"  # one that did not pay is remembered, or the host stalls


@dataclass(frozen=True, slots=True, kw_only=True)
class SculptStats:
    """What a pool's sculpting came to. Faults and stalls are of the pool's process, in a second of time."""

    pool: str
    verdict: Verdict = Verdict.NOTHING
    reason: str = ""  # why, with figures
    zone_bytes: tuple[int, int, int, int] = (0, 0, 0, 0)  # by Zone
    asked_bytes: int = 0
    moved_bytes: int = 0  # over the pool's life
    collapsed_bytes: int = 0
    split_bytes: int = 0
    paged_out_bytes: int = 0
    brought_in_bytes: int = 0
    undone_bytes: int = 0
    resident_before_bytes: int = 0  # of the pool, around the last sculpt
    resident_after_bytes: int = 0
    huge_before_bytes: int = 0
    huge_after_bytes: int = 0
    longest_run_before_bytes: int = 0  # of physically contiguous memory
    longest_run_after_bytes: int = 0
    faults_before_per_s: float = float("nan")
    faults_after_per_s: float = float("nan")
    stall_before_ratio: float = float("nan")
    stall_after_ratio: float = float("nan")
    latency_saved_s_per_s: float = 0.0  # estimate: what the pool's process gains in a second by what was done
    recall: float = float("nan")  # of the pages that were needed again, those that were there
    precision: float = float("nan")  # of the pages that were brought back, those that were then touched
    cpu_s: float = 0.0  # the agent's
    duration_s: float = 0.0  # of the last sculpt
    problems: tuple[tuple[str, int], ...] = ()  # what could not be moved, in bytes, by cause
