# SPDX-License-Identifier: Apache-2.0
"""Everything the parts of the planner look at, joined once per tick: partitions, workloads, cgroups.

Quantities are whole bytes (int64) before they are summed, so sums are exact and no result depends on the
order of the rows. *Held* is what a workload has in memory without the page cache that would leave freely;
*need* is the forecast of its peak at the planner's level, over the horizon that its actions take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import CgroupState, HostMemory, Observation
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Kind, PartitionSettings, Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.plan import hours
from memsculpt.plan.memory import process_rows, reserved_row
from memsculpt.plan.partitions import Demand
from memsculpt.plan.state import PartitionColumns, PlannerState

_Scalar = TypeVar("_Scalar", np.int64, np.float64, np.bool_)

# The level at which a workload's need is planned for. Higher moves pages for phases that rarely come,
# lower lets one phase in ten begin with faults that could have been spared.
NEED_LEVEL = 0.9
MEDIAN_LEVEL = 0.5
# Needing a sixteenth more than ever before is taken to be half as likely; a little more for who is small.
_TAIL_OWN_PART = 16.0
_TAIL_EVEN_PART = 32.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkloadColumns:
    """Per workload, in the order of the observation."""

    ids: tuple[WorkloadId, ...]
    partition_row: Int64  # -1: in no partition, nothing is done to it
    cgroup_row: Int64  # row in CgroupColumns that it is charged to; -1: none or not known
    held_bytes: Int64
    need_bytes: Int64  # over the act horizon, at NEED_LEVEL
    median_bytes: Int64
    quantiles_bytes: Int64  # shape (n, n_levels), over the act horizon
    peak_bytes: Int64  # the most it is known to have needed, ever
    unneeded_s: Float64  # the longest horizon within which it is not expected to need most of what it holds
    cold_bytes: Int64
    swapped_bytes: Int64
    reclaimable_bytes: Int64
    unevictable_bytes: Int64
    needed_bytes: Int64
    working_set_bytes: Int64
    growth_bytes_per_s: Float64
    stall_ratio: Float64
    idle_s: Float64
    is_active: Bool
    is_settled: Bool  # past its start, and forecast from its own past
    was_hurt: Bool  # hit its limit or was OOM-killed since the tick before
    page_out_allowed_ratio: Float64
    page_in_useful_ratio: Float64
    refused_until_s: Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CgroupColumns:
    """Per cgroup of a partition, in the order of the observation; others are left out."""

    states: tuple[CgroupState, ...]
    partition_row: Int64
    used_bytes: Int64
    limit_bytes: Int64
    hard_limit_bytes: Int64
    guarantee_bytes: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Situation:
    """The host as the planner sees it in this tick."""

    now_s: float
    page_bytes: int
    capacity_bytes: int  # what the partitions share, or less where others have taken it
    planned_bytes: int  # the capacity without the margin: what is divided
    target_bytes: int  # free ahead when use is forecast to pass it
    ceiling_most_bytes: int  # the machine's memory: a ceiling or limit from here on is none
    host_stall_ratio: float
    partitions: PartitionColumns
    lower_bytes: Int64  # guarantee and floor, shape (n_partitions,)
    ceiling_bytes: Int64  # no more than the machine has
    used_bytes: Int64  # as charged, page cache and all
    held_bytes: Int64  # without the page cache that leaves freely
    charge_shift_bytes: Int64  # need that is charged here (+) or elsewhere (-) since a workload moved
    workloads: WorkloadColumns
    cgroups: CgroupColumns
    levels: tuple[float, ...]

    def sum_by_partition(self, column: Int64) -> Int64:
        """Sum a column of workloads; exact, so the order of the rows does not matter."""
        return _sum_by(self.workloads.partition_row, column, len(self.partitions.names))

    def sum_by_cgroup(self, column: Int64) -> Int64:
        """Sum a column of workloads over the cgroups they are charged to."""
        return _sum_by(self.workloads.cgroup_row, column, len(self.cgroups.used_bytes))


def look(
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    corrections: Corrections,
    settings: Settings,
) -> Situation:
    """Join what is known; `planner` has been brought up to date for this tick (reservations, moves)."""
    memory = observation.memory
    partitions = partition_columns(planner, settings)
    cgroups = _cgroup_columns(observation, partitions)
    workloads = _workload_columns(planner, observation, profiles, forecasts, corrections, settings, partitions, cgroups)
    count = len(partitions.names)
    reclaimable = _sum_by(workloads.partition_row, workloads.reclaimable_bytes, count)
    charged = _sum_by(cgroups.partition_row, cgroups.used_bytes, count)
    has_cgroup = np.bincount(cgroups.partition_row, minlength=count) > 0
    # Processes without a cgroup of their partition's count by themselves, unless they are charged to another's.
    uncharged = np.where(workloads.cgroup_row < 0, workloads.held_bytes + workloads.reclaimable_bytes, 0)
    used = np.where(has_cgroup, charged, _sum_by(workloads.partition_row, uncharged, count))
    held = np.maximum(used - reclaimable, 0)
    ceiling = np.minimum(partitions.ceiling_bytes, memory.total_bytes)
    guarantee = np.minimum(partitions.guarantee_bytes, ceiling)
    promised, kept = int(guarantee.sum()), int(held.sum())
    capacity = capacity_bytes_of(settings, memory, held_bytes=kept, guarantee_bytes=promised)
    planned = planned_bytes_of(settings, memory, held_bytes=kept, guarantee_bytes=promised)
    return Situation(
        now_s=observation.time_s,
        page_bytes=memory.page_bytes,
        capacity_bytes=capacity,
        planned_bytes=planned,
        target_bytes=min(planned, int(capacity * settings.plan.proactive_ratio)),
        ceiling_most_bytes=memory.total_bytes,
        host_stall_ratio=_host_stall_ratio(planner, observation),
        partitions=partitions,
        lower_bytes=np.minimum(np.maximum(guarantee, settings.plan.floor_bytes), ceiling),
        ceiling_bytes=ceiling,
        used_bytes=used,
        held_bytes=held,
        charge_shift_bytes=_charge_shift(planner, partitions),
        workloads=workloads,
        cgroups=cgroups,
        levels=forecasts.levels,
    )


def capacity_bytes_of(settings: Settings, memory: HostMemory, *, held_bytes: int, guarantee_bytes: int) -> int:
    """Return what partitions that hold so much, and were promised so much, share.

    Others on the host may have taken what the configuration hands out; promises are kept all the same.
    """
    configured = settings.capacity_of(memory.total_bytes)
    return max(min(configured, held_bytes + memory.available_bytes), min(configured, guarantee_bytes))


def planned_bytes_of(settings: Settings, memory: HostMemory, *, held_bytes: int, guarantee_bytes: int) -> int:
    """Return that capacity without the margin: what is divided."""
    capacity = capacity_bytes_of(settings, memory, held_bytes=held_bytes, guarantee_bytes=guarantee_bytes)
    return max(int(capacity * (1.0 - settings.plan.margin_ratio)), min(capacity, guarantee_bytes))


def demand_of(now: Situation) -> Demand:
    """Return the partitions' predictive distributions of their peak.

    A partition's quantile is the sum of its workloads' quantiles: right when they peak together, and an
    upper bound at the high levels otherwise (docs/methods/planning.md says why that side is chosen). Above
    the highest forecast level comes the most that was ever needed, and beyond it a tail.
    """
    count, top = len(now.partitions.names), now.levels[-1]
    levels = np.array([0.0, *now.levels, (1.0 + top) / 2.0])
    knots = np.empty((count, len(levels)))
    knots[:, 0] = now.lower_bytes
    for column in range(len(now.levels)):
        knots[:, column + 1] = now.sum_by_partition(now.workloads.quantiles_bytes[:, column])
    knots[:, -1] = now.sum_by_partition(now.workloads.peak_bytes)
    knots[:, 1:] += now.charge_shift_bytes[:, np.newaxis]
    knots = np.maximum.accumulate(knots, axis=1)
    even_part = max(now.capacity_bytes, 1) / (_TAIL_EVEN_PART * max(count, 1))
    return Demand(
        levels=levels,
        knots_bytes=knots,
        tail_bytes=knots[:, -1] / _TAIL_OWN_PART + even_part,
        guarantee_bytes=np.minimum(now.partitions.guarantee_bytes, now.ceiling_bytes),
        floor_bytes=now.lower_bytes.copy(),
        ceiling_bytes=now.ceiling_bytes.copy(),
        weights=now.partitions.weights.copy(),
        giving_order=now.partitions.giving_order.copy(),
    )


def partition_columns(planner: PlannerState, settings: Settings) -> PartitionColumns:
    """Return the partitions as columns, made anew only when the configuration has changed."""
    source = settings.partitions + planner.created
    if planner.columns is not None and planner.columns.source == source:
        return planner.columns
    by_weight = sorted(range(len(source)), key=lambda row: (-source[row].priority, source[row].name))
    return PartitionColumns(
        source=source,
        names=tuple(partition.name for partition in source),
        row_of={partition.name: row for row, partition in enumerate(source)},
        guarantee_bytes=_ints([_least_bytes(partition) for partition in source]),
        ceiling_bytes=_ints([_most_bytes(partition) for partition in source]),
        promised_bytes=_ints([partition.guarantee_bytes for partition in source]),
        is_fixed=np.array([partition.kind is Kind.FIXED for partition in source], dtype=np.bool_),
        is_trimmed=np.array([partition.trim for partition in source], dtype=np.bool_),
        weights=np.array([partition.priority for partition in source], dtype=np.float64),
        giving_order=_ints(by_weight),
    )


def _least_bytes(partition: PartitionSettings) -> int:
    return partition.guarantee_bytes if partition.size_bytes is None else partition.size_bytes


def _most_bytes(partition: PartitionSettings) -> int:
    return partition.ceiling_bytes if partition.size_bytes is None else partition.size_bytes


def _cgroup_columns(observation: Observation, partitions: PartitionColumns) -> CgroupColumns:
    rows = [partitions.row_of.get(state.partition, -1) for state in observation.cgroups]
    states = observation.cgroups
    if -1 in rows:
        states = tuple(state for state, row in zip(states, rows, strict=True) if row >= 0)
        rows = [row for row in rows if row >= 0]
    return CgroupColumns(
        states=states,
        partition_row=_ints(rows),
        used_bytes=_ints([state.used_bytes for state in states]),
        limit_bytes=_ints([state.limit_bytes for state in states]),
        hard_limit_bytes=_ints([state.hard_limit_bytes for state in states]),
        guarantee_bytes=_ints([state.guarantee_bytes for state in states]),
    )


def _workload_columns(
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    corrections: Corrections,
    settings: Settings,
    partitions: PartitionColumns,
    cgroups: CgroupColumns,
) -> WorkloadColumns:
    seen = observation.workloads
    held = np.maximum(seen.resident_bytes + seen.kernel_bytes - profiles.reclaimable_bytes, 0)
    is_active = profiles.idle_s < settings.observe.idle_after_s
    corrected = _rows_of(seen.ids, corrections.ids)
    headroom = _taken(corrections.headroom_ratio, corrected, 1.0)
    # What it needs now it needs over any horizon; an active workload also what its working set has lost.
    lost = np.minimum(profiles.working_set_bytes, held + seen.swapped_bytes)
    floor = np.maximum(profiles.needed_bytes, np.where(is_active, lost, 0))
    for reservation in planner.reservations:
        row, own = reserved_row(reservation, observation)
        if row is not None:  # what others of the same workload hold comes on top
            others = max(int(seen.resident_bytes[row]) - own, 0)
            floor[row] = max(int(floor[row]), others + reservation.target_bytes)
    forecast = _rows_of(seen.ids, forecasts.ids)
    act = level_column(forecasts.horizons_s, settings.forecast.act_horizon_s)
    quantiles = _quantiles(forecasts, forecast, act, headroom, floor)
    later = np.stack(
        [_at_need_level(forecasts, forecast, column, headroom, floor) for column in range(len(forecasts.horizons_s))],
        axis=1,
    )
    partition_row = _ints([partitions.row_of.get(name or "", -1) for name in seen.partitions])
    cgroup_row = _cgroup_rows(observation, cgroups)
    _follow_moves(planner, observation, partitions, cgroups, partition_row, cgroup_row)
    known_peak = np.maximum(
        _taken(forecasts.historic_peak_bytes, forecast, 0), _taken(forecasts.startup_peak_bytes, forecast, 0)
    )
    far = hours.look(seen.ids, held, forecasts, observation.time_s)
    return WorkloadColumns(
        ids=seen.ids,
        partition_row=partition_row,
        cgroup_row=cgroup_row,
        held_bytes=held,
        need_bytes=quantiles[:, level_column(forecasts.levels, NEED_LEVEL)],
        median_bytes=quantiles[:, level_column(forecasts.levels, MEDIAN_LEVEL)],
        quantiles_bytes=quantiles,
        peak_bytes=np.maximum.reduce((known_peak, profiles.working_set_bytes, later[:, -1], far.peak_bytes)),
        unneeded_s=_unneeded_s(held, later, forecasts.horizons_s, far.unneeded_s),
        cold_bytes=profiles.cold_bytes,
        swapped_bytes=seen.swapped_bytes,
        reclaimable_bytes=profiles.reclaimable_bytes,
        unevictable_bytes=seen.unevictable_bytes,
        needed_bytes=profiles.needed_bytes,
        working_set_bytes=profiles.working_set_bytes,
        growth_bytes_per_s=profiles.growth_bytes_per_s,
        stall_ratio=profiles.some_stall_ratio,
        idle_s=profiles.idle_s,
        is_active=is_active,
        is_settled=~profiles.is_starting & _taken(forecasts.is_warm, forecast, 0),
        was_hurt=profiles.hit_limit | profiles.was_oom_killed,
        page_out_allowed_ratio=np.clip(_taken(corrections.page_out_allowed_ratio, corrected, 1.0), 0.0, 1.0),
        page_in_useful_ratio=np.clip(_taken(corrections.page_in_useful_ratio, corrected, 1.0), 0.0, 1.0),
        refused_until_s=_taken(corrections.refused_until_s, corrected, 0.0),
    )


def _quantiles(forecasts: Forecasts, rows: Int64, horizon: int, headroom: Float64, floor: Int64) -> Int64:
    """Return whole bytes, shape (n_workloads, n_levels): spread corrected, not falling, at least `floor`."""
    known = np.zeros((len(rows), len(forecasts.levels)))
    known[rows >= 0] = forecasts.quantiles_bytes[rows[rows >= 0], horizon]
    known[~np.isfinite(known)] = 0.0
    median = known[:, level_column(forecasts.levels, MEDIAN_LEVEL), np.newaxis]
    known = np.where(known > median, median + headroom[:, np.newaxis] * (known - median), known)
    known = np.maximum(np.maximum.accumulate(known, axis=1), floor[:, np.newaxis])
    return np.ceil(known).astype(np.int64)


def _at_need_level(forecasts: Forecasts, rows: Int64, horizon: int, headroom: Float64, floor: Int64) -> Int64:
    """Return the column of `_quantiles` that belongs to NEED_LEVEL, without making the others."""
    columns = [level_column(forecasts.levels, level) for level in (MEDIAN_LEVEL, NEED_LEVEL)]
    known = np.zeros((2, len(rows)))
    for at, column in enumerate(columns):
        known[at, rows >= 0] = forecasts.quantiles_bytes[rows[rows >= 0], horizon, column]
    known[~np.isfinite(known)] = 0.0
    spread = np.maximum(known[1] - known[0], 0.0)
    return np.ceil(np.maximum(known[0] + headroom * spread, floor)).astype(np.int64)


def _unneeded_s(held: Int64, later: Int64, horizons_s: Sequence[float], quiet_s: Float64) -> Float64:
    result = np.zeros(len(held))
    for column, horizon_s in enumerate(horizons_s):
        result[2 * later[:, column] <= held] = horizon_s
    # Hours count where the nearest minute is quiet, too.
    return np.where(result >= horizons_s[-1], np.maximum(result, quiet_s), result)


def _cgroup_rows(observation: Observation, cgroups: CgroupColumns) -> Int64:
    """Find the cgroup that each workload is charged to: its own, the nearest above, or its partition's only one."""
    workloads = observation.workloads
    row_of: dict[str | None, int] = {state.cgroup: row for row, state in enumerate(cgroups.states)}
    result = [row_of.get(cgroup, -1) for cgroup in workloads.cgroups]
    missing = [row for row, found in enumerate(result) if found < 0]
    if not missing:
        return _ints(result)
    only: dict[str, int] = {}
    for row, state in enumerate(cgroups.states):
        only[state.partition] = -1 if state.partition in only else row
    for row in missing:
        name, path = workloads.partitions[row], str(workloads.cgroups[row] or "")
        above = -1
        while above < 0 and "/" in path:
            path = path.rpartition("/")[0]
            above = row_of.get(path, -1)
        result[row] = only.get(name, -1) if above < 0 and name is not None else above
    return _ints(result)


