# SPDX-License-Identifier: Apache-2.0
"""Bringing back: before the phase, into room that is there, and no more than will be needed."""

from dataclasses import replace

import pytest

from memsculpt.domain.plan import Abilities, PageIn, PageOut, SetLimit
from memsculpt.domain.settings import PlanSettings, Settings
from memsculpt.plan import PlannerState, choose
from tests.plan.world import Tenant, World, mib, moved_mib, of_kind, partition


def asleep(**changes) -> World:
    """One workload, mostly in swap, that is forecast to need 400 MiB within 3 s; plenty of room."""
    world = World(
        tenants=(Tenant(name="job", held=100, swapped=500, idle_s=20.0, need=400, peak=600),),
        partitions=(partition("job"),),
    )
    return replace(world, **changes)


def test_a_forecast_phase_brings_back_what_it_lacks():
    """Need less what is there, not all that is in swap."""
    _, plan = choose(PlannerState(), *asleep().arguments())

    assert moved_mib(plan, PageIn) == pytest.approx(300, abs=0.1)
    assert of_kind(plan, PageIn)[0].reason.code == "prefetch"


def test_a_phase_beyond_the_horizon_waits():
    """What is needed within 10 s but not within 3 s is left where it is."""
    _, plan = choose(PlannerState(), *asleep().with_tenant("job", need=0, need_10s=400).arguments())

    assert not of_kind(plan, PageIn)


def test_a_woken_workload_gets_its_working_set_at_once():
    """Reading back in bulk beats faulting, whatever was forecast."""
    _, plan = choose(PlannerState(), *asleep().with_tenant("job", idle_s=0.0, need=100).arguments())

    assert moved_mib(plan, PageIn) == pytest.approx(500, abs=0.1)
    assert of_kind(plan, PageIn)[0].reason.code == "woken"


def test_only_what_is_in_swap_comes_back():
    """Growth to come that was never there is not asked from swap."""
    _, plan = choose(PlannerState(), *asleep().with_tenant("job", swapped=50).arguments())

    assert moved_mib(plan, PageIn) == pytest.approx(50, abs=0.1)


def test_without_room_nothing_comes_back():
    """A host that is full of what is in use keeps its room, and the plan says so."""
    world = replace(
        asleep(capacity=1000),
        tenants=(*asleep().tenants, Tenant(name="busy", held=865)),
        partitions=(partition("job"), partition("busy", priority=400.0)),
    )
    _, plan = choose(PlannerState(), *world.arguments())

    assert moved_mib(plan, PageIn) <= 970 - 965


def test_room_is_what_the_host_has_not_what_the_capacity_promises():
    """Memory that others have taken cannot be filled."""
    _, plan = choose(PlannerState(), *asleep(total=2000, available=100.0).arguments())

    assert moved_mib(plan, PageIn) <= 100 - 0.03 * 2000


def test_the_rate_bounds_what_comes_back():
    """The rest waits for the next tick."""
    world = asleep(settings=Settings(plan=PlanSettings(page_in_bytes_per_s=100.0 * (1 << 20))))
    _, plan = choose(PlannerState(), *world.arguments())

    assert moved_mib(plan, PageIn) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(("useful", "expected"), [(1.0, 300), (0.6, 300), (0.25, 150), (0.05, 0)])
def test_prefetching_that_was_of_little_use_is_done_less(useful, expected):
    """Down to half it pays in full, below it is made smaller, and what is useless stops."""
    _, plan = choose(PlannerState(), *asleep().with_tenant("job", useful=useful).arguments())

    assert moved_mib(plan, PageIn) == pytest.approx(expected, abs=0.1)


def test_it_can_be_switched_off():
    """Neither the configuration nor the host needs to have it."""
    off = asleep(settings=Settings(plan=PlanSettings(prefetch=False)))
    assert not of_kind(choose(PlannerState(), *off.arguments())[1], PageIn)
    without = PlannerState(abilities=Abilities(page_in=False))
    assert not of_kind(choose(without, *asleep().arguments())[1], PageIn)


def test_limits_are_raised_before_pages_come_back():
    """What comes back fits below the limit as the plan leaves it, and the raise stands first."""
    world = asleep().with_tenant("job", limit=mib(120))
    _, plan = choose(PlannerState(), *world.arguments())
    raised = [action for action in of_kind(plan, SetLimit) if action.kind.value == "limit"]

    assert raised[0].to_bytes >= mib(100) + of_kind(plan, PageIn)[0].size_bytes
    assert plan.actions.index(raised[0]) < plan.actions.index(of_kind(plan, PageIn)[0])


def test_a_ceiling_bounds_what_comes_back():
    """A partition is not filled beyond its ceiling."""
    _, plan = choose(PlannerState(), *asleep(partitions=(partition("job", ceiling_bytes=mib(250)),)).arguments())

    assert moved_mib(plan, PageIn) <= 150


def test_the_largest_process_comes_first():
    """Within a workload, the process with most in swap is served first, each named with its start time."""
    _, plan = choose(PlannerState(), *asleep().with_tenant("job", process_count=2).arguments())
    actions = of_kind(plan, PageIn)

    assert [action.size_bytes for action in actions] == [mib(250), mib(50)]
    assert all(action.process.start_ticks == action.process.pid + 7 for action in actions)


def test_who_runs_is_served_before_who_is_forecast_to():
    """When the rate does not do for both, pages go to the one that is missing them now."""
    both = World(
        tenants=(
            Tenant(name="asleep", held=10, swapped=400, idle_s=20.0, need=400, peak=400),
            Tenant(name="woken", held=10, swapped=400, peak=400),
        ),
        partitions=(partition("asleep", priority=400.0), partition("woken")),
    )
    _, plan = choose(PlannerState(), *both.arguments())

    assert [action.workload for action in of_kind(plan, PageIn)] == ["woken", "asleep"]
    assert moved_mib(plan, PageIn, "woken") == pytest.approx(390, abs=0.1)
    assert not of_kind(plan, PageOut)
