# SPDX-License-Identifier: Apache-2.0
"""Free ahead: whose untouched pages leave, in which order, before somebody else grows into their room.

Only cold bytes are taken (nobody can have touched them lately), only as many as the growth to come lacks,
and never below a guarantee or floor. First the one that is expected to need its pages latest, then by
idle age × size ÷ cost to bring back. Swap space, the rate, pressure and experience bound it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import PageOut, Reason, Reclaim, SculptPool
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import Instance
from memsculpt.plan.growth import Growth
from memsculpt.plan.partitions import Sizes
from memsculpt.plan.situation import NEED_LEVEL, Situation
from memsculpt.plan.state import PlannerState

# Bringing back costs a fixed part (a call, a walk of the page tables) and a part per byte; measured on
# Linux 6.18 with zram: 1 GiB in 0.76 s (design.md). Only the ratio of the two matters for the order.
_BRING_BACK_FIXED_S = 0.005
_BRING_BACK_BYTES_PER_S = 1.4e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """What is asked to leave in this plan."""

    actions: tuple[PageOut | Reclaim | SculptPool, ...]
    by_workload_bytes: Int64
    held_back: tuple[Reason, ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return int(self.by_workload_bytes.sum())


@dataclass(slots=True)
class _Left:
    """What may still be taken, while donors are asked one after the other."""

    wanted_bytes: int
    rate_bytes: int
    swap_bytes: int
    by_partition_bytes: Int64
    forced_bytes: Int64  # must leave whether or not somebody grows: held above a ceiling or fixed size

    def most(self, partition: int, available_bytes: int) -> int:
        """Return what the next donor may give."""
        wanted = min(self.wanted_bytes, int(self.by_partition_bytes[partition]))
        wanted = max(wanted, int(self.forced_bytes[partition]))
        return min(wanted, available_bytes, self.rate_bytes, self.swap_bytes)

    def take(self, partition: int, size_bytes: int) -> None:
        """Count what a donor gives."""
        self.wanted_bytes = max(self.wanted_bytes - size_bytes, 0)
        self.rate_bytes -= size_bytes
        self.swap_bytes -= size_bytes
        self.by_partition_bytes[partition] = max(int(self.by_partition_bytes[partition]) - size_bytes, 0)
        self.forced_bytes[partition] = max(int(self.forced_bytes[partition]) - size_bytes, 0)


def free_ahead(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    sizes: Sizes,
    growth: Growth,
    settings: Settings,
) -> Taken:
    """Choose what leaves, for the shortage that the growth to come makes."""
    least = settings.plan.min_move_bytes
    nothing = np.zeros(len(now.workloads.ids), np.int64)
    forced = np.maximum(now.held_bytes - now.ceiling_bytes, 0)
    forced[forced < least] = 0
    if growth.shortage_bytes < least and not forced.any():
        return Taken(actions=(), by_workload_bytes=nothing, held_back=())
    held_back: list[Reason] = []
    left = _Left(
        wanted_bytes=growth.shortage_bytes if growth.shortage_bytes >= least else 0,
        rate_bytes=int(planner.page_out_budget_bytes),
        swap_bytes=swap_room_bytes(observation, settings),
        by_partition_bytes=_may_give_bytes(now, sizes, growth),
        forced_bytes=forced,
    )
    if not (planner.abilities.page_out or planner.abilities.reclaim):
        held_back.append(_wanted(growth, "unable", "this host can neither page out nor reclaim"))
        return Taken(actions=(), by_workload_bytes=nothing, held_back=tuple(held_back))
    if left.swap_bytes < least:
        text = "swap has room for {swap_room_bytes} only, filled up to {swap_fill_max_ratio} at most"
        figures = {"swap_room_bytes": left.swap_bytes, "swap_fill_max_ratio": settings.plan.swap_fill_max_ratio}
        held_back.append(_wanted(growth, "swap-full", text, figures))
        return Taken(actions=(), by_workload_bytes=nothing, held_back=tuple(held_back))
    available = _available_bytes(now, planner, observation, profiles, growth, settings)
    available = refused_left_out(now, planner, available, settings, held_back)
    actions: list[PageOut | Reclaim] = []
    given = nothing.copy()
    for row in _order(now, sizes, growth, available, least):
        partition = int(now.workloads.partition_row[row])
        size = left.most(partition, int(available[row]) // now.page_bytes * now.page_bytes)
        if size < least:
            continue
        reason = _why(now, sizes, growth, row, size, is_forced=int(left.forced_bytes[partition]) > 0)
        asked, size = _ask(now, planner, observation, profiles, settings, row, size, reason)
        actions.extend(asked)
        given[row] = size
        left.take(partition, size)
    if left.wanted_bytes >= least:
        if left.rate_bytes < least:
            held_back.append(
                _wanted(
                    growth,
                    "rate",
                    "{lacking_bytes} more have to wait for the rate limit",
                    {"lacking_bytes": left.wanted_bytes},
                )
            )
        else:
            held_back.append(
                _wanted(
                    growth,
                    "no-cold",
                    "{lacking_bytes} more would have to leave, and nothing is cold",
                    {"lacking_bytes": left.wanted_bytes},
                )
            )
    return Taken(actions=_merged(actions), by_workload_bytes=given, held_back=tuple(held_back))


def _may_give_bytes(now: Situation, sizes: Sizes, growth: Growth) -> Int64:
    """Return what each partition may give: what it will hold above its size, and never a guarantee or floor.

    Sizes sum to a little more than the target, so each may go below its size by that little.
    """
    above = now.held_bytes + growth.by_partition_bytes - sizes.size_bytes
    slack = now.planned_bytes - now.target_bytes
    give = np.where(above > 0, above + slack, 0)
    return np.minimum(give, np.maximum(now.held_bytes - now.lower_bytes, 0))


def _available_bytes(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    growth: Growth,
    settings: Settings,
) -> Int64:
    """Return the cold bytes of each workload beyond what it will need, as far as experience allows."""
    columns = now.workloads
    beyond_need = np.maximum(columns.held_bytes - growth.entitled_bytes, 0)
    available = np.minimum(columns.cold_bytes, beyond_need)
    available = np.floor(available * columns.page_out_allowed_ratio).astype(np.int64)
    if planner.abilities.page_out:
        processes = observation.processes
        is_idle = _is_movable(observation, profiles, settings)
        idle_bytes = np.bincount(
            processes.workload_index[is_idle],
            weights=processes.anon_bytes[is_idle].astype(np.float64),
            minlength=len(columns.ids),
        ).astype(np.int64)
        available = np.minimum(available, idle_bytes)
    else:
        available[columns.cgroup_row < 0] = 0
    available[columns.partition_row < 0] = 0
    return available


def refused_left_out(
    now: Situation, planner: PlannerState, available: Int64, settings: Settings, held_back: list[Reason]
) -> Int64:
    """Take nothing where it hurts, where it went wrong lately, or what was just brought back."""
    columns, result = now.workloads, available.copy()
    is_protected = np.array([each in planner.protections for each in columns.ids], dtype=np.bool_)
    stalls = (columns.stall_ratio > settings.plan.pressure_max_ratio) | columns.was_hurt
    rests = columns.refused_until_s > now.now_s
    spared = np.flatnonzero((is_protected | stalls | rests) & (available >= settings.plan.min_move_bytes))
    for row in sorted(spared, key=lambda row: columns.ids[row]):
        figures = {"available_bytes": float(available[row])}
        if stalls[row]:
            code, text = "stalled", "it stalls on memory {stall_ratio} of the time: nothing is taken"
            figures["stall_ratio"] = float(columns.stall_ratio[row])
        elif rests[row]:
            code, text = "refused", "taking from it went wrong: left alone for {rest_s}"
            figures["rest_s"] = float(columns.refused_until_s[row]) - now.now_s
        else:
            code, text = "protected", "{available_bytes} of it were brought back for a phase that has not passed"
        held_back.append(Reason(code=code, text=f"{columns.ids[row]}: {text}", figures=figures))
    result[is_protected | stalls | rests] = 0
    return result


def _order(now: Situation, sizes: Sizes, growth: Growth, available: Int64, least: int) -> list[int]:
    """Return the donors, first the one whose pages are missed latest and cost least to bring back.

    A forecast of when a workload comes back outweighs its idle age: what recurs is the nearer to its next
    phase the longer it has been idle. The age decides among those of which the forecast says the same.
    """
    columns = now.workloads
    above = now.held_bytes + growth.by_partition_bytes > sizes.size_bytes
    above |= now.held_bytes > now.ceiling_bytes
    rows = [int(row) for row in np.flatnonzero(available >= least) if above[columns.partition_row[row]]]
    score = _score(columns.idle_s, available, now.partitions.weights[np.maximum(columns.partition_row, 0)])
    return sorted(rows, key=lambda row: (-float(columns.unneeded_s[row]), -float(score[row]), columns.ids[row]))


def _score(idle_s: Float64, size_bytes: Int64, weights: Float64) -> Float64:
    cost_s = _BRING_BACK_FIXED_S + size_bytes / _BRING_BACK_BYTES_PER_S
    return idle_s * size_bytes / cost_s / weights


def _ask(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    settings: Settings,
    row: int,
    size_bytes: int,
    reason: Reason,
) -> tuple[list[PageOut | Reclaim], int]:
    """Share a workload's gift among its idle processes, largest first; return the actions and their sum."""
    partition = now.partitions.names[int(now.workloads.partition_row[row])]
    workload = now.workloads.ids[row]
    if not planner.abilities.page_out:
        cgroup = now.cgroups.states[int(now.workloads.cgroup_row[row])].cgroup
        return [Reclaim(partition=partition, cgroup=cgroup, size_bytes=size_bytes, reason=reason)], size_bytes
    processes = observation.processes
    mine = np.flatnonzero(_is_movable(observation, profiles, settings) & (processes.workload_index == row))
    ordered = sorted(mine, key=lambda each: (-int(processes.anon_bytes[each]), int(processes.pids[each])))
    actions: list[PageOut | Reclaim] = []
    asked = 0
    for each in ordered:
        part = min(int(processes.anon_bytes[each]), size_bytes - asked) // now.page_bytes * now.page_bytes
        if part <= 0:
            break
        process = Instance(pid=int(processes.pids[each]), start_ticks=int(processes.start_ticks[each]))
        actions.append(PageOut(partition=partition, workload=workload, process=process, size_bytes=part, reason=reason))
        asked += part
    return actions, asked


