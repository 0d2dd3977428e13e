# SPDX-License-Identifier: Apache-2.0
"""Whole plans: the experiment's host step by step, and what must hold for any host."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.plan import Abilities, MoveProcess, PageIn, PageOut, Plan, SetLimit
from memsculpt.domain.settings import PlanSettings, Settings
from memsculpt.plan import PlannerState, choose, explain_plan
from memsculpt.plan.decide import division_of, look_ahead
from tests.plan.world import Tenant, World, mib, moved_mib, of_kind, partition

CACHE_AND_JOBS = (partition("redis", guarantee_bytes=mib(550), priority=400.0), partition("a"), partition("b"))


def between_phases() -> World:
    """The experiment at the moment when a's phase is over and b's is three seconds ahead."""
    return World(
        tenants=(
            Tenant(name="redis", held=525),
            Tenant(name="a", held=440, swapped=10, idle_s=2.5, need=0, need_10s=450, peak=450),
            Tenant(name="b", held=110, swapped=340, idle_s=7.0, need=450, peak=450),
        ),
        partitions=CACHE_AND_JOBS,
    )


@pytest.mark.parametrize("protects_by", ["soft", "min"])
def test_pages_leave_before_the_grower_grows_and_only_as_many_as_must(protects_by):
    """The idle job gives what the next one lacks, the cache gives nothing, and the next one is complete in one tick."""
    world = between_phases()
    planner, plan = choose(PlannerState(abilities=Abilities(protects_by=protects_by)), *world.arguments())

    kinds = [type(action) for action in plan.actions]
    assert kinds.index(PageOut) < kinds.index(PageIn)
    assert {action.workload for action in of_kind(plan, PageOut)} == {"a"}
    assert {action.workload for action in of_kind(plan, PageIn)} == {"b"}
    room = 0.95 * 1120 - 525 - 440 - 110
    assert moved_mib(plan, PageOut) == pytest.approx(340 - room, abs=4)
    assert moved_mib(plan, PageIn) == pytest.approx(340, abs=0.1)
    after = world.after(plan)
    assert sum(each.held for each in after.tenants) <= 0.97 * 1120
    assert after.tenant("b").swapped == pytest.approx(0, abs=0.1)
    _, nothing = choose(planner, *after.arguments())
    assert not of_kind(nothing, PageOut, PageIn)


def test_twenty_phases_of_two_jobs_move_no_more_than_they_must():
    """For a hundred seconds each phase begins complete, the cache is never touched, only the shortage is moved."""
    world = World(
        tenants=(
            Tenant(name="redis", held=525),
            Tenant(name="a", held=450, idle_s=8.8, peak=450),
            Tenant(name="b", held=111, swapped=339, idle_s=3.8, peak=450),
        ),
        partitions=CACHE_AND_JOBS,
    )
    planner = PlannerState(abilities=Abilities(protects_by="soft"))
    moved = 0.0
    for second in range(100):
        world = at_second(world, second)
        for name, offset in (("a", 0), ("b", 5)):
            if second > 10 and (second - offset) % 10 == 0:
                assert world.tenant(name).swapped <= 4, f"phase of {name} at {second} s begins with pages missing"
        planner, plan = choose(planner, *world.arguments())
        assert not [action for action in of_kind(plan, PageOut, PageIn) if action.workload == "redis"]
        moved += moved_mib(plan, PageOut)
        world = world.after(plan)
        assert sum(each.held for each in world.tenants) <= 1120
    assert moved <= 20 * 370


def at_second(world: World, second: int) -> World:
    """Jobs of a period of 10 s, active for 1.2 s, b 5 s after a; the forecast knows the schedule."""
    for name, offset in (("a", 0), ("b", 5)):
        since = (second - offset) % 10
        idle = 0.0 if since <= 1 else since - 1.2
        within = 10 - since
        need = 450.0 if within <= 3 or since <= 1 else 0.0
        world = world.with_tenant(name, idle_s=idle, need=need, need_10s=450.0, need_60s=450.0, peak=450)
    return world


def test_a_roomy_host_is_left_alone():
    """Once limits stand, nothing is worth doing while there is room for all."""
    world = World(
        tenants=(Tenant(name="a", held=200), Tenant(name="b", held=100)), partitions=(partition("a"), partition("b"))
    )
    planner, plan = choose(PlannerState(), *world.arguments())
    planner, again = choose(planner, *world.after(plan).arguments())

    assert not of_kind(plan, PageOut, PageIn)
    assert again.actions == ()
    assert again.held_back == ()


def test_nothing_is_done_to_what_the_configuration_does_not_name():
    """A workload outside every partition gets no action, however cold and large it is."""
    world = replace(
        between_phases(),
        tenants=(*between_phases().tenants, Tenant(name="other", held=5000, idle_s=900.0, swapped=100)),
    )
    _, plan = choose(PlannerState(), *world.arguments())

    assert plan.actions
    assert "other" not in {getattr(action, "workload", None) for action in plan.actions}
    assert "other" not in {getattr(action, "cgroup", None) for action in plan.actions}


def test_an_empty_host_has_an_empty_plan():
    """No workloads and no partitions are no reason to fail."""
    _, plan = choose(PlannerState(), *World(tenants=(), partitions=()).arguments())

    assert plan.actions == ()
    assert plan.division is not None
    assert plan.division.names == ()


def test_while_the_agent_backs_off_nothing_is_moved():
    """A back-off leaves limits and pages where they are, and says so."""
    world = replace(between_phases(), backoff_until_s=1005.0)
    planner, plan = choose(PlannerState(), *world.arguments())

    assert not of_kind(plan, PageOut, PageIn, MoveProcess)
    assert not [action for action in of_kind(plan, SetLimit) if action.kind.value != "guarantee"]
    assert plan.held_back[0].code == "backoff"
    _, later = choose(planner, *replace(world, now_s=1006.0).arguments())
    assert of_kind(later, PageOut)


def test_capacity_that_others_have_taken_is_not_handed_out():
    """Where the rest of the host leaves less than configured, only that is divided, and guarantees still hold."""
    world = replace(between_phases(), available=-900)
    _, plan = choose(PlannerState(), *replace(world, available=0.0).arguments())

    assert plan.division is not None
    assert plan.division.capacity_bytes <= mib(525 + 440 + 110)
    assert plan.division.size_bytes[0] >= mib(550)


@st.composite
def worlds(draw) -> World:
    """Any host of up to six workloads, some idle, some in swap, some hurt."""
    count = draw(st.integers(1, 6))
    tenants = []
    partitions = []
    for row in range(count):
        name = f"w{row}"
        peak = draw(st.integers(1, 600))
        tenants.append(
            Tenant(
                name=name,
                held=draw(st.integers(0, 600)),
                need=draw(st.integers(0, 700)),
                need_10s=draw(st.integers(0, 700)),
                spread=draw(st.sampled_from([0, 5, 200])),
                swapped=draw(st.integers(0, 400)),
                cache=draw(st.sampled_from([0, 50])),
                idle_s=draw(st.sampled_from([0.0, 1.0, 2.0, 30.0])),
                peak=peak,
                stall_ratio=draw(st.sampled_from([0.0, 0.0, 0.0, 0.2])),
                allowed=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])),
                useful=draw(st.sampled_from([1.0, 1.0, 0.3, 0.0])),
                refused_until_s=draw(st.sampled_from([0.0, 0.0, 1100.0])),
                process_count=draw(st.integers(1, 3)),
                starting=draw(st.booleans()),
            )
        )
        guarantee = draw(st.sampled_from([0, 0, 40, 100]))
        partitions.append(
            partition(
                name,
                guarantee_bytes=mib(guarantee),
                ceiling_bytes=draw(st.sampled_from([mib(guarantee + 300), 1 << 50])),
                priority=draw(st.sampled_from([50.0, 100.0, 400.0])),
            )
        )
    return World(
        tenants=tuple(tenants),
        partitions=tuple(partitions),
        capacity=draw(st.integers(700, 3000)),
        swap=draw(st.sampled_from([0, 200, 4096])),
    )


ABILITIES = st.builds(
    Abilities, page_out=st.booleans(), page_in=st.booleans(), protects_by=st.sampled_from(["min", "soft"])
)


@settings(max_examples=60, deadline=None)
@given(world=worlds(), abilities=ABILITIES)
def test_bounds_hold_on_any_host(world, abilities):
    """Nothing is freed below a floor, beyond what is cold, the swap or the rate, nor squeezed below what must stay."""
    rate = PlanSettings().page_out_bytes_per_s
    planner, plan = choose(PlannerState(abilities=abilities), *world.arguments())
    out = dict.fromkeys((each.name for each in world.tenants), 0)
    for action in plan.actions:
        if not isinstance(action, PageIn | PageOut | SetLimit):
            name = action.cgroup
            out[name] += action.size_bytes
        elif isinstance(action, PageOut):
            out[action.workload] += action.size_bytes
    assert sum(out.values()) <= rate * world.settings.interval_s
    assert sum(out.values()) <= 0.8 * mib(world.swap)
    assert sum(action.size_bytes for action in of_kind(plan, PageIn)) <= rate
    for each, setting in zip(world.tenants, world.partitions, strict=True):
        taken = out[each.name]
        assert taken == 0 or each.is_idle
        assert mib(each.held) - taken >= min(mib(each.held), max(setting.guarantee_bytes, mib(16)))
        assert taken == 0 or each.allowed > 0
        assert taken == 0 or (each.stall_ratio <= 0.05 and each.refused_until_s <= world.now_s)
        brought = sum(action.size_bytes for action in of_kind(plan, PageIn) if action.workload == each.name)
        assert brought <= mib(each.swapped)
        assert not (brought and taken)
    for action in of_kind(plan, SetLimit):
        each = world.tenant(action.cgroup)
        if action.kind.value == "limit":
            unreclaimable = 0 if each.is_idle else mib(each.held)
            assert action.to_bytes >= unreclaimable
            if action.to_bytes < 0.98 * mib(each.held + each.cache):
                assert action.lift_at_s is not None
    for figure in (planner.page_out_budget_bytes, planner.page_in_budget_bytes):
        assert figure >= 0
    assert all(isinstance(line, str) and "{" not in line for line in explain_plan(plan))


@settings(max_examples=40, deadline=None)
@given(world=worlds(), seed=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(world, seed):
    """Workloads and cgroups in another order give the same actions, in the same order."""
    tenants = list(world.tenants)
    seed.shuffle(tenants)
    _, plan = choose(PlannerState(), *world.arguments())
    _, shuffled = choose(PlannerState(), *replace(world, tenants=tuple(tenants)).arguments())

    assert described(plan) == described(shuffled)


@settings(max_examples=30, deadline=None)
@given(world=worlds())
def test_equal_arguments_give_equal_plans(world):
    """A plan can be made again from what was recorded."""
    first, plan = choose(PlannerState(), *world.arguments())
    second, again = choose(PlannerState(), *world.arguments())

    assert described(plan) == described(again)
    assert first == second


@settings(max_examples=60, deadline=None)
@given(world=worlds(), abilities=ABILITIES)
def test_a_plan_that_was_carried_out_is_not_turned_back(world, abilities):
    """With the same forecasts, what left does not come back in the next tick, nor leave what came back."""
    planner, plan = choose(PlannerState(abilities=abilities), *world.arguments())
    _, again = choose(planner, *world.after(plan).arguments())
    left = {action.workload for action in of_kind(plan, PageOut)}
    came = {action.workload for action in of_kind(plan, PageIn)}

    assert not left & {action.workload for action in of_kind(again, PageIn)}
    assert not came & {action.workload for action in of_kind(again, PageOut)}


@settings(max_examples=15, deadline=None)
@given(world=worlds())
def test_rates_hold_over_any_stretch_of_ticks(world):
    """Paging over n ticks stays within n + 2 ticks' worth of the rate."""
    rate = 64.0 * (1 << 20)
    plan_settings = PlanSettings(page_out_bytes_per_s=rate, page_in_bytes_per_s=rate)
    world = replace(world, settings=Settings(plan=plan_settings))
    planner, out, back = PlannerState(), 0.0, 0.0
    for tick in range(1, 6):
        planner, plan = choose(planner, *world.arguments())
        out += moved_mib(plan, PageOut)
        back += moved_mib(plan, PageIn)
        assert max(out, back) <= 64.0 * (tick + 2)
        world = world.after(plan)


