# SPDX-License-Identifier: Apache-2.0
"""A host as the planner sees it, built from a few words; time, memory and forecasts are the test's."""

from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import CgroupState, HostMemory, Observation, Processes, Workloads
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.plan import Action, LimitKind, PageIn, PageOut, Plan, Reclaim, SetLimit
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, PartitionSettings, Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath, Match, WorkloadId

GIB = 1024 * MIB
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
HORIZONS_S = (3.0, 10.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One workload of one process in a cgroup of its own; sizes in MiB."""

    name: str
    held: float
    need: float | None = None  # forecast at every level over 3 s; None: what it needs now
    need_10s: float | None = None
    need_60s: float | None = None
    spread: float = 0.0  # added per level from the median up, in all
    swapped: float = 0.0
    cache: float = 0.0  # reclaimable page cache, on top of held
    refaults: int = 0  # pages that were read again after they had been evicted, ever
    unevictable: float = 0.0
    idle_s: float = 0.0
    peak: float | None = None
    limit: int = UNLIMITED_BYTES
    hard: int = UNLIMITED_BYTES
    guarantee_now: int = 0
    stall_ratio: float = 0.0
    hit_limit: bool = False
    starting: bool = False
    warm: bool = True
    growth: float = 0.0
    allowed: float = 1.0
    useful: float = 1.0
    refused_until_s: float = 0.0
    headroom: float = 1.0
    partition: str | None = None  # default: its own name
    has_cgroup: bool = True
    process_count: int = 1

    @property
    def is_idle(self) -> bool:
        return self.idle_s >= 1.5

    @property
    def needed(self) -> float:
        return 0.0 if self.is_idle else self.held

    def forecast(self) -> tuple[float, float, float]:
        first = self.needed if self.need is None else self.need
        second = max(first, first if self.need_10s is None else self.need_10s)
        return first, second, max(second, second if self.need_60s is None else self.need_60s)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that one call of `choose` takes, but the planner's state."""

    tenants: tuple[Tenant, ...]
    partitions: tuple[PartitionSettings, ...]
    capacity: float = 1120
    total: float = 24 * 1024
    available: float = 20 * 1024
    swap: float = 4096
    swap_used: float = 0.0
    now_s: float = 1000.0
    host_stall_s: float = 0.0
    backoff_until_s: float = 0.0
    settings: Settings = field(default_factory=Settings)

    def arguments(self) -> tuple[Observation, Profiles, Forecasts, Corrections, Settings]:
        return (
            self.observation(),
            self.profiles(),
            self.forecasts(),
            self.corrections(),
            replace(self.settings, capacity_bytes=mib(self.capacity), partitions=self.partitions),
        )

    def with_tenant(self, name: str, **changes) -> "World":
        found = tuple(replace(each, **changes) if each.name == name else each for each in self.tenants)
        return replace(self, tenants=found)

    def tenant(self, name: str) -> Tenant:
        return next(each for each in self.tenants if each.name == name)

    def observation(self) -> Observation:
        rows = len(self.tenants)
        zeros = np.zeros(rows, np.int64)
        return Observation(
            time_s=self.now_s,
            memory=HostMemory(
                total_bytes=mib(self.total),
                available_bytes=mib(self.available),
                free_bytes=mib(self.available) // 2,
                swap_total_bytes=mib(self.swap),
                swap_free_bytes=mib(self.swap - self.swap_used),
                some_stall_s=self.host_stall_s,
                full_stall_s=0.0,
            ),
            processes=self.processes(),
            workloads=Workloads(
                ids=tuple(WorkloadId(each.name) for each in self.tenants),
                partitions=tuple(each.partition or each.name for each in self.tenants),
                cgroups=tuple(CgroupPath(each.name) if each.has_cgroup else None for each in self.tenants),
                instance_keys=np.arange(rows),
                resident_bytes=self.column("held") + self.column("cache"),
                anon_bytes=self.column("held"),
                file_bytes=self.column("cache"),
                shmem_bytes=zeros.copy(),
                swapped_bytes=self.column("swapped"),
                reclaimable_bytes=self.column("cache"),
                unevictable_bytes=self.column("unevictable"),
                kernel_bytes=zeros.copy(),
                minor_faults_count=zeros.copy(),
                major_faults_count=zeros.copy(),
                refaults_count=np.array([each.refaults for each in self.tenants], np.int64),
                cpu_s=np.zeros(rows),
                read_bytes=zeros.copy(),
                written_bytes=zeros.copy(),
                some_stall_s=np.zeros(rows),
                full_stall_s=np.zeros(rows),
                oom_kills_count=zeros.copy(),
                limit_hits_count=zeros.copy(),
                process_count=np.array([each.process_count for each in self.tenants], np.int64),
                has_refaults=np.ones(rows, np.bool_),
                has_io=np.ones(rows, np.bool_),
                has_pressure=np.ones(rows, np.bool_),
            ),
            cgroups=tuple(
                CgroupState(
                    cgroup=CgroupPath(each.name),
                    partition=each.partition or each.name,
                    used_bytes=mib(each.held + each.cache),
                    swapped_bytes=mib(each.swapped),
                    limit_bytes=each.limit,
                    hard_limit_bytes=each.hard,
                    guarantee_bytes=each.guarantee_now,
                    is_own=False,
                )
                for each in self.tenants
                if each.has_cgroup and (each.partition or each.name) in {one.name for one in self.partitions}
            ),
        )

    def processes(self) -> Processes:
        owner = [row for row, each in enumerate(self.tenants) for _ in range(each.process_count)]
        # Pids follow the names, so that a shuffled world is the same world and a pid is never another's.
        first = [100 + 10 * int.from_bytes(each.name[-5:].encode().rjust(5), "big") for each in self.tenants]
        pids = [first[row] + owner[:at].count(row) for at, row in enumerate(owner)]
        per = [self.tenants[row].process_count for row in owner]
        count = len(owner)
        zeros = np.zeros(count, np.int64)
        share = np.array(per, np.int64)
        return Processes(
            pids=np.array(pids, np.int64),
            start_ticks=np.array(pids, np.int64) + 7,
            workload_index=np.array(owner, np.int64),
            anon_bytes=self.column("held")[owner] // share,
            file_bytes=zeros.copy(),
            shmem_bytes=zeros.copy(),
            swapped_bytes=self.column("swapped")[owner] // share,
            has_memory_kinds=np.ones(count, np.bool_),
            cpu_s=np.zeros(count),
            minor_faults_count=zeros.copy(),
            major_faults_count=zeros.copy(),
            cgroups=tuple(CgroupPath(self.tenants[row].name if self.tenants[row].has_cgroup else "") for row in owner),
        )

    def profiles(self) -> Profiles:
        rows = len(self.tenants)
        idle = np.array([each.is_idle for each in self.tenants], np.bool_)
        held = self.column("held")
        peaks = np.array([mib(each.held if each.peak is None else each.peak) for each in self.tenants], np.int64)
        owner = self.processes().workload_index
        return Profiles(
            time_s=self.now_s,
            elapsed_s=1.0,
            ids=tuple(WorkloadId(each.name) for each in self.tenants),
            needed_bytes=np.where(idle, 0, held),
            cold_bytes=np.where(idle, np.maximum(held - self.column("unevictable"), 0), 0),
            reclaimable_bytes=self.column("cache"),
            working_set_bytes=peaks,
            growth_bytes_per_s=self.column("growth").astype(np.float64),
            release_bytes_per_s=np.zeros(rows),
            minor_faults_per_s=np.zeros(rows),
            major_faults_per_s=np.zeros(rows),
            refaults_per_s=np.zeros(rows),
            cpu_ratio=np.zeros(rows),
            io_bytes_per_s=np.zeros(rows),
            some_stall_ratio=np.array([each.stall_ratio for each in self.tenants]),
            full_stall_ratio=np.zeros(rows),
            idle_s=np.array([each.idle_s for each in self.tenants]),
            age_s=np.full(rows, 600.0),
            is_starting=np.array([each.starting for each in self.tenants], np.bool_),
            was_restarted=np.zeros(rows, np.bool_),
            was_oom_killed=np.zeros(rows, np.bool_),
            hit_limit=np.array([each.hit_limit for each in self.tenants], np.bool_),
            process_idle_s=np.array([each.idle_s for each in self.tenants])[owner],
        )

    def forecasts(self) -> Forecasts:
        steps = np.linspace(0.0, 1.0, len(LEVELS))
        quantiles = np.array(
            [[[mib(size + each.spread * step) for step in steps] for size in each.forecast()] for each in self.tenants],
            np.float64,
        ).reshape(len(self.tenants), len(HORIZONS_S), len(LEVELS))
        peaks = np.array([mib(each.held if each.peak is None else each.peak) for each in self.tenants], np.int64)
        return Forecasts(
            made_at_s=self.now_s,
            ids=tuple(WorkloadId(each.name) for each in self.tenants),
            horizons_s=HORIZONS_S,
            levels=LEVELS,
            quantiles_bytes=quantiles,
            historic_peak_bytes=peaks,
            startup_peak_bytes=np.zeros(len(self.tenants), np.int64),
            is_warm=np.array([each.warm for each in self.tenants], np.bool_),
            leaders=("seasonal-naive",) * len(self.tenants),
        )

    def corrections(self) -> Corrections:
        rows = len(self.tenants)
        return Corrections(
            ids=tuple(WorkloadId(each.name) for each in self.tenants),
            headroom_ratio=np.array([each.headroom for each in self.tenants]),
            page_out_allowed_ratio=np.array([each.allowed for each in self.tenants]),
            page_in_useful_ratio=np.array([each.useful for each in self.tenants]),
            refused_until_s=np.array([each.refused_until_s for each in self.tenants]),
            scored_count=np.zeros(rows, np.int64),
            covered_ratio=np.ones(rows),
            pinball_bytes=np.zeros(rows),
            backoff_until_s=self.backoff_until_s,
        )

    def column(self, name: str) -> np.ndarray:
        return np.array([mib(getattr(each, name)) for each in self.tenants], np.int64)

    def after(self, plan: Plan, seconds: float = 1.0) -> "World":
        """The host once the plan was carried out in full, a while later; nobody does anything meanwhile."""
        tenants = {each.name: each for each in self.tenants}
        swap_used = self.swap_used
        for action in plan.actions:
            if isinstance(action, PageOut | PageIn | Reclaim):
                name = action.cgroup if isinstance(action, Reclaim) else action.workload
                moved = action.size_bytes / MIB * (-1 if isinstance(action, PageIn) else 1)
                each = tenants[name]
                tenants[name] = replace(each, held=each.held - moved, swapped=each.swapped + moved, peak=peak_of(each))
                swap_used += moved
            elif isinstance(action, SetLimit):
                key = {LimitKind.LIMIT: "limit", LimitKind.HARD: "hard", LimitKind.GUARANTEE: "guarantee_now"}[
                    action.kind
                ]
                tenants[action.cgroup] = replace(tenants[action.cgroup], **{key: action.to_bytes})
        found = tuple(
            replace(tenants[each.name], idle_s=tenants[each.name].idle_s + seconds if each.idle_s else 0.0)
            for each in self.tenants
        )
        return replace(self, tenants=found, now_s=self.now_s + seconds, swap_used=swap_used)


def peak_of(tenant: Tenant) -> float:
    return tenant.held if tenant.peak is None else tenant.peak


def partition(name: str, **more) -> PartitionSettings:
    return PartitionSettings(name=name, match=Match(cgroup=name), **more)


def mib(size: float) -> int:
    return round(size * MIB) // 4096 * 4096


def of_kind(plan: Plan, *kinds: type) -> list[Action]:
    return [action for action in plan.actions if isinstance(action, kinds)]


def moved_mib(plan: Plan, kind: type, workload: str | None = None) -> float:
    return (
        sum(action.size_bytes for action in of_kind(plan, kind) if workload is None or action.workload == workload)
        / MIB
    )