def _is_movable(observation: Observation, profiles: Profiles, settings: Settings) -> Bool:
    # Hundreds of tiny processes are not worth a call each.
    worth = observation.processes.anon_bytes >= max(settings.plan.min_move_bytes // 16, 1)
    has_workload = observation.processes.workload_index >= 0
    return np.asarray(worth & has_workload & (profiles.process_idle_s >= settings.observe.idle_after_s))


def _merged(actions: list[PageOut | Reclaim]) -> tuple[PageOut | Reclaim, ...]:
    """Ask each cgroup once: several workloads may be charged to it."""
    result: dict[object, PageOut | Reclaim] = {}
    for action in actions:
        key: object = action.cgroup if isinstance(action, Reclaim) else action.process
        before = result.get(key)
        if isinstance(action, Reclaim) and isinstance(before, Reclaim):
            size = before.size_bytes + action.size_bytes
            result[key] = Reclaim(
                partition=action.partition, cgroup=action.cgroup, size_bytes=size, reason=before.reason
            )
        else:
            result[key] = action
    return tuple(result.values())


def swap_room_bytes(observation: Observation, settings: Settings) -> int:
    """Return how much more the swap may be filled with."""
    memory = observation.memory
    filled = memory.swap_total_bytes - memory.swap_free_bytes
    room = int(memory.swap_total_bytes * settings.plan.swap_fill_max_ratio) - filled
    return max(min(room, memory.swap_free_bytes), 0)


def _why(now: Situation, sizes: Sizes, growth: Growth, row: int, size_bytes: int, *, is_forced: bool) -> Reason:
    columns, partition = now.workloads, int(now.workloads.partition_row[row])
    figures = {
        "moved_bytes": float(size_bytes),
        "held_bytes": float(columns.held_bytes[row]),
        "cold_bytes": float(columns.cold_bytes[row]),
        "idle_s": float(columns.idle_s[row]),
        "unneeded_s": float(columns.unneeded_s[row]),
        "partition_held_bytes": float(now.held_bytes[partition]),
        "partition_size_bytes": float(sizes.size_bytes[partition]),
        "forecast_use_bytes": float(growth.forecast_use_bytes),
        "growth_bytes": float(growth.by_workload_bytes.sum()),
        "target_bytes": float(now.target_bytes),
        "shortage_bytes": float(growth.shortage_bytes),
        "level": NEED_LEVEL,
        "multiplier": sizes.multiplier,
    }
    if is_forced:
        text = "holds {partition_held_bytes}, more than its partition may; {moved_bytes} of its cold pages leave"
        return Reason(code="above-ceiling", text=text, figures=figures)
    text = (
        "use is forecast at {forecast_use_bytes} ({growth_bytes} of growth to come), above the target of "
        "{target_bytes}; idle for {idle_s}, not expected to need its pages within {unneeded_s}, "
        "so {moved_bytes} of {cold_bytes} cold bytes leave"
    )
    return Reason(code="free-ahead", text=text, figures=figures)


def _wanted(growth: Growth, code: str, text: str, figures: Mapping[str, float] | None = None) -> Reason:
    facts = {"shortage_bytes": float(growth.shortage_bytes), **(figures or {})}
    return Reason(code=code, text="{shortage_bytes} should leave ahead: " + text, figures=facts)
