# SPDX-License-Identifier: Apache-2.0
"""bench planning: how long it takes to divide a capacity among many partitions, and to plan a whole tick.

Nothing on the machine is read or changed. Arms, interleaved within a round:

    divide       10,000 partitions of different weights, too little for all: the division alone
    divide-same  10,000 identical partitions: the worst case of the bisection, no row settles before the end
    plan         a tick of 10,000 partitions, each one workload in a cgroup of its own, nothing worth moving
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from memsculpt import plan
from memsculpt.domain.arrays import Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import CgroupState, HostMemory, Observation, Processes, Workloads
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.plan import SetLimit
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, PartitionSettings, Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath, Match, WorkloadId
from memsculpt.plan.partitions import Demand, divide
from memsculpt_bench.contract import at_most, result

COUNT = 10_000
BAR_MS = 20.0
PAGE_BYTES = 4096
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
HORIZONS_S = (3.0, 10.0, 60.0)


def run(*, rounds: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure each arm `rounds` times and return the object that `bench planning --json` prints."""
    count = 1 if quick else 3
    arms: Mapping[str, Callable[[], object]] = {
        "divide": _division(same=False),
        "divide-same": _division(same=True),
        "plan": _tick(),
    }
    taken_ms: dict[str, list[float]] = {name: [] for name in arms}
    for work in arms.values():
        work()  # caches and pages of the first call are not the tick's
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, work in arms.items():
            taken_ms[name].append(min(_milliseconds(work) for _ in range(count)))
    figures = {f"{name.replace('-', '_')}_10000_ms": at_most(BAR_MS, values) for name, values in taken_ms.items()}
    return result("planning", rounds, {name: {"taken_ms": values} for name, values in taken_ms.items()}, figures)


def _milliseconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1e3


def _division(*, same: bool) -> Callable[[], object]:
    chance = np.random.default_rng(7)
    levels = np.array([0.0, *LEVELS, 0.9995])
    knots = np.cumsum(chance.integers(MIB, 50 * MIB, (COUNT, len(levels))), axis=1).astype(np.float64)
    weights = chance.choice([50.0, 100.0, 400.0], COUNT)
    if same:
        knots[:] = knots[0]
        weights[:] = 100.0
    lower = knots[:, 0].astype(np.int64)
    demand = Demand(
        levels=levels,
        knots_bytes=knots,
        tail_bytes=knots[:, -1] / 16.0,
        guarantee_bytes=lower // 2,
        floor_bytes=lower,
        ceiling_bytes=np.full(COUNT, 1 << 44),
        weights=weights,
        giving_order=np.argsort(-weights, kind="stable"),
    )
    capacity_bytes = int(knots[:, -3].sum())
    return lambda: divide(demand, capacity_bytes=capacity_bytes, page_bytes=PAGE_BYTES)


def _tick() -> Callable[[], object]:
    """Return a call that plans the second of two ticks, in which nothing has changed."""
    arguments = _world()
    observation = arguments[0]
    planner, first = plan.choose(plan.PlannerState(), *arguments)
    limits = {action.cgroup: action.to_bytes for action in first.actions if isinstance(action, SetLimit)}
    cgroups = tuple(
        replace(each, limit_bytes=limits.get(each.cgroup, each.limit_bytes)) for each in observation.cgroups
    )
    later = replace(observation, time_s=observation.time_s + 1.0, cgroups=cgroups)
    return lambda: plan.choose(planner, later, *arguments[1:])