def _follow_moves(
    planner: PlannerState,
    observation: Observation,
    partitions: PartitionColumns,
    cgroups: CgroupColumns,
    partition_row: Int64,
    cgroup_row: Int64,
) -> None:
    """Count moved workloads where they are now: the rules of the configuration still name where they were."""
    index = observation.processes.workload_index
    for moved in planner.moves:
        alive = process_rows(moved.processes, observation)
        for row in {int(index[each]) for each in alive}:
            if int((index == row).sum()) <= sum(int(index[each]) == row for each in alive):
                partition_row[row] = partitions.row_of.get(moved.to_partition, -1)
                here = (at for at, state in enumerate(cgroups.states) if state.cgroup == moved.to_cgroup)
                cgroup_row[row] = next(here, -1)


def _charge_shift(planner: PlannerState, partitions: PartitionColumns) -> Int64:
    shift = np.zeros(len(partitions.names), np.int64)
    for moved in planner.moves:
        if moved.from_partition is not None and moved.from_partition in partitions.row_of:
            shift[partitions.row_of[moved.from_partition]] += moved.charged_bytes
        if moved.to_partition in partitions.row_of:
            shift[partitions.row_of[moved.to_partition]] -= moved.charged_bytes
    return shift


def _host_stall_ratio(planner: PlannerState, observation: Observation) -> float:
    stalled_s, before_s = observation.memory.some_stall_s, planner.host_some_stall_s
    if stalled_s is None or before_s is None or planner.planned_at_s is None:
        return 0.0
    elapsed_s = observation.time_s - planner.planned_at_s
    return max(stalled_s - before_s, 0.0) / elapsed_s if elapsed_s > 0.0 else 0.0


