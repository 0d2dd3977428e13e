# SPDX-License-Identifier: Apache-2.0
"""One plan: divide the capacity, free what must leave, move the limits, bring back what is about to be used.

Pure: the time is the observation's, and equal arguments give equal plans. The order of the actions is the
order in which they are safe: what frees comes first, what grows comes last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.plan import Action, CreateCgroup, Division, MoveProcess, Plan, Reason
from memsculpt.domain.pool import PoolSummary
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.plan import (
    balloons,
    coming,
    limits,
    memory,
    partitions,
    placement,
    prefetch,
    reclaim,
    situation,
    slow_node,
    trim,
    zones,
)
from memsculpt.plan.growth import Growth, growth_of
from memsculpt.plan.partitions import Sizes
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import PlannerState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What the host is, should become, and lacks: the part of a plan before anything is moved."""

    planner: PlannerState
    now: Situation
    sizes: Sizes
    growth: Growth


def look_ahead(
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    corrections: Corrections,
    settings: Settings,
) -> Outlook:
    """Join the inputs, divide the capacity and see what is lacking; `planner` is refreshed already."""
    now = situation.look(planner, observation, profiles, forecasts, corrections, settings)
    sizes = partitions.divide(situation.demand_of(now), capacity_bytes=now.planned_bytes, page_bytes=now.page_bytes)
    return Outlook(planner=replace(planner, columns=now.partitions), now=now, sizes=sizes, growth=growth_of(now, sizes))


def choose(
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    corrections: Corrections,
    settings: Settings,
    *,
    pools: Sequence[PoolSummary] = (),
) -> tuple[PlannerState, Plan]:
    """Decide what to change in this tick, and what to remember.

    `pools` are those of which blocks may leave, come back or be gathered. The plan frees before it grows, keeps
    guarantees and floors, spends no more than the rates allow, and is empty when nothing is worth its cost. Raises
    ValueError when guarantees exceed the capacity, which the configuration refuses.
    """
    profiles, forecasts = zones.without_gone(observation, profiles, forecasts, pools, settings)
    planner = memory.refreshed(planner, observation, profiles, settings)
    if not pools and _has_nothing_named(planner, settings):
        return _nothing(planner, observation, corrections, settings)
    outlook = look_ahead(planner, observation, profiles, forecasts, corrections, settings)
    planner, now, sizes, growth = outlook.planner, outlook.now, outlook.sizes, outlook.growth
    holds_still = corrections.backoff_until_s > now.now_s
    ballooned = balloons.set_balloons(
        now, planner, observation, profiles, sizes, growth, settings, holds_still=holds_still
    )
    eased = balloons.not_squeezed(now, sizes, ballooned)
    taken = reclaim.free_ahead(now, planner, observation, profiles, sizes, growth, settings)
    taken = zones.send_cold(now, planner, observation, sizes, growth, taken, pools, settings)
    gathered = zones.gather_hot(now, planner, taken, pools, settings)
    moves = slow_node.move_between_nodes(now, planner, observation, taken, pools, settings)
    if holds_still:
        taken = replace(taken, actions=(), by_workload_bytes=taken.by_workload_bytes * 0)
    trimmed = trim.trim(now, planner, observation, profiles, settings, holds_still=holds_still)
    budgets = limits.set_budgets(now, planner, eased, growth, taken.size_bytes, settings, holds_still=holds_still)
    by_phases = coming.known_by_phases(pools)
    limit = budgets.planned_bytes
    brought = prefetch.bring_back(now, planner, observation, growth, taken, limit, settings, by_phases=by_phases)
    arriving = coming.bring_phases(now, planner, observation, taken, brought, limit, pools, settings)
    placed = placement.place(now, planner, observation)
    if holds_still:
        brought = replace(brought, actions=(), protections=planner.protections)
        placed = placement.Placed(placed=planner.placed)
        gathered, arriving, moves = (), coming.Arriving(), slow_node.NodeMoves()
    pending = () if holds_still else planner.pending
    actions: tuple[Action, ...] = (
        *ballooned.lowered,
        *taken.actions,
        *moves.demoted,
        *trimmed.actions,
        *budgets.lowered,
        *budgets.raised,
        *ballooned.raised,
        *placed.created,
        *(action for action in pending if isinstance(action, CreateCgroup)),
        *placed.moved,
        *(action for action in pending if isinstance(action, MoveProcess)),
        *brought.actions,
        *arriving.actions,
        *moves.promoted,
        *gathered,
    )
    planner = replace(
        memory.after(planner, actions, observation),
        squeezes=budgets.squeezes,
        resting_until_s=budgets.resting_until_s,
        guarantees=budgets.guarantees,
        protections=brought.protections,
        placed=placed.placed,
        balloons=ballooned.known,
        kept=trimmed.kept,
        pending=planner.pending if holds_still else (),
    )
    held_back = (
        *_backoff(corrections, now.now_s),
        *ballooned.held_back,
        *taken.held_back,
        *moves.held_back,
        *trimmed.held_back,
        *budgets.held_back,
        *brought.held_back,
        *arriving.held_back,
    )
    plan = Plan(made_at_s=now.now_s, actions=actions, division=division_of(outlook), held_back=held_back)
    return planner, plan


def division_of(outlook: Outlook) -> Division:
    """Return the division as the plan reports it."""
    now, sizes = outlook.now, outlook.sizes
    return Division(
        capacity_bytes=now.planned_bytes,
        names=now.partitions.names,
        used_bytes=now.used_bytes.copy(),
        needed_bytes=now.sum_by_partition(now.workloads.median_bytes),
        size_bytes=sizes.size_bytes.copy(),
        shortfall_ratio=sizes.shortfall_ratio.copy(),
        multiplier=sizes.multiplier,
    )


def _has_nothing_named(planner: PlannerState, settings: Settings) -> bool:
    """Tell whether there is no partition, and nothing left of one: an observing agent that was just started."""
    made = (*settings.partitions, *planner.created, *planner.pending, *planner.reservations, *planner.moves)
    held = (planner.squeezes, planner.resting_until_s, planner.guarantees, planner.protections, planner.kept)
    return not made and not planner.placed and not any(held)


def _nothing(
    planner: PlannerState, observation: Observation, corrections: Corrections, settings: Settings
) -> tuple[PlannerState, Plan]:
    """Plan nothing: only what is named is ever touched, so all that was observed need not be joined for it."""
    now_s, none = observation.time_s, np.zeros(0, np.int64)
    division = Division(
        capacity_bytes=situation.planned_bytes_of(settings, observation.memory, held_bytes=0, guarantee_bytes=0),
        names=(),
        used_bytes=none,
        needed_bytes=none,
        size_bytes=none,
        shortfall_ratio=np.zeros(0),
        multiplier=0.0,
    )
    planner = replace(
        memory.after(planner, (), observation),
        balloons=balloons.follow_all(planner, observation),
        columns=situation.partition_columns(planner, settings),
    )
    return planner, Plan(made_at_s=now_s, actions=(), division=division, held_back=_backoff(corrections, now_s))


def _backoff(corrections: Corrections, now_s: float) -> tuple[Reason, ...]:
    if corrections.backoff_until_s <= now_s:
        return ()
    figures = {"rest_s": corrections.backoff_until_s - now_s}
    text = f"the agent holds still for {{rest_s}}: {corrections.backoff_reason or 'it was told to'}"
    return (Reason(code="backoff", text=text, figures=figures),)
