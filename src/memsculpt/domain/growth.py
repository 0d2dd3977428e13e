# SPDX-License-Identifier: Apache-2.0
"""What came of recording page faults: stacks with the memory that came by them."""

from collections.abc import Mapping
from dataclasses import dataclass

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.workload import Instance, WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStack:
    """Memory that came by faults with one stack."""

    frames: tuple[tuple[str, str], ...]  # (function, module), innermost first
    kind: str  # "anonymous", "shared", "file"
    touched_bytes: int
    held_bytes: int  # of that, what is still there, in memory or swapped
    fault_count: int
    touched_variance: float = 0.0  # where it is estimated from samples, in bytes squared
    held_variance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNow:
    """What a process holds, by kind; swapped memory is private or shared, and no file's."""

    anon_bytes: int = 0
    file_bytes: int = 0
    shmem_bytes: int = 0
    swapped_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """Return what is not a copy of a file."""
        return self.anon_bytes + self.shmem_bytes + self.swapped_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthRecording:
    """Everything that was seen of one process."""

    pid: int
    source: str
    interval_s: float
    sampled_every: int  # at the end: it rises when faults come faster than they can be kept
    seen_count: int
    recorded_count: int
    dropped_count: int
    stackless_count: int
    before: MemoryNow
    after: MemoryNow | None  # None: the process ended
    stacks: tuple[GrowthStack, ...]
    ended: str = ""
    notes: tuple[str, ...] = ()


# --- sampled: what the agent keeps on for critical workloads ----------------------------------------------------------

MODULE_SHIFT = 48
"""A place in code is one number: module << MODULE_SHIFT | offset in its file; 0 where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A file with code, or the code that one process made itself (then offsets are its addresses)."""

    name: str
    identity: str = ""  # of the file's content: build id, or inode and time of its last change
    places: tuple[str, ...] = ()  # where it can be opened, the process's own view first
    pid: int = 0  # of the process with code of its own making
    functions: tuple[tuple[int, int, str], ...] = ()  # (start, end, name), of a simulated program


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRate:
    """How finely one process's pages are sampled."""

    shift: int  # one page in 2**shift: all of its faults are recorded, those of other pages never
    refill: int  # after so many records `shift` rises by one, and so on: a burst is thinned out at once


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultCount:
    """What the kernel counted of one process since it is watched."""

    shift: int  # as it is now
    seen_count: int
    dropped_count: int  # chosen pages whose record found no room


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaultSamples:
    """What came since the last call. Columns have a row for each recorded fault, in the order of time."""

    at_s: Float64  # host's clock
    process: Int64  # index into `processes`
    page: Int64  # page number
    size_pages: Int64  # 1, or 512 where the fault brought a huge page
    shift: Int64  # the page was one of 2**shift
    kind: Int64  # index into KINDS
    stack: Int64  # index into `stacks`
    processes: tuple[Instance, ...]
    stacks: tuple[bytes, ...]  # int64s: how many frames, frames innermost first, then words from the top of the stack
    counts: Mapping[Instance, FaultCount]
    passed_count: int  # faults of the whole machine since the watch began
    cpu_s: float  # of the agent, for all of this
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = ("at_s", "process", "page", "size_pages", "shift", "kind", "stack")
        freeze_columns(self, names, (len(self.at_s),))


KINDS = ("anonymous", "shared", "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledStack:
    """One stack's part, estimated."""

    frames: tuple[int, ...]  # places in code, innermost first
    words: tuple[int, ...]  # return addresses from the top of the stack, as places
    kind: str
    touched_bytes: int
    held_bytes: int
    sample_count: int
    touched_variance: float  # of the estimates, in bytes squared
    held_variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthSample:
    """What is known of one workload's growth, not yet with names."""

    workload: WorkloadId
    interval_s: float  # how far back it reaches
    sampled_every: int  # pages, the coarsest in this time
    seen_count: int  # faults of its processes since they are watched
    dropped_count: int
    grown_bytes: int | None  # by the kernel's counters in about the same time; None before two looks
    stacks: tuple[SampledStack, ...]
    modules: tuple[Module, ...]  # module 0 is "[unknown]"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadGrowth:
    """One line about a workload that is sampled."""

    id: WorkloadId
    process_count: int
    sampled_every: int
    interval_s: float
    sample_count: int
    seen_count: int
    touched_bytes: int  # estimated: new and shared memory, not files
    touched_error_bytes: int  # 95 % of such estimates are off by no more


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthSummary:
    """The sampling of page faults as a whole."""

    workloads: tuple[WorkloadGrowth, ...]
    is_on: bool
    spent_ratio: float  # of one processor, lately: the agent's and what the programs paid
    allowed_ratio: float
    notes: tuple[str, ...] = ()
