# SPDX-License-Identifier: Apache-2.0
"""Bring the planner's memory up to date: budgets refill, promises expire, phases pass, charges shrink."""

from dataclasses import replace

import numpy as np

from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import PageIn, PageOut, Reclaim, SculptPool
from memsculpt.domain.pool import Prefetch, Promote
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import Instance
from memsculpt.plan.state import Moved, PlannerState, Protection, Reservation

_MAX_TICKS = 2.0  # budgets that were not used add up for so many ticks, then they are lost
_RESERVATION_GRACE_S = 60.0  # use that has not caught up so long after `within` is not coming


def refreshed(planner: PlannerState, observation: Observation, profiles: Profiles, settings: Settings) -> PlannerState:
    """Return the state as it stands at the beginning of this tick."""
    now_s, tick_s = observation.time_s, settings.interval_s
    elapsed_s = tick_s if planner.planned_at_s is None else max(now_s - planner.planned_at_s, 0.0)

    def refilled(budget_bytes: float, rate_bytes_per_s: float) -> float:
        return min(budget_bytes + rate_bytes_per_s * elapsed_s, rate_bytes_per_s * tick_s * _MAX_TICKS)

    row_of = {each: row for row, each in enumerate(observation.workloads.ids)} if planner.protections else {}
    return replace(
        planner,
        page_out_budget_bytes=refilled(planner.page_out_budget_bytes, settings.plan.page_out_bytes_per_s),
        page_in_budget_bytes=refilled(planner.page_in_budget_bytes, settings.plan.page_in_bytes_per_s),
        protections={
            each: followed
            for each, protection in planner.protections.items()
            if each in row_of
            for followed in (_followed(protection, float(profiles.idle_s[row_of[each]]), now_s, settings),)
            if followed is not None
        },
        reservations=tuple(each for each in planner.reservations if _still_reserved(each, observation, now_s)),
        moves=tuple(_shrunk(each, observation) for each in planner.moves if process_rows(each.processes, observation)),
    )


def after(planner: PlannerState, actions: tuple[object, ...], observation: Observation) -> PlannerState:
    """Return the state with what this plan spends taken off its budgets."""
    out = sum(action.size_bytes for action in actions if isinstance(action, PageOut))
    out += sum(each.size_bytes for each in actions if isinstance(each, Reclaim) and not each.only_cache)
    sculpts = [action for action in actions if isinstance(action, SculptPool)]
    out += sum(action.leaving_bytes for action in sculpts)
    back = sum(action.size_bytes for action in actions if isinstance(action, PageIn))
    back += sum(action.size_bytes for action in sculpts if isinstance(action.request, Prefetch | Promote))
    return replace(
        planner,
        planned_at_s=observation.time_s,
        host_some_stall_s=observation.memory.some_stall_s,
        page_out_budget_bytes=planner.page_out_budget_bytes - out,
        page_in_budget_bytes=planner.page_in_budget_bytes - back,
    )


def _followed(protection: Protection, idle_s: float, now_s: float, settings: Settings) -> Protection | None:
    """Keep a protection until its phase has passed, or did not come."""
    has_run = protection.has_run or idle_s < now_s - protection.brought_at_s
    is_idle = idle_s >= settings.observe.idle_after_s
    if has_run and is_idle:
        return None
    if not has_run and now_s >= protection.until_s:
        return None
    return replace(protection, has_run=has_run)


def _still_reserved(reservation: Reservation, observation: Observation, now_s: float) -> bool:
    row, held = reserved_row(reservation, observation)
    if row is None:
        return False
    due_s = reservation.asked_at_s + reservation.within_s
    if now_s < due_s:
        return True
    return held < reservation.target_bytes and now_s < due_s + _RESERVATION_GRACE_S


def reserved_row(reservation: Reservation, observation: Observation) -> tuple[int | None, int]:
    """Return the workload that a reservation belongs to, and what those who asked hold of it.

    A workload that is a cgroup ends when its processes are moved: then they are found in their new one.
    """
    workloads = observation.workloads
    alive = process_rows(reservation.processes, observation)
    if reservation.workload in workloads.ids:
        row = workloads.ids.index(reservation.workload)
        if not reservation.processes or any(int(observation.processes.workload_index[each]) == row for each in alive):
            return row, int(workloads.resident_bytes[row])
    if not alive:
        return None, 0
    return int(observation.processes.workload_index[alive[0]]), _resident_bytes(alive, observation)


def process_rows(processes: tuple[Instance, ...], observation: Observation) -> list[int]:
    """Return the rows of those processes that are still there, by pid."""
    seen = observation.processes
    return [
        int(row)
        for process in processes
        for row in np.flatnonzero((seen.pids == process.pid) & (seen.start_ticks == process.start_ticks))
        if seen.workload_index[row] >= 0
    ]


def _resident_bytes(rows: list[int], observation: Observation) -> int:
    seen = observation.processes
    return int((seen.anon_bytes + seen.file_bytes + seen.shmem_bytes)[rows].sum())


def _shrunk(left: Moved, observation: Observation) -> Moved:
    """Bound what stays charged by what can still be.

    That is neither more than the old cgroup is charged beyond its own workloads, nor more than the moved
    processes still have in memory.
    """
    used = next((state.used_bytes for state in observation.cgroups if state.cgroup == left.from_cgroup), 0)
    workloads, alive = observation.workloads, process_rows(left.processes, observation)
    moved_to = {int(observation.processes.workload_index[row]) for row in alive}
    own = sum(
        int(workloads.resident_bytes[row] + workloads.kernel_bytes[row])
        for row in range(len(workloads.ids))
        if workloads.cgroups[row] == left.from_cgroup and row not in moved_to
    )
    resident = _resident_bytes(alive, observation)
    return replace(left, charged_bytes=max(min(left.charged_bytes, used - own, resident), 0))
