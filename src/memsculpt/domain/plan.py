# SPDX-License-Identifier: Apache-2.0
"""What to do: actions, each one reversible change with its reason, and the division behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, TypeAlias

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.pool import ColdTo, ColdZone, HotZone, Prefetch, Promote
from memsculpt.domain.sharing import ScanRate, SharingStep
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId

NO_FIGURES: Mapping[str, float] = MappingProxyType({})


class LimitKind(Enum):
    """Which of a cgroup's budgets; the host knows the file (v1 and v2 differ).

    GUARANTEE  v1 memory.soft_limit_in_bytes   v2 memory.min
    LIMIT      v1 memory.limit_in_bytes        v2 memory.high
    HARD       v1 memory.limit_in_bytes        v2 memory.max
    """

    GUARANTEE = "guarantee"
    LIMIT = "limit"
    HARD = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why: a code for programs, a sentence for people, and the figures behind both.

    The sentence's `{name}` fields are filled from `figures` by whoever prints it.
    """

    code: str
    text: str
    # A factory, because Python 3.11 takes a mappingproxy for a mutable default (it cannot be hashed before 3.12).
    figures: Mapping[str, float] = field(default_factory=lambda: NO_FIGURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOut:
    """Send up to `size_bytes` of a process's untouched pages to the second tier, ahead of need."""

    partition: str
    workload: WorkloadId
    process: Instance
    size_bytes: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PageIn:
    """Bring up to `size_bytes` of a process's swapped pages back, mapped, before they are touched."""

    partition: str
    workload: WorkloadId
    process: Instance
    size_bytes: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Ask the kernel to take `size_bytes` from a cgroup, its own order first (page cache, cold)."""

    partition: str
    cgroup: CgroupPath
    size_bytes: int
    reason: Reason
    only_cache: bool = False  # page cache alone: nothing goes to swap


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimit:
    """Move one budget of a cgroup. A squeeze (below what is used now) carries when it must be lifted."""

    partition: str
    cgroup: CgroupPath
    kind: LimitKind
    from_bytes: int
    to_bytes: int
    reason: Reason
    lift_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCgroup:
    """Make a cgroup of memsculpt's own for a partition."""

    partition: str
    cgroup: CgroupPath
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProcess:
    """Put a process into another partition's cgroup; where the kernel cannot, its charge stays behind."""

    partition: str  # the one it moves to
    from_cgroup: CgroupPath
    to_cgroup: CgroupPath
    process: Instance
    charged_bytes: int  # what it is charged for in `from_cgroup` now
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SculptPool:
    """Send out cold blocks of a pool, gather hot ones in huge pages, or bring some back.

    Which ones is chosen when it is done.
    """

    partition: str
    workload: WorkloadId
    process: Instance
    pool: str
    request: ColdZone | HotZone | Promote | Prefetch
    reason: Reason

    @property
    def size_bytes(self) -> int:
        """How much at most; of a prefetch: how much comes."""
        return self.request.size_bytes or 0

    @property
    def leaving_bytes(self) -> int:
        """How much leaves memory: all of what is cold, or what makes room for a phase."""
        request = self.request
        if isinstance(request, Prefetch):
            return max(0, self.size_bytes - (request.room_bytes or 0))
        return request.size_bytes if isinstance(request, ColdZone) and not self.is_demotion else 0

    @property
    def is_demotion(self) -> bool:
        """Whether pages go to a slow node alone: no memory gets free, and nothing is swapped."""
        return isinstance(self.request, ColdZone) and self.request.to is ColdTo.SLOW_NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBalloon:
    """Ask a VM's balloon to leave the guest `to_bytes`; it gets there at the guest's pace, or not at all."""

    partition: str
    workload: WorkloadId
    process: Instance
    vm: VmId
    from_bytes: int
    to_bytes: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSharing:
    """Have the kernel merge the identical pages of one trust group's VMs, pause that, or end it and take it apart."""

    group: str
    step: SharingStep
    reason: Reason
    vms: tuple[VmId, ...] = ()  # whose memory is offered
    processes: frozenset[Instance] = frozenset()  # of the group's VMs: who else offers memory stops it
    rate: ScanRate | None = None  # to MERGE
    size_bytes: int = 0  # what it is to save, at least

    @property
    def partition(self) -> str:
        """None: a trust group is no partition."""
        return ""


Action: TypeAlias = (
    PageOut | PageIn | Reclaim | SculptPool | SetLimit | SetBalloon | SetSharing | CreateCgroup | MoveProcess
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Division:
    """How the capacity was shared, columns by partition in the order of the configuration."""

    capacity_bytes: int
    names: tuple[str, ...]
    used_bytes: Int64
    needed_bytes: Int64  # forecast median of the peak
    size_bytes: Int64  # what each should have
    shortfall_ratio: Float64  # the chance that the size will not do
    multiplier: float  # lambda: the common marginal cost of a missing byte

    def __post_init__(self) -> None:
        columns = ("used_bytes", "needed_bytes", "size_bytes", "shortfall_ratio")
        freeze_columns(self, columns, (len(self.names),))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Actions in the order in which they are safe: what frees first, what grows last."""

    made_at_s: float
    actions: tuple[Action, ...] = ()
    division: Division | None = None
    held_back: tuple[Reason, ...] = field(default=())  # what was wanted and not done, and why


class Answer(Enum):
    """How a request for memory was met."""

    ENOUGH = "enough"
    RESIZED = "resized"
    MOVED = "moved"
    CREATED = "created"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`request(workload, bytes, within)`: the application says what it is about to need."""

    workload: WorkloadId
    size_bytes: int
    within_s: float
    asked_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer to a request, with the actions that make it true."""

    answer: Answer
    partition: str | None
    granted_bytes: int
    stays_charged_bytes: int  # after a move: what is still charged to the old partition
    reason: Reason
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the host can do of what a plan may ask; the agent fills it from the host's capabilities.

    `protects_by` says what a cgroup's guarantee is worth: "min" (v2, memory.min: the kernel keeps it) or
    "soft" (v1, soft_limit_in_bytes: a hint). It also tells which hierarchy the limits belong to, and that
    matters: a v1 limit kills a workload that touches its pages at random, a v2 memory.high slows it down.
    """

    page_out: bool = True
    page_in: bool = True
    reclaim: bool = True
    drop_cache: bool = True  # page cache alone can be reclaimed from a cgroup: also on v1, by a brief limit
    limits: bool = True
    slow_node: bool = False  # there is one, and pages of another process can be moved there
    gather: bool = True  # pages of another process in huge pages
    groups: bool = True  # cgroups can be made and processes moved
    balloons: bool = True  # of VMs
    protects_by: Literal["min", "soft"] = "min"
