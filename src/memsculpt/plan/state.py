# SPDX-License-Identifier: Apache-2.0
"""What the planner remembers between ticks: budgets, squeezes, promises. An explicit value, replaced each tick."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.plan import Abilities, Action
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeeze:
    """A limit that its cgroup's use has reached: it is lifted at `lift_at_s` unless it is renewed."""

    limit_bytes: int
    began_at_s: float
    lift_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Nothing is taken from a workload whose pages were brought back, until its phase has passed."""

    brought_at_s: float
    until_s: float
    has_run: bool = False  # it became active since: its phase has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A granted request: the workload's need counts as `target_bytes` at least."""

    workload: WorkloadId
    target_bytes: int
    asked_at_s: float
    within_s: float
    processes: tuple[Instance, ...] = ()  # who asked: a move to another cgroup makes them another workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Processes that a grant has moved, for as long as they live; what they had stays charged where it was."""

    processes: tuple[Instance, ...]
    from_partition: str | None
    from_cgroup: CgroupPath
    to_partition: str
    to_cgroup: CgroupPath
    charged_bytes: int  # still charged to `from_cgroup`; falls to 0 as pages are released or leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A budget that was asked for once, and when: it is not asked for again while it stands."""

    size_bytes: int
    asked_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Balloon:
    """What is known of one VM's balloon. `most_bytes` is the operator's word: nobody is given more than that."""

    process: Instance
    most_bytes: int  # what it was found with, or what somebody else has set since
    seen_bytes: int  # at the last plan
    followed_at_s: float = float("-inf")  # when it was last told
    moved_at_s: float  # when that was last another value
    asked_bytes: int | None = None  # our last ask; None: it is as others left it
    asked_from_bytes: int = 0  # where it was then, or was on its way to
    asked_at_s: float = float("-inf")
    rests_until_s: float = float("-inf")  # left alone until then, because ...
    rests_why: str = ""
    refusals_count: int = 0  # in a row
    is_given_back: bool = False  # somebody, or the guest, took back memory that we had asked for
    pressed_at_s: float = float("-inf")  # when the guest was last short
    foreign_at_s: float = float("-inf")  # when somebody else last moved it
    need_bytes: int = 0  # the guest's at the last plan
    grew_at_s: float = float("-inf")  # when that last rose
    stood_at_s: float = float("-inf")  # when the VM was last seen not to run: its guest cannot follow then


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much page cache a trimmed cgroup is left, and the reading that this was learnt up to."""

    cache_bytes: float
    refaults_count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartitionColumns:
    """The configured partitions as columns, made once per configuration."""

    source: tuple[PartitionSettings, ...]
    names: tuple[str, ...]
    row_of: Mapping[str, int]
    guarantee_bytes: Int64  # of a fixed partition: its size
    ceiling_bytes: Int64  # of a fixed partition: its size
    promised_bytes: Int64  # the configured guarantee, also of a fixed partition
    is_fixed: Bool
    is_trimmed: Bool
    weights: Float64
    giving_order: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerState:
    """Everything that the next plan has to know of the plans before. `PlannerState()` is empty."""

    abilities: Abilities = field(default_factory=Abilities)
    planned_at_s: float | None = None
    page_out_budget_bytes: float = 0.0
    page_in_budget_bytes: float = 0.0
    host_some_stall_s: float | None = None
    squeezes: Mapping[CgroupPath, Squeeze] = field(default_factory=dict[CgroupPath, Squeeze])
    # lifted: not squeezed again before
    resting_until_s: Mapping[CgroupPath, float] = field(default_factory=dict[CgroupPath, float])
    guarantees: Mapping[CgroupPath, Asked] = field(default_factory=dict[CgroupPath, Asked])
    protections: Mapping[WorkloadId, Protection] = field(default_factory=dict[WorkloadId, Protection])
    kept: Mapping[CgroupPath, Kept] = field(default_factory=dict[CgroupPath, Kept])
    reservations: tuple[Reservation, ...] = ()
    moves: tuple[Moved, ...] = ()
    created: tuple[PartitionSettings, ...] = ()  # partitions made for requests, besides the configured ones
    pending: tuple[Action, ...] = ()  # what grants since the last plan need done: made and moved with the next
    placed: frozenset[Instance] = frozenset()  # processes that were asked to move into a cgroup of ours
    balloons: Mapping[VmId, Balloon] = field(default_factory=dict[VmId, Balloon])
    columns: PartitionColumns | None = field(default=None, compare=False, repr=False)
