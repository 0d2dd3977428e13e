# SPDX-License-Identifier: Apache-2.0
"""From sizes to the budgets of cgroups: what is written, when it is held back, and when it is lifted.

Squeezing is what peers have caused outages with: a memory.high below what can be reclaimed froze services
for 90 minutes. So a limit follows the use down, it never pushes; it stays above what cannot be reclaimed;
and where use has come up to it (a *squeeze*), it is lifted at once when the workload stalls, and after
`squeeze_max_s` at the latest. On cgroup v1 a process that touches its pages at random under
a tight limit is OOM-killed although swap is free (measured), so there a limit also keeps clear of
everything that the workload is known to have needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.plan import LimitKind, Reason, SetLimit
from memsculpt.domain.settings import Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.plan.growth import Growth
from memsculpt.plan.partitions import Sizes
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import Asked, PlannerState, Squeeze

NEAR_RATIO = 0.98  # use above this share of the limit: the limit is felt
_COMFORT_RATIO = 1.03  # a limit is not set closer to the use than this, so that it is not felt
_SAFE_PEAK_RATIO = 1.05  # v1: above the most ever needed
_LIFT_RATIO = 1.1  # a lifted limit is at least this far above the use
_CHANGE_RATIO = 0.05  # smaller changes are not worth a write
_ASK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Budgets:
    """The changes of limits in this plan, and what is to be remembered of them."""

    lowered: tuple[SetLimit, ...]
    raised: tuple[SetLimit, ...]
    planned_bytes: Int64  # per cgroup: its limit as this plan leaves it
    squeezes: Mapping[CgroupPath, Squeeze]
    resting_until_s: Mapping[CgroupPath, float]
    guarantees: Mapping[CgroupPath, Asked]
    held_back: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cgroups:
    """What the rules below look at, per cgroup."""

    partition: Int64
    is_fixed: Bool
    used_bytes: Int64
    held_bytes: Int64  # used without the page cache that leaves freely
    now_bytes: Int64  # the limit as it is
    size_bytes: Int64  # its part of the partition's size
    ceiling_bytes: Int64
    least_bytes: Int64  # what cannot be reclaimed, what is guaranteed, the floor
    is_hurt: Bool  # stalls, hit its limit, was killed
    is_resting: Bool


def set_budgets(
    now: Situation,
    planner: PlannerState,
    sizes: Sizes,
    growth: Growth,
    leaving_bytes: int,
    settings: Settings,
    *,
    holds_still: bool,
) -> Budgets:
    """Choose the changes of limits. `holds_still`: the agent backs off, only lifting is allowed."""
    if not now.cgroups.states or not planner.abilities.limits:
        return _nothing(now, planner)
    each = _columns(now, planner, sizes, settings)
    lifted, squeezes, resting = _squeezes(now, planner, each, settings)
    target = _target_bytes(now, planner, each, growth, leaving_bytes, settings)
    if holds_still:
        target = each.now_bytes.copy()
    target = _not_down_at_once(planner, each, target, now, settings)
    is_changed = _is_worth(now, each, target, settings) & ~lifted
    lowered: list[SetLimit] = []
    raised: list[SetLimit] = []
    planned = each.now_bytes.copy()
    for row in map(int, np.flatnonzero(is_changed | lifted)):
        path = now.cgroups.states[row].cgroup
        if lifted[row]:
            action = _lift(now, each, row, squeezes.pop(path, None))
            resting[path] = now.now_s + settings.plan.squeeze_max_s
        else:
            action = _change(now, each, sizes, row, int(target[row]), settings)
            if action.lift_at_s is not None:
                squeezes[path] = Squeeze(limit_bytes=action.to_bytes, began_at_s=now.now_s, lift_at_s=action.lift_at_s)
        planned[row] = action.to_bytes
        (lowered if action.to_bytes < action.from_bytes else raised).append(action)
    promised, guarantees = _promise(now, planner, settings)
    return Budgets(
        lowered=tuple(sorted(lowered, key=_by_cgroup)),
        raised=tuple(sorted(promised, key=_by_cgroup)) + tuple(sorted(raised, key=_by_cgroup)),
        planned_bytes=planned,
        squeezes=squeezes,
        resting_until_s=resting,
        guarantees=guarantees,
        held_back=_too_small(now, each),
    )


def _nothing(now: Situation, planner: PlannerState) -> Budgets:
    return Budgets(
        lowered=(),
        raised=(),
        planned_bytes=np.where(_is_fixed(now), now.cgroups.hard_limit_bytes, now.cgroups.limit_bytes),
        squeezes=planner.squeezes,
        resting_until_s=planner.resting_until_s,
        guarantees=planner.guarantees,
        held_back=(),
    )


def _is_fixed(now: Situation) -> Bool:
    return np.asarray(now.partitions.is_fixed[now.cgroups.partition_row], dtype=np.bool_)


def _columns(now: Situation, planner: PlannerState, sizes: Sizes, settings: Settings) -> _Cgroups:
    workloads, cgroups, partition = now.workloads, now.cgroups, now.cgroups.partition_row
    is_fixed = _is_fixed(now)
    need = now.sum_by_cgroup(workloads.need_bytes)
    active_need = now.sum_by_cgroup(workloads.needed_bytes + workloads.unevictable_bytes)
    may_leave = now.sum_by_cgroup(workloads.cold_bytes + workloads.reclaimable_bytes)
    least = np.maximum(np.minimum(active_need, cgroups.used_bytes), cgroups.used_bytes - may_leave)
    least = np.maximum(least, _split(now, now.lower_bytes, need))
    stalls = (workloads.stall_ratio > settings.plan.pressure_max_ratio) | workloads.was_hurt
    is_hurt = now.sum_by_cgroup(stalls.astype(np.int64)) > 0
    resting = {path for path, until_s in planner.resting_until_s.items() if until_s > now.now_s}
    return _Cgroups(
        partition=partition,
        is_fixed=is_fixed,
        used_bytes=cgroups.used_bytes,
        held_bytes=np.maximum(cgroups.used_bytes - now.sum_by_cgroup(workloads.reclaimable_bytes), 0),
        now_bytes=np.where(is_fixed, cgroups.hard_limit_bytes, cgroups.limit_bytes),
        size_bytes=_split(now, sizes.size_bytes, need),
        # No ceiling is no ceiling for each of several cgroups, too.
        ceiling_bytes=np.where(
            now.ceiling_bytes[partition] >= now.ceiling_most_bytes,
            now.ceiling_most_bytes,
            _split(now, now.ceiling_bytes, need),
        ),
        least_bytes=least,
        is_hurt=is_hurt | (now.host_stall_ratio > settings.plan.pressure_max_ratio),
        is_resting=np.array([state.cgroup in resting for state in cgroups.states], dtype=np.bool_)
        if resting
        else np.zeros(len(cgroups.states), np.bool_),
    )


def _split(now: Situation, of_partition: Int64, need: Int64) -> Int64:
    """Share a partition's bytes among its cgroups: to each its need, the rest evenly; too little: by need."""
    partition, count = now.cgroups.partition_row, len(now.partitions.names)
    total = of_partition[partition]
    number = np.bincount(partition, minlength=count)[partition]
    needed = np.bincount(partition, weights=need.astype(np.float64), minlength=count).astype(np.int64)[partition]
    spare = total - needed
    by_need = np.floor(total * (need / np.maximum(needed, 1))).astype(np.int64)
    shared = np.where(spare >= 0, need + spare // number, by_need)
    return np.where(number == 1, total, shared) // now.page_bytes * now.page_bytes


def _target_bytes(
    now: Situation,
    planner: PlannerState,
    each: _Cgroups,
    growth: Growth,
    leaving_bytes: int,
    settings: Settings,
) -> Int64:
    """Return the limit that each cgroup should have now, on its way to its size."""
    workloads = now.workloads
    towards = _towards_size(now, each, growth, leaving_bytes)
    # Memory that is free is free for whoever wakes or grows before the next tick: a limit in between half
    # and all of the free room is as good as another, and stays. When there is none, the size decides.
    expected = int(growth.by_partition_bytes.sum())
    free = max(now.planned_bytes - int(now.held_bytes.sum()) + leaving_bytes - expected, 0)
    target = np.maximum(towards, np.clip(each.now_bytes, each.held_bytes + free // 2, each.held_bytes + free))
    # Page cache that nobody needs room for may stay.
    use = each.held_bytes if growth.shortage_bytes > 0 else each.used_bytes
    comfort = np.ceil(use * _COMFORT_RATIO).astype(np.int64) + now.page_bytes
    growing = np.ceil(workloads.growth_bytes_per_s * 2.0 * settings.interval_s).astype(np.int64)
    target = np.maximum(np.maximum(target, comfort), each.held_bytes + now.sum_by_cgroup(growing))
    if planner.abilities.protects_by == "soft":
        known = np.maximum(workloads.peak_bytes, workloads.working_set_bytes)
        target = np.maximum(target, np.ceil(now.sum_by_cgroup(known) * _SAFE_PEAK_RATIO).astype(np.int64))
    # Of what starts, or has no past yet, nobody knows how far it goes: only its ceiling binds it.
    unknown = now.sum_by_cgroup((~workloads.is_settled).astype(np.int64)) > 0
    target = np.where(unknown, UNLIMITED_BYTES, target)
    target = np.minimum(target, each.ceiling_bytes)
    target = np.where(each.is_fixed, each.size_bytes, target)
    above_least = np.ceil(each.least_bytes / NEAR_RATIO).astype(np.int64) + now.page_bytes
    target = np.where(each.least_bytes > target, above_least, target)
    target = -(-target // now.page_bytes) * now.page_bytes
    return np.where(target >= now.ceiling_most_bytes, UNLIMITED_BYTES, target)


def _towards_size(now: Situation, each: _Cgroups, growth: Growth, leaving_bytes: int) -> Int64:
    """Return how far each limit may go towards its size: the growth that is forecast first, then the spare.

    Room is what is free once this plan's donors have given, and what the kernel itself would take first:
    cold bytes of cgroups that hold more than their size. So raised limits cannot be outgrown together at
    the expense of what is in use.
    """
    may_grow = np.maximum(each.size_bytes - each.held_bytes, 0)
    expected = np.minimum(now.sum_by_cgroup(growth.by_workload_bytes), may_grow)
    above = np.maximum(each.held_bytes - each.size_bytes, 0)
    surplus = int(np.minimum(above, now.sum_by_cgroup(now.workloads.cold_bytes)).sum())
    room = max(now.planned_bytes - int(now.held_bytes.sum()) + max(leaving_bytes, surplus), 0)
    first = min(room / max(int(expected.sum()), 1), 1.0)
    spare = max(room - int(expected.sum()), 0) / max(int((may_grow - expected).sum()), 1)
    grown = np.floor(expected * first) + np.floor((may_grow - expected) * min(spare, 1.0))
    towards = np.where(may_grow > 0, each.held_bytes + grown.astype(np.int64), each.size_bytes)
    comfort = np.ceil((each.held_bytes + np.floor(expected * first)) * _COMFORT_RATIO).astype(np.int64)
    return np.maximum(towards, comfort + now.page_bytes)


def _not_down_at_once(
    planner: PlannerState, each: _Cgroups, target: Int64, now: Situation, settings: Settings
) -> Int64:
    """Hold a limit up where it hurts or was just lifted, and bring others down at the configured rate."""
    elapsed_s = settings.interval_s if planner.planned_at_s is None else now.now_s - planner.planned_at_s
    step = int(settings.plan.shrink_bytes_per_s * min(max(elapsed_s, 0.0), 2.0 * settings.interval_s))
    is_set = each.now_bytes < now.ceiling_most_bytes
    # A limit that was never set comes down to the use at once: nothing is squeezed by that.
    step_from = np.where(is_set, each.now_bytes, np.maximum(each.used_bytes, target))
    lowest = np.maximum(step_from - step, 0) // now.page_bytes * now.page_bytes
    target = np.where(target < each.now_bytes, np.maximum(target, np.minimum(lowest, each.now_bytes)), target)
    holds = each.is_hurt | each.is_resting
    return np.where(holds, np.maximum(target, each.now_bytes), target)


def _is_worth(now: Situation, each: _Cgroups, target: Int64, settings: Settings) -> Bool:
    change = np.abs(target - each.now_bytes)
    scale = np.minimum(np.minimum(target, each.now_bytes), now.ceiling_most_bytes)
    worth = change >= np.maximum(settings.plan.min_move_bytes, np.floor(scale * _CHANGE_RATIO))
    is_felt = each.held_bytes >= NEAR_RATIO * each.now_bytes
    exact = each.is_fixed | ((each.now_bytes > each.ceiling_bytes) & (each.ceiling_bytes < now.ceiling_most_bytes))
    return np.asarray((change > 0) & (worth | exact | (is_felt & (target > each.now_bytes))), dtype=np.bool_)


def _squeezes(
    now: Situation, planner: PlannerState, each: _Cgroups, settings: Settings
) -> tuple[Bool, dict[CgroupPath, Squeeze], dict[CgroupPath, float]]:
    """Follow the squeezes: which limits are lifted now, which are felt, and which rest after a lift.

    A limit at the ceiling (or a fixed size) that use has grown into is what the configuration asks for, and
    no squeeze; a limit below what is held is one wherever it lies. Nothing is ever renewed: a limit that is
    felt moves up with the use, a little per tick, and that is a new one.
    """
    states = now.cgroups.states
    resting = {path: until_s for path, until_s in planner.resting_until_s.items() if until_s > now.now_s}
    most = np.where(each.is_fixed, each.size_bytes, each.ceiling_bytes)
    is_over = each.held_bytes > each.now_bytes
    is_felt = (each.held_bytes >= NEAR_RATIO * each.now_bytes) & ((each.now_bytes < most) | is_over)
    lifted = np.zeros(len(states), np.bool_)
    squeezes: dict[CgroupPath, Squeeze] = {}
    for row in map(int, np.flatnonzero(is_felt)):
        path, limit = states[row].cgroup, int(each.now_bytes[row])
        squeeze = planner.squeezes.get(path)
        if squeeze is None or squeeze.limit_bytes != limit:
            lift_at_s = now.now_s + settings.plan.squeeze_max_s
            squeeze = Squeeze(limit_bytes=limit, began_at_s=now.now_s, lift_at_s=lift_at_s)
        lifted[row] = bool(each.is_hurt[row]) or now.now_s >= squeeze.lift_at_s
        squeezes[path] = squeeze
    return lifted, squeezes, resting


def _kind(each: _Cgroups, row: int) -> LimitKind:
    return LimitKind.HARD if each.is_fixed[row] else LimitKind.LIMIT


def _lift(now: Situation, each: _Cgroups, row: int, squeeze: Squeeze | None) -> SetLimit:
    ceiling = int(each.size_bytes[row] if each.is_fixed[row] else each.ceiling_bytes[row])
    above_use = -(-int(each.used_bytes[row] * _LIFT_RATIO) // now.page_bytes) * now.page_bytes
    to_bytes = max(ceiling, above_use, int(each.now_bytes[row]))
    to_bytes = UNLIMITED_BYTES if to_bytes >= now.ceiling_most_bytes else to_bytes
    figures = {"used_bytes": float(each.used_bytes[row]), "limit_bytes": float(each.now_bytes[row])}
    if each.is_hurt[row]:
        figures["host_stall_ratio"] = now.host_stall_ratio
        text = "it holds {used_bytes} under a limit of {limit_bytes}, and stalls on memory or hit the limit: lifted"
        reason = Reason(code="lift-pressure", text=text, figures=figures)
    else:
        figures["squeezed_s"] = now.now_s - (squeeze.began_at_s if squeeze is not None else now.now_s)
        text = "it has been squeezed to {limit_bytes} for {squeezed_s}, longer than a squeeze may last: lifted"
        reason = Reason(code="lift-expired", text=text, figures=figures)
    return _set(now, each, row, to_bytes, reason)


def _change(now: Situation, each: _Cgroups, sizes: Sizes, row: int, to_bytes: int, settings: Settings) -> SetLimit:
    partition = int(each.partition[row])
    figures = {
        "to_bytes": float(to_bytes),
        "used_bytes": float(each.used_bytes[row]),
        "held_bytes": float(each.held_bytes[row]),
        "partition_size_bytes": float(sizes.size_bytes[partition]),
        "unreclaimable_bytes": float(each.least_bytes[row]),
        "shortfall_ratio": float(sizes.shortfall_ratio[partition]),
        "multiplier": sizes.multiplier,
        "level": float(sizes.level_ratio[partition]),
        "horizon_s": settings.forecast.act_horizon_s,
    }
    if each.is_fixed[row]:
        reason = Reason(
            code="fixed-size", text="its partition has a fixed size of {partition_size_bytes}", figures=figures
        )
    elif to_bytes > int(each.now_bytes[row]):
        text = (
            "its partition is to have {partition_size_bytes} (level {level} of its forecast over {horizon_s}); "
            "it uses {used_bytes}, and there is room up to {to_bytes}"
        )
        reason = Reason(code="grow", text=text, figures=figures)
    else:
        text = (
            "its partition is to have {partition_size_bytes} (level {level} of its forecast over {horizon_s}); "
            "it uses {used_bytes}, so its limit follows down to {to_bytes}"
        )
        reason = Reason(code="shrink", text=text, figures=figures)
    is_squeeze = each.used_bytes[row] > NEAR_RATIO * to_bytes
    lift_at_s = now.now_s + settings.plan.squeeze_max_s if is_squeeze else None
    return _set(now, each, row, to_bytes, reason, lift_at_s=lift_at_s)


def _set(
    now: Situation, each: _Cgroups, row: int, to_bytes: int, reason: Reason, lift_at_s: float | None = None
) -> SetLimit:
    return SetLimit(
        partition=now.cgroups.states[row].partition,
        cgroup=now.cgroups.states[row].cgroup,
        kind=_kind(each, row),
        from_bytes=int(each.now_bytes[row]),
        to_bytes=to_bytes,
        reason=reason,
        lift_at_s=lift_at_s,
    )


def _promise(
    now: Situation, planner: PlannerState, settings: Settings
) -> tuple[list[SetLimit], Mapping[CgroupPath, Asked]]:
    """Ask the kernel for the guarantees, once; again only when they are not there a minute later.

    v1 has a soft limit instead, which works by comparison: reclaim first takes from those above theirs. So
    there everybody gets one, as soon as anybody has a guarantee.
    """
    promised = now.partitions.promised_bytes
    is_soft = planner.abilities.protects_by == "soft"
    if not promised.any():
        return [], planner.guarantees
    wanted_of = np.maximum(promised, np.minimum(settings.plan.floor_bytes, now.ceiling_bytes)) if is_soft else promised
    wanted = _split(now, wanted_of, now.sum_by_cgroup(now.workloads.need_bytes))
    # Where several cgroups share a guarantee their parts follow the need, and small steps are not worth it.
    number = np.bincount(now.cgroups.partition_row, minlength=len(promised))[now.cgroups.partition_row]
    coarse = np.maximum(settings.plan.min_move_bytes, wanted // 10)
    differs = np.abs(wanted - now.cgroups.guarantee_bytes) >= np.where(number == 1, now.page_bytes, coarse)
    guarantees = dict(planner.guarantees)
    actions: list[SetLimit] = []
    for row in np.flatnonzero(differs):
        state, size = now.cgroups.states[row], int(wanted[row])
        before = guarantees.get(state.cgroup)
        if before is None and size == 0:
            continue
        if before is not None and now.now_s - before.asked_at_s < _ASK_AGAIN_S:
            continue
        guarantees[state.cgroup] = Asked(size_bytes=size, asked_at_s=now.now_s)
        row_of = int(now.cgroups.partition_row[row])
        figures = {"guarantee_bytes": float(promised[row_of]), "to_bytes": float(size)}
        text = "its partition is guaranteed {guarantee_bytes}; the kernel is told {to_bytes} for this cgroup"
        actions.append(
            SetLimit(
                partition=state.partition,
                cgroup=state.cgroup,
                kind=LimitKind.GUARANTEE,
                from_bytes=state.guarantee_bytes,
                to_bytes=size,
                reason=Reason(code="guarantee", text=text, figures=figures),
            )
        )
    return actions, guarantees


def _too_small(now: Situation, each: _Cgroups) -> tuple[Reason, ...]:
    """Say which fixed sizes and ceilings lie below what cannot be reclaimed, so they are not enforced."""
    most = np.where(each.is_fixed, each.size_bytes, each.ceiling_bytes)
    result: list[Reason] = []
    for row in np.flatnonzero(each.least_bytes > most):
        figures = {"least_bytes": float(each.least_bytes[row]), "most_bytes": float(most[row])}
        text = "{least_bytes} of it cannot be reclaimed, its size or ceiling of {most_bytes} is not enforced"
        name = now.cgroups.states[row].cgroup
        result.append(Reason(code="above-ceiling", text=f"{name}: {text}", figures=figures))
    return tuple(sorted(result, key=lambda reason: reason.text))


def _by_cgroup(action: SetLimit) -> tuple[str, str]:
    return action.cgroup, action.kind.value
