# SPDX-License-Identifier: Apache-2.0
"""From one observation to the next: rates, idle times, and use told apart as needed, cold and reclaimable.

- *reclaimable*: clean page cache that nobody maps. It leaves without I/O and is no need.
- *cold*: anonymous memory of processes that have not run for `idle_after_s` (docs/methods/profile.md).
- *needed*: the rest of what is resident, and for a workload that runs with part of its memory swapped
  also what it is pulling back, at most the working set of its last phase; the same for one process that wakes
  in a workload that runs all the time. What a VM needs is its guest's word (guests.py).
"""

from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import Observation, Processes
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.profile import idleness
from memsculpt.profile.guests import follow_guests
from memsculpt.profile.state import COUNTERS, ProfileState, Remembered, counters_of, rows_before

# A start is over when the workload has hardly grown for a while, when its first phase has ended, or at
# the latest after two minutes: what still grows then is no start any more.
STARTING_MOST_S = 120.0
CALM_S = 5.0
CALM_GROWTH_RATIO_PER_S = 0.01


def update(state: ProfileState, observation: Observation, settings: Settings) -> tuple[ProfileState, Profiles]:
    """Return what is to be remembered and the profiles of this tick.

    Rates are per second since the tick before, 0 on the first tick and for a workload's first. A counter
    that was reset (a new instance under the same identity) never gives a negative rate.
    """
    now_s = observation.time_s
    elapsed_s = 0.0 if state.time_s is None else max(now_s - state.time_s, 0.0)
    seen, processes = observation.workloads, observation.processes
    idle_after_s = settings.observe.idle_after_s
    ran = idleness.follow(state.processes, processes, now_s=now_s, elapsed_s=elapsed_s, idle_after_s=idle_after_s)
    process_idle_s = ran.idle_s
    idle_s = idleness.idle_of_workloads(process_idle_s, processes, len(seen.ids))
    is_active = idle_s < idle_after_s

    before = state.workloads
    rows = rows_before(seen.ids, before.ids)
    is_same = rows >= 0
    is_same[is_same] = before.instance_keys[rows[is_same]] == seen.instance_keys[is_same]
    was_restarted = (rows >= 0) & ~is_same
    counters = counters_of(seen)
    change = np.zeros_like(counters)
    change[is_same] = counters[is_same] - before.counters[rows[is_same]]
    per_s = {
        name: change[:, column] / elapsed_s if elapsed_s > 0.0 else np.zeros(len(seen.ids))
        for column, name in enumerate(COUNTERS)
    }
    rising = {name: np.maximum(column, 0.0) for name, column in per_s.items()}

    cold = _cold_bytes(observation, process_idle_s, is_active, settings)
    present = _present_bytes(observation)
    pulled = rising["major_faults"] * observation.memory.page_bytes * settings.forecast.act_horizon_s
    needed = np.maximum(present - cold, 0)
    kept = _kept(before, rows, is_same)
    has_woken = (idle_s <= 0.0) & ~kept.was_active & is_same
    wanted = np.minimum(kept.working_set_bytes, present + seen.swapped_bytes)
    # Coming from swap: as fast as it does now, or at once what a process that wakes among others is used to.
    lacking = np.maximum(pulled, _sum_by_workload(ran.lacks_bytes, processes, len(seen.ids)))
    coming = np.minimum(lacking, seen.swapped_bytes).astype(np.int64)
    needed = np.where(is_active, np.maximum(needed + coming, np.where(has_woken, wanted, 0)), needed)
    guests = follow_guests(state.guests, observation, state.overheads)
    if guests.rows is not None:  # a guest knows better than its host what it needs
        needed = np.where(guests.rows.is_told, guests.rows.needed_bytes, needed)
    remembered = _remember(
        kept, observation, counters, needed, per_s["footprint_bytes"], is_active, has_woken, elapsed_s
    )
    minor_faults_per_s, cpu_ratio, io_bytes_per_s = rising["minor_faults"], rising["cpu_s"], rising["io_bytes"]
    working_set = remembered.working_set_bytes.copy()
    if guests.rows is not None:
        told = guests.rows
        # A VM's phases are its guest's, and QEMU never rests: the most it ever needed is no working set.
        working_set = np.where(told.is_told, needed, working_set)
        minor_faults_per_s = minor_faults_per_s + told.faults_per_s
        cpu_ratio = np.where(np.isnan(told.cpu_ratio), cpu_ratio, told.cpu_ratio)
        io_bytes_per_s = np.where(np.isnan(told.io_bytes_per_s), io_bytes_per_s, told.io_bytes_per_s)
    profiles = Profiles(
        time_s=now_s,
        elapsed_s=elapsed_s,
        ids=seen.ids,
        needed_bytes=needed,
        cold_bytes=cold,
        reclaimable_bytes=np.minimum(seen.reclaimable_bytes, seen.file_bytes),
        working_set_bytes=working_set,
        growth_bytes_per_s=rising["footprint_bytes"],
        release_bytes_per_s=np.maximum(-per_s["footprint_bytes"], 0.0),
        minor_faults_per_s=minor_faults_per_s,
        major_faults_per_s=rising["major_faults"],
        refaults_per_s=rising["refaults"],
        cpu_ratio=cpu_ratio,
        io_bytes_per_s=io_bytes_per_s,
        some_stall_ratio=rising["some_stall_s"],
        full_stall_ratio=rising["full_stall_s"],
        idle_s=idle_s,
        age_s=now_s - remembered.first_s,
        is_starting=~remembered.has_settled,
        was_restarted=was_restarted,
        was_oom_killed=change[:, COUNTERS.index("oom_kills")] > 0.0,
        hit_limit=change[:, COUNTERS.index("limit_hits")] > 0.0,
        process_idle_s=process_idle_s,
        programs=seen.programs,
        guests=guests.demands,
    )
    remembers = replace(state, time_s=now_s, workloads=remembered, processes=ran.times, guests=guests.known)
    return remembers, profiles