def _world() -> tuple[Observation, Profiles, Forecasts, Corrections, Settings]:
    chance = np.random.default_rng(11)
    names = tuple(f"tenant-{number:05}" for number in range(COUNT))
    ids = tuple(WorkloadId(name) for name in names)
    held = chance.integers(4, 64, COUNT) * MIB
    spread = np.linspace(1.0, 1.3, len(LEVELS))
    quantiles = np.broadcast_to(
        held[:, np.newaxis, np.newaxis] * spread[np.newaxis, np.newaxis, :], (COUNT, len(HORIZONS_S), len(LEVELS))
    ).copy()
    total = int(held.sum() * 4)
    partitions = tuple(
        PartitionSettings(name=name, match=Match(cgroup=name), guarantee_bytes=2 * MIB, priority=float(priority))
        for name, priority in zip(names, chance.choice([50, 100, 400], COUNT), strict=True)
    )
    settings = Settings(capacity_bytes=total // 2, partitions=partitions)
    observation = Observation(
        time_s=100.0,
        memory=HostMemory(
            total_bytes=total,
            available_bytes=total // 2,
            free_bytes=total // 2,
            swap_total_bytes=total,
            swap_free_bytes=total,
            some_stall_s=0.0,
            full_stall_s=0.0,
        ),
        processes=_processes(held),
        workloads=_workloads(ids, names, held),
        cgroups=tuple(
            CgroupState(
                cgroup=CgroupPath(name),
                partition=name,
                used_bytes=int(size),
                swapped_bytes=0,
                limit_bytes=UNLIMITED_BYTES,
                hard_limit_bytes=UNLIMITED_BYTES,
                guarantee_bytes=2 * MIB,
                is_own=False,
            )
            for name, size in zip(names, held, strict=True)
        ),
    )
    forecasts = Forecasts(
        made_at_s=100.0,
        ids=ids,
        horizons_s=HORIZONS_S,
        levels=LEVELS,
        quantiles_bytes=quantiles,
        historic_peak_bytes=held.copy(),
        startup_peak_bytes=_zeros(),
        is_warm=np.ones(COUNT, np.bool_),
        leaders=("last-value",) * COUNT,
    )
    return observation, _profiles(ids, held), forecasts, _corrections(ids), settings


def _zeros() -> Int64:
    return np.zeros(COUNT, np.int64)


def _processes(held: Int64) -> Processes:
    return Processes(
        pids=np.arange(COUNT) + 100,
        start_ticks=np.arange(COUNT),
        workload_index=np.arange(COUNT),
        anon_bytes=held.copy(),
        file_bytes=_zeros(),
        shmem_bytes=_zeros(),
        swapped_bytes=_zeros(),
        has_memory_kinds=np.ones(COUNT, np.bool_),
        cpu_s=np.zeros(COUNT),
        minor_faults_count=_zeros(),
        major_faults_count=_zeros(),
        cgroups=(CgroupPath(""),) * COUNT,
    )


def _workloads(ids: tuple[WorkloadId, ...], names: tuple[str, ...], held: Int64) -> Workloads:
    return Workloads(
        ids=ids,
        partitions=names,
        cgroups=tuple(CgroupPath(name) for name in names),
        instance_keys=np.arange(COUNT),
        resident_bytes=held.copy(),
        anon_bytes=held.copy(),
        file_bytes=_zeros(),
        shmem_bytes=_zeros(),
        swapped_bytes=_zeros(),
        reclaimable_bytes=_zeros(),
        unevictable_bytes=_zeros(),
        kernel_bytes=_zeros(),
        minor_faults_count=_zeros(),
        major_faults_count=_zeros(),
        refaults_count=_zeros(),
        cpu_s=np.zeros(COUNT),
        read_bytes=_zeros(),
        written_bytes=_zeros(),
        some_stall_s=np.zeros(COUNT),
        full_stall_s=np.zeros(COUNT),
        oom_kills_count=_zeros(),
        limit_hits_count=_zeros(),
        process_count=np.ones(COUNT, np.int64),
        has_refaults=np.ones(COUNT, np.bool_),
        has_io=np.ones(COUNT, np.bool_),
        has_pressure=np.ones(COUNT, np.bool_),
    )


def _profiles(ids: tuple[WorkloadId, ...], held: Int64) -> Profiles:
    return Profiles(
        time_s=100.0,
        elapsed_s=1.0,
        ids=ids,
        needed_bytes=held.copy(),
        cold_bytes=_zeros(),
        reclaimable_bytes=_zeros(),
        working_set_bytes=held.copy(),
        growth_bytes_per_s=np.zeros(COUNT),
        release_bytes_per_s=np.zeros(COUNT),
        minor_faults_per_s=np.zeros(COUNT),
        major_faults_per_s=np.zeros(COUNT),
        refaults_per_s=np.zeros(COUNT),
        cpu_ratio=np.zeros(COUNT),
        io_bytes_per_s=np.zeros(COUNT),
        some_stall_ratio=np.zeros(COUNT),
        full_stall_ratio=np.zeros(COUNT),
        idle_s=np.zeros(COUNT),
        age_s=np.full(COUNT, 600.0),
        is_starting=np.zeros(COUNT, np.bool_),
        was_restarted=np.zeros(COUNT, np.bool_),
        was_oom_killed=np.zeros(COUNT, np.bool_),
        hit_limit=np.zeros(COUNT, np.bool_),
        process_idle_s=np.zeros(COUNT),
    )


def _corrections(ids: tuple[WorkloadId, ...]) -> Corrections:
    return Corrections(
        ids=ids,
        headroom_ratio=np.ones(COUNT),
        page_out_allowed_ratio=np.ones(COUNT),
        page_in_useful_ratio=np.ones(COUNT),
        refused_until_s=np.zeros(COUNT),
        scored_count=_zeros(),
        covered_ratio=np.ones(COUNT),
        pinball_bytes=np.zeros(COUNT),
    )