def described(plan: Plan) -> tuple:
    division = plan.division
    shares = dict(zip(division.names, division.size_bytes.tolist(), strict=True))
    return plan.actions, plan.held_back, shares, division.multiplier


def test_what_a_division_says_is_read_only():
    """Results are shared with doors: nobody can change them by accident."""
    _, plan = choose(PlannerState(), *between_phases().arguments())

    with pytest.raises(ValueError, match="read-only"):
        plan.division.size_bytes[0] = 1
    assert np.isfinite(plan.division.shortfall_ratio).all()


def test_a_process_of_no_workload_is_passed_over():
    """A process that was read after its workload went (index -1) neither fails the plan nor counts for another."""
    observation, profiles, *others = between_phases().arguments()
    processes = observation.processes
    orphaned = np.where(processes.workload_index == 1, -1, processes.workload_index)
    orphans = replace(observation, processes=replace(processes, workload_index=orphaned))
    _, plan = choose(PlannerState(), orphans, profiles, *others)

    assert not of_kind(plan, PageOut)


@pytest.mark.parametrize("available_mib", [0, 300, 900, 4000])
def test_without_partitions_the_short_way_leads_where_the_long_one_does(available_mib):
    """Nothing is done, the capacity is told, and what the next plan has to know is remembered."""
    world = replace(between_phases(), partitions=())
    observation, *others = world.arguments()
    observation = replace(observation, memory=replace(observation.memory, available_bytes=mib(available_mib)))
    planner, plan = choose(PlannerState(), observation, *others)
    outlook = look_ahead(PlannerState(), observation, *others)
    assert plan.actions == plan.held_back == ()
    assert plan.division.capacity_bytes == division_of(outlook).capacity_bytes
    assert plan.division.names == division_of(outlook).names == ()
    assert planner.columns is not None
    assert planner.columns.names == ()
    assert (planner.planned_at_s, planner.host_some_stall_s) == (world.now_s, observation.memory.some_stall_s)
    still, _ = choose(PlannerState(), *replace(world, backoff_until_s=world.now_s + 3.0).arguments())
    assert still.planned_at_s == world.now_s
