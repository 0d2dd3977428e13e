# SPDX-License-Identifier: Apache-2.0
"""Sets of blocks that a busy process will use next come back before their phase begins, in place of what it leaves.

What a pool's phases lack, and when, is told by its summary; here it is decided how much of it is moved in this tick.
Room is what is free, and blocks of the same pool that the phase does not use. A phase is due when the time until its
earliest likely onset is no more than moving takes and a margin that experience has taught. A tick moves for half of its
length at most, so that everybody else is planned for in time; what is left comes with the next ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.phases import Coming, Sign
from memsculpt.domain.plan import Reason, SculptPool
from memsculpt.domain.pool import WINDOW_MOST_S, PoolSummary, Prefetch
from memsculpt.domain.settings import Sculpt, Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.plan.prefetch import Brought
from memsculpt.plan.reclaim import Taken, swap_room_bytes
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import PlannerState

MOVING_RATIO = 0.5  # of a tick

_SIGNS = {
    Sign.CURRENT: "it has begun",
    Sign.SUCCESSOR: "it follows what is there now",
    Sign.PERIOD: "it comes at regular times",
    Sign.TRIGGER: "processor time or I/O has changed as before it",
    Sign.STREAM: "blocks are touched one after the other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """What comes back for phases in this plan."""

    actions: tuple[SculptPool, ...] = ()
    held_back: tuple[Reason, ...] = ()


@dataclass(slots=True)
class _Left:
    """What may still be moved, while pools are served one after the other."""

    room_bytes: int
    in_bytes: int
    out_bytes: int
    swap_bytes: int
    busy_s: float
    below_limit_bytes: Int64


@dataclass(frozen=True, slots=True)
class _Fitted:
    """How much of what a phase lacks fits now; of it `room_bytes` into free memory."""

    size_bytes: int
    room_bytes: int
    all_bytes: int  # that would fit without the bounds of this tick
    all_s: float  # what moving those takes


def known_by_phases(pools: Sequence[PoolSummary]) -> frozenset[WorkloadId]:
    """Return the workloads of which it is known which set comes next: nothing else of theirs is brought back."""
    return frozenset(one.workload for one in pools if one.has_phases)


def bring_phases(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    taken: Taken,
    brought: Brought,
    limits_bytes: Int64,
    pools: Sequence[PoolSummary],
    settings: Settings,
) -> Arriving:
    """Choose whose phases come back now. `limits_bytes` are the cgroups' limits as this plan leaves them."""
    coming = [one for one in pools if one.coming]
    able = planner.abilities.page_in and settings.plan.prefetch and settings.plan.sculpt is Sculpt.ALL
    if not coming or not able:
        return Arriving()
    left = _what_is_left(now, planner, observation, taken, brought, limits_bytes, settings)
    row_of = {each: row for row, each in enumerate(now.workloads.ids)}
    served = {action.workload for action in brought.actions}
    actions: list[SculptPool] = []
    held_back: list[Reason] = []
    for pool in sorted(coming, key=lambda one: (one.coming[0].onset_s[0], one.pool)):
        row = row_of.get(pool.workload, -1)
        if row < 0 or int(now.workloads.partition_row[row]) < 0 or pool.workload in served:
            continue
        for phase in pool.coming:
            fitted = _fitted(now, planner, left, phase, row)
            lead_s = fitted.all_s / MOVING_RATIO + phase.margin_s
            if fitted.all_bytes <= 0 or phase.onset_s[0] - lead_s > now.now_s + settings.interval_s:
                continue
            if fitted.size_bytes < min(settings.plan.min_move_bytes, phase.lacking_bytes):
                held_back.append(_why_not(now, pool, phase, fitted, left))
                break
            actions.append(_action(now, pool, phase, fitted, row, settings))
            _take(now, left, phase, fitted, row)
            break
    return Arriving(actions=tuple(actions), held_back=tuple(held_back))


def _what_is_left(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    taken: Taken,
    brought: Brought,
    limits_bytes: Int64,
    settings: Settings,
) -> _Left:
    memory = observation.memory
    spare = int(memory.available_bytes - memory.total_bytes * settings.plan.margin_ratio)
    held = np.maximum(now.cgroups.used_bytes - now.sum_by_cgroup(now.workloads.reclaimable_bytes), 0)
    coming = np.zeros(len(now.workloads.ids), np.int64)
    rows = {each: row for row, each in enumerate(now.workloads.ids)}
    for action in brought.actions:
        coming[rows[action.workload]] += action.size_bytes
    below = limits_bytes - held + now.sum_by_cgroup(taken.by_workload_bytes) - now.sum_by_cgroup(coming)
    return _Left(
        room_bytes=min(now.planned_bytes - int(now.held_bytes.sum()), spare) + taken.size_bytes - brought.size_bytes,
        in_bytes=int(planner.page_in_budget_bytes) - brought.size_bytes,
        out_bytes=int(planner.page_out_budget_bytes) - taken.size_bytes,
        swap_bytes=swap_room_bytes(observation, settings) - taken.size_bytes,
        busy_s=MOVING_RATIO * settings.interval_s,
        below_limit_bytes=below,
    )


