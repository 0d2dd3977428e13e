# SPDX-License-Identifier: Apache-2.0
"""Phases that lack blocks: when they are served, how much comes into which room, and what bounds it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.phases import Coming, Sign
from memsculpt.domain.plan import Abilities, PageIn, Plan, SculptPool
from memsculpt.domain.pool import PoolSummary, Prefetch
from memsculpt.domain.settings import PlanSettings, Sculpt, Settings
from memsculpt.plan import PlannerState, choose, explain_action
from tests.plan.test_zones import pool
from tests.plan.world import MIB, Tenant, World, mib, of_kind, partition

NOW_S = 1000.0
RATE = 400.0 * MIB


def lab(**changes) -> World:
    """A program that holds 300 MiB of its 500, in 400; another one that is busy."""
    world = World(
        tenants=(Tenant(name="turner", held=300, swapped=200, peak=500), Tenant(name="other", held=50)),
        partitions=(partition("turner"), partition("other")),
        capacity=400,
        now_s=NOW_S,
        settings=Settings(plan=PlanSettings(sculpt=Sculpt.ALL)),
    )
    return replace(world, **changes)


def coming(in_s: float = 1.0, lacking: float = 100, spare: float = 100, **more) -> Coming:
    at_s = NOW_S + in_s
    known = {
        "phase": 2,
        "sign": Sign.SUCCESSOR,
        "probability": 0.9,
        "onset_s": (at_s, at_s, at_s),
        "in_bytes_per_s": RATE,
        "out_bytes_per_s": RATE,
        "margin_s": 0.2,
    }
    return Coming(lacking_bytes=mib(lacking), spare_bytes=mib(spare), **{**known, **more})


def planned(world: World, *phases: Coming, planner: PlannerState | None = None, **more) -> Plan:
    summary: PoolSummary = replace(pool(world, "turner"), coming=phases, **{"has_phases": True, **more})
    planner = planner or PlannerState(page_out_budget_bytes=1e12, page_in_budget_bytes=1e12)
    return choose(planner, *world.arguments(), pools=(summary,))[1]


def sizes(plan: Plan) -> list[tuple[float, float]]:
    """(what comes, what leaves for it) of each, in MiB."""
    return [(each.size_bytes / MIB, each.leaving_bytes / MIB) for each in of_kind(plan, SculptPool)]


def test_what_comes_takes_free_room_first_and_then_that_of_blocks_it_does_not_use():
    """Planned with is 388 MiB, held are 350: 38 are free, and the rest leaves."""
    plan = planned(lab(), coming())
    ((came, left),) = sizes(plan)
    (action,) = of_kind(plan, SculptPool)

    assert came == pytest.approx(100, abs=1)
    assert left == pytest.approx(100 - 38, abs=1)
    assert isinstance(action.request, Prefetch)
    assert action.request.phase == 2
    told = explain_action(action)
    assert told.startswith(
        "turner: bring back 100 MiB of what a phase uses of pool turner: phase 2 is expected in 1.0 s"
    )
    assert "it follows what is there now, probability 90.0%" in told
    assert "62.0 MiB that it does not use leave for it" in told


def test_it_is_served_in_time_and_not_before():
    """Due is what begins before it could be moved, in half of each tick, with the margin and until the next tick."""
    move_s = (100 + 62) / 400 / 0.5 + 0.2 + 1.0

    assert sizes(planned(lab(), coming(move_s - 0.05)))
    assert not sizes(planned(lab(), coming(move_s + 0.1)))
    assert sizes(planned(lab(), coming(move_s + 0.1, margin_s=0.5)))


def test_a_tick_moves_for_half_of_its_time():
    """The rest comes with the next ticks."""
    ((came, left),) = sizes(planned(lab(), coming(lacking=400, spare=400)))

    assert came < 400
    assert (came + left) / 400 == pytest.approx(0.5, abs=0.02)


def test_a_phase_that_waits_does_not_hold_up_one_that_is_due():
    """One that lacks a lot later may be due before one that lacks little soon."""
    first, second = coming(4.0, lacking=8, phase=1), coming(4.5, lacking=900, spare=900, phase=2)
    ((came, _),) = sizes(planned(lab(), first, second))

    assert came > 8


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": Settings(plan=PlanSettings(sculpt=Sculpt.COLD))},
        {"settings": Settings(plan=PlanSettings(sculpt=Sculpt.ALL, prefetch=False))},
        {"backoff_until_s": NOW_S + 5.0},
    ],
)
def test_switched_off_or_held_still_it_keeps_out(changes):
    assert not sizes(planned(lab(**changes), coming()))


def test_a_host_that_cannot_bring_back_is_not_asked():
    planner = PlannerState(page_out_budget_bytes=1e12, page_in_budget_bytes=1e12, abilities=Abilities(page_in=False))

    assert not sizes(planned(lab(), coming(), planner=planner))


def test_without_room_and_without_spare_it_waits_and_says_so():
    world = lab(capacity=350)
    plan = planned(world, coming(spare=0))

    assert not sizes(plan)
    assert "phase-waits" not in {each.code for each in plan.held_back}  # nothing could be done whatever the time
    planner = PlannerState(page_in_budget_bytes=-1e12)
    assert "phase-waits" in {each.code for each in planned(lab(), coming(), planner=planner).held_back}


def test_of_a_busy_program_with_phases_nothing_else_is_brought_back():
    """Whatever pages come first would take the room of those that are used next."""
    world = lab(capacity=900)

    assert of_kind(planned(world, has_phases=False), PageIn)
    assert not of_kind(planned(world), PageIn)


@given(
    lacking=st.integers(0, 500),
    spare=st.integers(0, 400),
    capacity=st.integers(300, 1200),
    in_s=st.floats(0.0, 5.0),
    out_budget=st.integers(0, 1000),
    in_budget=st.integers(0, 1000),
)
def test_bounds_hold(lacking, spare, capacity, in_s, out_budget, in_budget):
    """Never more than lacks, the rates allow and fits: what comes is no more than the room and what leaves for it."""
    world = lab(capacity=capacity)
    planner = PlannerState(
        planned_at_s=NOW_S, page_out_budget_bytes=mib(out_budget), page_in_budget_bytes=mib(in_budget)
    )
    plan = planned(world, coming(in_s, lacking, spare), planner=planner)
    room = capacity * 0.97 - 350
    for came, left in sizes(plan):
        assert 0 < came <= min(lacking, in_budget)
        assert 0 <= left <= min(spare, out_budget)
        assert came - left <= room + 0.01