def room_below_limit_bytes(observation: Observation, workload: WorkloadId, settings: Settings) -> int:
    """Return how much more a workload may hold now: below its cgroup's limit, the capacity, and what is available."""
    memory, workloads = observation.memory, observation.workloads
    inside = np.array([name is not None for name in workloads.partitions], np.bool_)
    held = (workloads.resident_bytes + workloads.kernel_bytes - workloads.reclaimable_bytes)[inside]
    planned = int(settings.capacity_of(memory.total_bytes) * (1.0 - settings.plan.margin_ratio))
    room = int(memory.available_bytes - memory.total_bytes * settings.plan.margin_ratio)
    room = min(room, planned - int(np.maximum(held, 0).sum()))
    if workload in workloads.ids:
        row = workloads.ids.index(workload)
        for state in observation.cgroups:
            if state.cgroup == workloads.cgroups[row]:
                limit = min(state.limit_bytes, state.hard_limit_bytes)
                room = min(room, limit - state.used_bytes + int(workloads.reclaimable_bytes[row]))
    return max(room, 0)


def level_column(levels: Sequence[float], level: float) -> int:
    """Return the first level (or horizon) that is at least `level`, else the highest."""
    return next((column for column, each in enumerate(levels) if each >= level), len(levels) - 1)


def _rows_of(ids: tuple[WorkloadId, ...], known: tuple[WorkloadId, ...]) -> Int64:
    """Return, for each of `ids`, its row in `known`, or -1; mostly they are the same."""
    if ids == known:
        return np.arange(len(ids), dtype=np.int64)
    row_of = {each: row for row, each in enumerate(known)}
    return _ints([row_of.get(each, -1) for each in ids])


def _taken(column: npt.NDArray[_Scalar], rows: Int64, fill: float) -> npt.NDArray[_Scalar]:
    result = np.full(len(rows), fill, dtype=column.dtype)
    result[rows >= 0] = column[rows[rows >= 0]]
    return result


def _sum_by(rows: Int64, column: Int64, count: int) -> Int64:
    # Sums of whole numbers below 2^53 are exact in double precision, whatever their order.
    taken = rows >= 0
    return np.bincount(rows[taken], weights=column[taken].astype(np.float64), minlength=count).astype(np.int64)


def _ints(values: Sequence[int]) -> Int64:
    return np.array(values, dtype=np.int64)