def _fitted(now: Situation, planner: PlannerState, left: _Left, phase: Coming, row: int) -> _Fitted:
    """Return how much may come now; what leaves is as much as comes beyond the room, and what that lacks already."""
    cgroup = int(now.workloads.cgroup_row[row])
    room = left.room_bytes if cgroup < 0 else min(left.room_bytes, int(left.below_limit_bytes[cgroup]))
    partition = int(now.workloads.partition_row[row])
    # Less is held afterwards where room is below 0, and that may not go below what is promised.
    room = max(room, -max(int(now.held_bytes[partition] - now.lower_bytes[partition]), 0))
    spare = phase.spare_bytes if planner.abilities.page_out else 0
    page = now.page_bytes

    def sizes(out_bytes: int, in_bytes: int) -> tuple[int, int]:
        size = min(phase.lacking_bytes, in_bytes, room + min(spare, out_bytes)) // page * page
        return max(size, 0), max(size - room, 0)

    def takes_s(size: int, leaves: int) -> float:
        return size / phase.in_bytes_per_s + leaves / phase.out_bytes_per_s

    all_size, all_leaves = sizes(left.swap_bytes, phase.lacking_bytes)
    all_s = takes_s(all_size, all_leaves)
    # In the time that is left: as much as comes into the room, or as comes in exchange for what leaves.
    per_byte_s = 1.0 / phase.in_bytes_per_s + 1.0 / phase.out_bytes_per_s
    exchanged = (left.busy_s + room / phase.out_bytes_per_s) / per_byte_s
    in_time = int(max(0.0, min(left.busy_s * phase.in_bytes_per_s, exchanged)))
    size, _ = sizes(min(left.out_bytes, left.swap_bytes), min(left.in_bytes, in_time))
    return _Fitted(size_bytes=size, room_bytes=min(room, size), all_bytes=all_size, all_s=all_s)


def _take(now: Situation, left: _Left, phase: Coming, fitted: _Fitted, row: int) -> None:
    leaves = fitted.size_bytes - fitted.room_bytes
    left.in_bytes -= fitted.size_bytes
    left.out_bytes -= leaves
    left.swap_bytes -= leaves
    left.busy_s -= fitted.size_bytes / phase.in_bytes_per_s + leaves / phase.out_bytes_per_s
    left.room_bytes -= fitted.room_bytes
    cgroup = int(now.workloads.cgroup_row[row])
    if cgroup >= 0:
        left.below_limit_bytes[cgroup] -= fitted.room_bytes


def _action(
    now: Situation, pool: PoolSummary, phase: Coming, fitted: _Fitted, row: int, settings: Settings
) -> SculptPool:
    onset_s = max(phase.onset_s[1] - now.now_s, 0.0)
    figures = {
        "moved_bytes": float(fitted.size_bytes),
        "lacking_bytes": float(phase.lacking_bytes),
        "leaving_bytes": float(fitted.size_bytes - fitted.room_bytes),
        "room_bytes": float(fitted.room_bytes),
        "phase": float(phase.phase),
        "probability_ratio": phase.probability,
        "onset_s": onset_s,
        "earliest_s": max(phase.onset_s[0] - now.now_s, 0.0),
        "margin_s": phase.margin_s,
    }
    when = "is there" if phase.sign is Sign.CURRENT else "is expected in {onset_s}"
    text = (
        f"phase {{phase}} {when} ({_SIGNS[phase.sign]}, probability {{probability_ratio}}) and lacks "
        "{lacking_bytes}; {moved_bytes} come back, {leaving_bytes} that it does not use leave for it"
    )
    return SculptPool(
        partition=now.partitions.names[int(now.workloads.partition_row[row])],
        workload=pool.workload,
        process=pool.process,
        pool=pool.pool,
        request=Prefetch(
            window_s=min(max(onset_s, settings.interval_s), WINDOW_MOST_S),
            size_bytes=fitted.size_bytes,
            room_bytes=fitted.room_bytes,
            phase=phase.phase,
        ),
        reason=Reason(code="phase", text=text, figures=figures),
    )


def _why_not(now: Situation, pool: PoolSummary, phase: Coming, fitted: _Fitted, left: _Left) -> Reason:
    figures = {
        "lacking_bytes": float(phase.lacking_bytes),
        "phase": float(phase.phase),
        "onset_s": max(phase.onset_s[1] - now.now_s, 0.0),
        "room_bytes": float(max(fitted.room_bytes, 0)),
        "spare_bytes": float(phase.spare_bytes),
        "rate_bytes": float(max(min(left.in_bytes, left.out_bytes), 0)),
        "swap_bytes": float(max(left.swap_bytes, 0)),
    }
    text = (
        "phase {phase}, expected in {onset_s}, lacks {lacking_bytes}: there is room for {room_bytes}, {spare_bytes} "
        "could leave for it, and rate and swap allow {rate_bytes} and {swap_bytes} of that now"
    )
    return Reason(code="phase-waits", text=f"{pool.pool}: {text}", figures=figures)
