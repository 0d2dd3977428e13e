# SPDX-License-Identifier: Apache-2.0
"""Pools and their blocks: the memory of one process or one VM that may be sculpted, and what is known of each granule.

A pool of 24 GiB is 393,216 blocks of 64 KiB: what is kept of a block is small numbers in columns (31 bytes, 12 MiB for
that pool), and its address follows from its place.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64, Int64, freeze_columns
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.phases import Coming
from memsculpt.domain.vm import Backing, VmId, VmState
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.errors import UsageError

BLOCK_BYTES = 64 << 10
BLOCK_MOST_BYTES = REGION_BYTES
# The pages of a block are told apart by a bit each; of a block above 64 KiB a bit stands for a sixteenth of it.
PARTS = 16
AGE_PLANES = 4
AGE_MOST = (1 << AGE_PLANES) - 1
# Classes of ages: from each of these on, up to the next.
AGE_CLASSES = (0, 1, 2, 4, 8, 12)
INCOMPRESSIBLE = 1  # a flag of a block

WINDOW_MOST_S = 3600.0
HOW_TO_ASK = "ask for hot or cold with a size above 0, or for prefetch with a window of up to an hour"

NO_RANGES: Int64 = np.empty((0, 2), np.int64)
NO_RANGES.flags.writeable = False

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
    """Address ranges of one process that may be sculpted, in blocks on borders of `block_bytes`.

    Of a VM they are the guest's RAM: all of it but the ends that are no whole block.
    """

    id: str  # the workload's (`vm:NAME` for a VM), with "#PID" behind it where that has several processes
    workload: WorkloadId
    process: Instance
    ranges: tuple[tuple[int, int], ...]  # (start, end), ascending, disjoint, on borders of blocks
    block_bytes: int = BLOCK_BYTES
    is_guest: bool = False  # the ranges are a VM's RAM, shared memory or not, and nothing else of its process

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
    flags: UInt8
    ages: UInt16  # shape (AGE_PLANES, n_blocks)
    touched: UInt16  # which pages (or sixteenths) the last interval touched
    slow: UInt16  # which lay on a slow node when that was read last; none where nothing was moved there
    # By class of age, decayed, shape (n_classes,): page-seconds for which pages of that age were watched, and how many
    # of them were touched.
    watched_page_s: Float64
    returned_pages: Float64
    interval_s: float = float("nan")  # mean time between two looks at the same block; NaN before the second

    def __post_init__(self) -> None:
        count = self.pool.count
        names = ("zone", "tier", "heat", "touched_at_s", "looked_at_s", "return_s", "present", "swapped")
        freeze_columns(self, (*names, "flags", "touched", "slow"), (count,))
        freeze_columns(self, ("watched_page_s", "returned_pages"), (len(AGE_CLASSES),))
        freeze_columns(self, ("ages",), (AGE_PLANES, count))

    def addresses(self) -> Int64:
        """Return the address of each block's first byte, made anew: 8 bytes a block."""
        size = self.pool.block_bytes
        return np.concatenate(
            [np.empty(0, np.int64), *(np.arange(start, end, size, dtype=np.int64) for start, end in self.pool.ranges)]
        )

    def rows_between(self, start: int, end: int) -> slice:
        """Return the rows of the blocks that begin in [start, end)."""
        size = self.pool.block_bytes
        edges = (-(-start // size) * size, -(-end // size) * size)
        first, last = (sum(max(0, min(at, high) - low) for low, high in self.pool.ranges) // size for at in edges)
        return slice(first, last)

    def rows_within(self, ranges: Int64) -> Bool:
        """Return which blocks lie wholly in any of the ascending, disjoint ranges (start, end), shape (n_blocks,)."""
        addresses = self.addresses()
        first = np.searchsorted(addresses, ranges[:, 0])
        behind = np.searchsorted(addresses, ranges[:, 1] - self.pool.block_bytes, side="right")
        steps = np.zeros(self.pool.count + 1, np.int32)
        inside = behind > first
        np.add.at(steps, first[inside], 1)
        np.add.at(steps, behind[inside], -1)
        return np.cumsum(steps[:-1]) > 0

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

    def classes(self, rows: slice = slice(None)) -> list[UInt16]:
        """Return which pages are of each class of ages (AGE_CLASSES), as bits; what was never there looks old."""
        a, b, c, d = self.ages[:, rows]
        young = ~(d | c)
        return [young & ~(b | a), young & ~b & a, young & b, ~d & c, d & ~c, d & c]

    def zone_bytes(self, zone: Zone) -> int:
        """Return how much the blocks of a zone hold, in memory and swapped."""
        rows = self.zone == zone
        return int((self.present[rows].sum(dtype=np.int64) + self.swapped[rows].sum(dtype=np.int64)) * PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotZone:
    """Gather up to so much of what is touched most in huge pages."""

    size_bytes: int


class ColdTo(StrEnum):
    """Where cold pages go."""

    NEAREST = "nearest"  # to a slow node while there is room, the rest to the swap
    SLOW_NODE = "slow-node"  # only there: the fast node gets room, and nobody's use of memory falls
    SWAP = "swap"  # only there, also from the slow node: what its workload is charged for falls


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdZone:
    """Send up to so much of what will not be needed soon out of fast memory."""

    size_bytes: int
    to: ColdTo = ColdTo.NEAREST


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Bring up to so much back from the slow node: what is in use there, or due to be."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Bring back what will be needed within so many seconds.

    A plan bounds it: at most `size_bytes`, of which `room_bytes` come into free memory (below 0: so much has to leave
    besides) and the rest takes the place of blocks that the phase does not use. Asked for by hand it is unbounded.
    """

    window_s: float
    size_bytes: int | None = None
    room_bytes: int | None = None
    phase: int | None = None  # only what this phase of the pool uses


SculptRequest: TypeAlias = HotZone | ColdZone | Promote | Prefetch


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_request(request: object) -> None:
    """Raise UsageError where a request has no meaning."""
    problem = ""
    if isinstance(request, HotZone | ColdZone | Promote):
        if not _is_number(request.size_bytes, int) or request.size_bytes <= 0:
            problem = f"{request.size_bytes!r} is no size in bytes above 0"
    elif isinstance(request, Prefetch):
        size = request.size_bytes
        if not _is_number(request.window_s, int, float) or not 0.0 < request.window_s <= WINDOW_MOST_S:
            problem = f"{request.window_s!r} is no window in seconds above 0 and up to {WINDOW_MOST_S:.0f}"
        elif size is not None and (not _is_number(size, int) or size <= 0):
            problem = f"{size!r} is no size in bytes above 0"
    else:
        problem = f"{type(request).__name__} is no zone: there are HotZone, ColdZone, Promote and Prefetch"
    if problem:
        raise UsageError(place="sculpt", problem=problem, fix=HOW_TO_ASK)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SculptOrder:
    """What is to be done with a pool, as ranges (start, end), ascending, shape (n, 2)."""

    collapse: Int64 = field(default_factory=lambda: NO_RANGES)  # regions of 2 MiB
    split: Int64 = field(default_factory=lambda: NO_RANGES)
    leave: Int64 = field(default_factory=lambda: NO_RANGES)
    come: Int64 = field(default_factory=lambda: NO_RANGES)
    demote: Int64 = field(default_factory=lambda: NO_RANGES)  # to a slow node
    promote: Int64 = field(default_factory=lambda: NO_RANGES)  # back from there
    size_bytes: int = 0  # to be gathered, to leave or to come, about
    holes_most_bytes: int = 0  # of a region, that its collapse may fill
    fills_bytes: int = 0  # that the collapses will fill
    sparse_bytes: int = 0  # hot, but too sparse to be gathered
    dear_bytes: int = 0  # hot, but the gain would not exceed the cost
    gain_s_per_s: float = 0.0  # processor time that is expected to be saved
    loss_ratio: float = 0.0  # of wall time that returning pages are expected to cost
    idle_least_s: float = float("nan")  # of what leaves
    part_bytes: int = 0  # so much leaves and comes in turns, and frames are not measured; 0: what leaves goes first
    most_s: float = float("inf")  # of what is done in parts, none is begun after it: everybody waits for the tick
    reason: str = ""  # why there is no more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SculptDone:
    """What an order came to on the host."""

    at_s: float
    order: SculptOrder
    collapsed_bytes: int = 0
    split_bytes: int = 0
    left_bytes: int = 0
    came_bytes: int = 0
    demoted_bytes: int = 0
    promoted_bytes: int = 0
    grown_bytes: int = 0  # filled for nothing by collapses
    incompressible: Int64 = field(default_factory=lambda: NO_RANGES)  # was to leave, and stayed
    resident_before_bytes: int = 0
    resident_after_bytes: int = 0
    huge_before_bytes: int = 0
    huge_after_bytes: int = 0
    longest_run_before_bytes: int = 0
    longest_run_after_bytes: int = 0
    duration_s: float = 0.0
    leave_s: float = 0.0  # of that, what leaving and coming took
    come_s: float = 0.0
    cpu_s: float = 0.0
    problems: tuple[tuple[str, int], ...] = ()  # bytes left as they are, by cause

    @property
    def moved_bytes(self) -> int:
        """Return everything that was moved."""
        moved_bytes = self.collapsed_bytes + self.split_bytes + self.left_bytes + self.came_bytes
        return moved_bytes + self.demoted_bytes + self.promoted_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """What a plan has to know of a pool: what may leave it or be gathered now, by the rules of plan/sculpt.py."""

    pool: str
    workload: WorkloadId
    process: Instance
    cold_bytes: int = 0
    idle_least_s: float = float("nan")  # of the cold
    loss_ratio: float = 0.0  # of wall time that the cold costs if all of it leaves
    hot_bytes: int = 0  # worth gathering and not gathered yet
    fills_bytes: int = 0  # that gathering all of it would fill for nothing
    gain_s_per_s: float = 0.0  # processor time that gathering all of it would save
    gathered_at_s: float = float("-inf")  # the last time that something was
    gone_bytes: int = 0  # sent out by sculpts and still out
    left_at_s: float = float("-inf")  # the last time that something was sent out
    coming: tuple[Coming, ...] = ()  # phases that lack blocks, the earliest first
    demotable_bytes: int = 0  # cold, and not on the slow node yet
    demotable_idle_s: float = float("nan")
    returned_bytes: int = 0  # on the slow node, and in use again or due to be
    has_phases: bool = False  # sets that it uses in turn are known, and say what comes back


class Verdict(StrEnum):
    """What came of a sculpt."""

    NOTHING = "nothing-to-do"
    REHEARSED = "rehearsed"  # observe mode: what would have been done
    UNDER_WAY = "under-way"  # done; its window has not passed yet
    PAID = "paid"
    UNDONE = "undone"  # it did not pay, and was taken back
    REFUSED = "refused"  # one that did not pay is remembered, or the host stalls


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPool:
    """What a pool is of, where that is a VM."""

    vm: VmId
    name: str
    backing: Backing
    state: VmState
    cannot: tuple[str, ...] = ()  # what cannot be done with its memory, and why
    # Where the zones lie for the guest: [start, end) of guest-physical addresses, ascending; told when it is asked for.
    zones: tuple[tuple[int, int, Zone], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SculptStats:
    """What a pool's sculpting came to. Faults and stalls are of the pool's process, in a second of time."""

    pool: str
    guest: GuestPool | None = None
    verdict: Verdict = Verdict.NOTHING
    reason: str = ""  # why, with figures
    zone_bytes: tuple[int, int, int, int] = (0, 0, 0, 0)  # by Zone
    asked_bytes: int = 0
    moved_bytes: int = 0  # over the pool's life
    collapsed_bytes: int = 0
    split_bytes: int = 0
    paged_out_bytes: int = 0
    brought_in_bytes: int = 0
    to_slow_node_bytes: int = 0
    from_slow_node_bytes: int = 0
    on_slow_node_bytes: int = 0  # as last read
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
    timeliness: float = float("nan")  # of what was brought back ahead, the share that was there before its phase began
    cpu_s: float = 0.0  # the agent's
    duration_s: float = 0.0  # of the last sculpt
    problems: tuple[tuple[str, int], ...] = ()  # what could not be moved, in bytes, by cause
