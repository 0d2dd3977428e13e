# SPDX-License-Identifier: Apache-2.0
"""Bring pages back before they are touched, into room that is there, and only as many as will be needed.

Two occasions: a phase that is forecast within the act horizon, and a workload that has woken and lacks
part of its working set (reading pages back in bulk is several times faster than faulting on them).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import PageIn, Reason
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.plan.growth import Growth
from memsculpt.plan.reclaim import Taken
from memsculpt.plan.situation import NEED_LEVEL, Situation
from memsculpt.plan.state import PlannerState, Protection

# A prefetch of which less than this share was then needed costs more than the faults it spares; down to
# there it is made smaller. (Half is where the measured costs meet: back in bulk 0.76 s a GiB, by faults 1.5.)
_WORTH_RATIO = 0.5
_USELESS_RATIO = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Brought:
    """What is asked to come back in this plan."""

    actions: tuple[PageIn, ...]
    protections: Mapping[WorkloadId, Protection]  # those of before, and the new ones
    held_back: tuple[Reason, ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(action.size_bytes for action in self.actions)


def bring_back(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    growth: Growth,
    taken: Taken,
    limits_bytes: Int64,
    settings: Settings,
    *,
    by_phases: frozenset[WorkloadId] = frozenset(),
) -> Brought:
    """Choose what comes back. `limits_bytes` are the cgroups' limits as this plan leaves them.

    Of busy workloads `by_phases` it is known which blocks they will use next (plan/coming.py): any others would only
    take the room.
    """
    columns, least = now.workloads, settings.plan.min_move_bytes
    protections = dict(planner.protections)
    wanted = _wanted_bytes(now, growth, taken)
    if by_phases:
        wanted[columns.is_active & np.array([each in by_phases for each in columns.ids], np.bool_)] = 0
    rows = [int(row) for row in np.flatnonzero(wanted >= least)]
    if not rows or not settings.plan.prefetch or not planner.abilities.page_in:
        return Brought(actions=(), protections=protections, held_back=())
    held_back: list[Reason] = []
    memory = observation.memory
    spare = int(memory.available_bytes - memory.total_bytes * settings.plan.margin_ratio)
    room = min(now.planned_bytes - int(now.held_bytes.sum()), spare) + taken.size_bytes
    rate = int(planner.page_in_budget_bytes)
    below_limit = _below_limit_bytes(now, taken, limits_bytes)
    until_s = now.now_s + settings.forecast.act_horizon_s + 2.0 * settings.interval_s
    actions: list[PageIn] = []
    for row in sorted(rows, key=lambda row: _rank(now, row)):
        cgroup = int(columns.cgroup_row[row])
        cap = int(below_limit[cgroup]) if cgroup >= 0 else room
        size = min(int(wanted[row]), room, rate, cap) // now.page_bytes * now.page_bytes
        if size < least:
            held_back.append(_why_not(now, row, int(wanted[row]), room, rate, cap))
            continue
        asked = _ask(now, observation, row, size, _why(now, growth, row, size, room, settings))
        size = sum(action.size_bytes for action in asked)
        if size == 0:
            continue
        actions.extend(asked)
        room, rate = room - size, rate - size
        if cgroup >= 0:
            below_limit[cgroup] -= size
        protections[columns.ids[row]] = Protection(brought_at_s=now.now_s, until_s=until_s)
    return Brought(actions=tuple(actions), protections=protections, held_back=tuple(held_back))


def _wanted_bytes(now: Situation, growth: Growth, taken: Taken) -> Int64:
    """Return what each workload lacks of its need and has in swap; nothing of what this plan sends out."""
    columns = now.workloads
    wanted = np.minimum(growth.by_workload_bytes, columns.swapped_bytes)
    useful = columns.page_in_useful_ratio
    share = np.where(useful < _USELESS_RATIO, 0.0, np.minimum(useful / _WORTH_RATIO, 1.0))
    wanted = np.where(share >= 1.0, wanted, np.floor(wanted * share)).astype(np.int64)
    wanted[(taken.by_workload_bytes > 0) | (columns.partition_row < 0)] = 0
    return wanted


def _below_limit_bytes(now: Situation, taken: Taken, limits_bytes: Int64) -> Int64:
    leaving = now.sum_by_cgroup(taken.by_workload_bytes)
    held = np.maximum(now.cgroups.used_bytes - now.sum_by_cgroup(now.workloads.reclaimable_bytes), 0)
    return np.maximum(limits_bytes - held + leaving, 0)


def _rank(now: Situation, row: int) -> tuple[float, float, str]:
    # Who is running lacks pages now; then the more important, and the more useful it was so far.
    columns = now.workloads
    weight = float(now.partitions.weights[int(columns.partition_row[row])])
    return (
        0.0 if columns.is_active[row] else 1.0,
        -weight * float(columns.page_in_useful_ratio[row]),
        columns.ids[row],
    )


def _ask(now: Situation, observation: Observation, row: int, size_bytes: int, reason: Reason) -> list[PageIn]:
    processes = observation.processes
    mine = np.flatnonzero((processes.workload_index == row) & (processes.swapped_bytes >= now.page_bytes))
    ordered = sorted(mine, key=lambda each: (-int(processes.swapped_bytes[each]), int(processes.pids[each])))
    partition = now.partitions.names[int(now.workloads.partition_row[row])]
    actions: list[PageIn] = []
    asked = 0
    for each in ordered:
        part = min(int(processes.swapped_bytes[each]), size_bytes - asked) // now.page_bytes * now.page_bytes
        if part <= 0:
            break
        actions.append(
            PageIn(
                partition=partition,
                workload=now.workloads.ids[row],
                process=Instance(pid=int(processes.pids[each]), start_ticks=int(processes.start_ticks[each])),
                size_bytes=part,
                reason=reason,
            )
        )
        asked += part
    return actions


def _why(now: Situation, growth: Growth, row: int, size_bytes: int, room_bytes: int, settings: Settings) -> Reason:
    columns = now.workloads
    figures = {
        "moved_bytes": float(size_bytes),
        "held_bytes": float(columns.held_bytes[row]),
        "swapped_bytes": float(columns.swapped_bytes[row]),
        "need_bytes": float(columns.need_bytes[row]),
        "entitled_bytes": float(growth.entitled_bytes[row]),
        "working_set_bytes": float(columns.working_set_bytes[row]),
        "room_bytes": float(room_bytes),
        "level": NEED_LEVEL,
        "horizon_s": settings.forecast.act_horizon_s,
        "useful_ratio": float(columns.page_in_useful_ratio[row]),
    }
    if columns.is_active[row]:
        text = (
            "has woken with {swapped_bytes} in swap and {held_bytes} in memory, its working set is "
            "{working_set_bytes}; {moved_bytes} come back at once"
        )
        return Reason(code="woken", text=text, figures=figures)
    text = (
        "is forecast to need {need_bytes} within {horizon_s} (level {level}) and holds {held_bytes}; "
        "{moved_bytes} come back into {room_bytes} of room"
    )
    return Reason(code="prefetch", text=text, figures=figures)


def _why_not(now: Situation, row: int, wanted: int, room: int, rate: int, below_limit: int) -> Reason:
    figures = {
        "wanted_bytes": float(wanted),
        "room_bytes": float(room),
        "rate_bytes": float(rate),
        "below_limit_bytes": float(below_limit),
    }
    name = now.workloads.ids[row]
    if rate <= min(room, below_limit):
        text = "{wanted_bytes} should come back, and the rate limit leaves {rate_bytes}"
        return Reason(code="rate", text=f"{name}: {text}", figures=figures)
    if below_limit < room:
        text = "{wanted_bytes} should come back, and its limit leaves {below_limit_bytes}"
        return Reason(code="below-limit", text=f"{name}: {text}", figures=figures)
    text = "{wanted_bytes} should come back, and there is room for {room_bytes}"
    return Reason(code="no-room", text=f"{name}: {text}", figures=figures)