def _sum_by_workload(column: Int64, processes: Processes, count: int) -> Float64:
    inside = processes.workload_index >= 0
    weights = column[inside].astype(np.float64)
    return np.bincount(processes.workload_index[inside], weights=weights, minlength=count).astype(np.float64)


def _cold_bytes(observation: Observation, process_idle_s: Float64, is_active: Bool, settings: Settings) -> Int64:
    """Sum the private memory of idle processes; shared memory only where nobody of the workload runs."""
    processes, seen = observation.processes, observation.workloads
    chosen = (process_idle_s >= settings.observe.idle_after_s) & processes.has_memory_kinds
    private = _sum_by_workload(np.where(chosen, processes.anon_bytes, 0), processes, len(seen.ids)).astype(np.int64)
    private = np.minimum(private, np.maximum(seen.anon_bytes - seen.unevictable_bytes, 0))
    return private + np.where(is_active, 0, seen.shmem_bytes)


def _present_bytes(observation: Observation) -> Int64:
    """Return what is in memory without the page cache that would leave freely."""
    seen = observation.workloads
    file = np.maximum(seen.file_bytes - seen.reclaimable_bytes, 0)
    return np.maximum(seen.anon_bytes + seen.shmem_bytes + seen.kernel_bytes + file, seen.unevictable_bytes)


def _kept(before: Remembered, rows: Int64, is_same: Bool) -> Remembered:
    """Return the remembered columns in this tick's order; a new instance starts with empty ones."""
    count = len(rows)
    was_active = np.ones(count, np.bool_)
    has_settled = np.zeros(count, np.bool_)
    first_s = np.full(count, np.nan)
    calm_s = np.zeros(count)
    phase_peak = np.zeros(count, np.int64)
    working_set = np.zeros(count, np.int64)
    known = rows[is_same]
    was_active[is_same] = before.was_active[known]
    has_settled[is_same] = before.has_settled[known]
    first_s[is_same] = before.first_s[known]
    calm_s[is_same] = before.calm_s[known]
    phase_peak[is_same] = before.phase_peak_bytes[known]
    working_set[is_same] = before.working_set_bytes[known]
    return Remembered(
        ids=before.ids,
        instance_keys=before.instance_keys,
        counters=before.counters,
        first_s=first_s,
        was_active=was_active,
        has_settled=has_settled,
        calm_s=calm_s,
        phase_peak_bytes=phase_peak,
        working_set_bytes=working_set,
    )


def _remember(
    kept: Remembered,
    observation: Observation,
    counters: Float64,
    needed: Int64,
    growth_bytes_per_s: Float64,
    is_active: Bool,
    has_woken: Bool,
    elapsed_s: float,
) -> Remembered:
    seen, now_s = observation.workloads, observation.time_s
    is_over = kept.was_active & ~is_active
    phase_peak = np.where(has_woken, 0, kept.phase_peak_bytes)
    phase_peak = np.where(is_active, np.maximum(phase_peak, needed), phase_peak)
    # The last whole phase counts until the one under way has passed it.
    working_set = np.where(is_over, phase_peak, np.maximum(kept.working_set_bytes, phase_peak))
    first_s = np.where(np.isnan(kept.first_s), now_s, kept.first_s)
    is_calm = np.abs(growth_bytes_per_s) <= CALM_GROWTH_RATIO_PER_S * np.maximum(seen.resident_bytes, 1)
    calm_s = np.where(is_calm, kept.calm_s + elapsed_s, 0.0)
    has_settled = kept.has_settled | (calm_s >= CALM_S) | (now_s - first_s >= STARTING_MOST_S)
    # A phase that did some work has ended: what comes next is no start. The short life of an interpreter
    # before its first pause is one, though.
    has_settled |= is_over & (now_s - first_s >= CALM_S)
    return Remembered(
        ids=seen.ids,
        instance_keys=seen.instance_keys.copy(),
        counters=counters,
        first_s=first_s,
        was_active=is_active,
        has_settled=has_settled,
        calm_s=calm_s,
        phase_peak_bytes=phase_peak,
        working_set_bytes=working_set,
    )
