# SPDX-License-Identifier: Apache-2.0
"""Free ahead: who gives, in which order, and what keeps the planner from taking."""

from dataclasses import replace

import pytest

from memsculpt.domain.plan import Abilities, PageOut, Reclaim
from memsculpt.domain.settings import PlanSettings, Settings
from memsculpt.plan import PlannerState, choose
from tests.plan.world import Tenant, World, mib, moved_mib, of_kind, partition


def two_donors(**changes) -> World:
    """A grower that lacks 200 MiB, and two idle donors of 400 MiB that come back at different times."""
    world = World(
        tenants=(
            Tenant(name="grower", held=200, need=400),
            Tenant(name="late", held=400, idle_s=5.0, need=0, peak=16),
            Tenant(name="soon", held=400, idle_s=50.0, need=0, need_10s=300, need_60s=300, peak=16),
        ),
        partitions=(partition("grower"), partition("late"), partition("soon")),
        capacity=1000,
    )
    return replace(world, **changes)


def codes(plan) -> set[str]:
    return {reason.code for reason in plan.held_back}


def test_who_comes_back_latest_gives_first():
    """A forecast of an early return outweighs a long idle age; the second donor gives only the rest."""
    _, plan = choose(PlannerState(), *two_donors().arguments())

    assert [action.workload for action in of_kind(plan, PageOut)] == ["late"]
    assert moved_mib(plan, PageOut) == pytest.approx(400 + 800 - 0.95 * 1000, abs=1)


def test_of_two_that_return_alike_the_longer_idle_gives_first():
    """Idle age decides where the forecast says the same of both."""
    world = two_donors().with_tenant("late", need_10s=300, need_60s=300)
    _, plan = choose(PlannerState(), *world.arguments())

    assert of_kind(plan, PageOut)[0].workload == "soon"


def test_the_less_important_gives_first():
    """Where all else is the same, the lower priority gives."""
    world = two_donors(partitions=(partition("grower"), partition("late", priority=90.0), partition("soon")))
    world = world.with_tenant("late", need_10s=300, need_60s=300, idle_s=50.0)
    _, plan = choose(PlannerState(), *world.arguments())

    assert of_kind(plan, PageOut)[0].workload == "late"


def test_a_workload_gives_from_its_largest_idle_process_first():
    """The gift is shared among processes, none gives more than it has, and each is named with its start time."""
    world = two_donors().with_tenant("late", process_count=2)
    _, plan = choose(PlannerState(), *world.arguments())
    actions = of_kind(plan, PageOut)

    assert [action.size_bytes for action in actions] == [mib(200), mib(50)]
    assert len({action.process for action in actions}) == 2
    assert all(action.process.start_ticks == action.process.pid + 7 for action in actions)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"stall_ratio": 0.2}, "stalled"),
        ({"hit_limit": True}, "stalled"),
        ({"refused_until_s": 1010.0}, "refused"),
    ],
)
def test_nothing_is_taken_where_it_hurts_or_went_wrong(changes, code):
    """Another donor is asked instead, and the reason is told."""
    _, plan = choose(PlannerState(), *two_donors().with_tenant("late", **changes).arguments())

    assert {action.workload for action in of_kind(plan, PageOut)} == {"soon"}
    assert code in codes(plan)


def test_a_donor_that_was_a_mistake_gives_less():
    """The allowed share bounds what is taken."""
    _, plan = choose(PlannerState(), *two_donors().with_tenant("late", allowed=0.25).arguments())

    assert moved_mib(plan, PageOut, "late") == pytest.approx(100, abs=0.1)
    assert moved_mib(plan, PageOut, "soon") > 0


def test_guarantees_are_not_given():
    """An idle donor keeps what it is promised, cold as it may be."""
    world = two_donors(partitions=(partition("grower"), partition("late", guarantee_bytes=mib(350)), partition("soon")))
    _, plan = choose(PlannerState(), *world.arguments())

    assert moved_mib(plan, PageOut, "late") <= 50


def test_a_full_swap_takes_nothing_more():
    """Nothing is paged out above the configured fill, and the plan says why."""
    _, plan = choose(PlannerState(), *two_donors(swap=1000, swap_used=799).arguments())

    assert not of_kind(plan, PageOut)
    assert "swap-full" in codes(plan)


def test_swap_bounds_what_leaves():
    """No more leaves than swap may still take."""
    _, plan = choose(PlannerState(), *two_donors(swap=1000, swap_used=700).arguments())

    assert moved_mib(plan, PageOut) == pytest.approx(100, abs=0.1)


def test_the_rate_spreads_a_shortage_over_ticks():
    """Each tick takes its share, until the shortage is gone."""
    world = two_donors(settings=Settings(plan=PlanSettings(page_out_bytes_per_s=100.0 * (1 << 20))))
    planner, taken = PlannerState(), []
    for _ in range(5):
        planner, plan = choose(planner, *world.arguments())
        taken.append(moved_mib(plan, PageOut))
        world = world.after(plan)

    assert taken == [pytest.approx(size, abs=0.1) for size in (100, 100, 50, 0, 0)]


def test_busy_workloads_give_nothing():
    """What is in use is not cold: the shortage stays, and the plan says that nothing is cold."""
    world = two_donors().with_tenant("late", idle_s=0.0, need=400).with_tenant("soon", idle_s=1.0, need=400)
    _, plan = choose(PlannerState(), *world.arguments())

    assert not of_kind(plan, PageOut)


def test_a_host_without_page_out_asks_the_cgroup():
    """Reclaim takes the place of page-out, one per cgroup."""
    _, plan = choose(PlannerState(abilities=Abilities(page_out=False)), *two_donors().arguments())

    assert [(action.cgroup, action.size_bytes) for action in of_kind(plan, Reclaim)] == [("late", mib(250))]
    assert not of_kind(plan, PageOut)


def test_a_host_with_neither_says_so():
    """The wish is held back with its cause."""
    abilities = Abilities(page_out=False, reclaim=False)
    _, plan = choose(PlannerState(abilities=abilities), *two_donors().arguments())

    assert "unable" in codes(plan)


def test_what_was_brought_back_stays_until_its_phase_has_passed():
    """A prefetched workload is no donor before its phase, is one after it, and one when the phase never comes."""
    world = two_donors().with_tenant("soon", need=400, held=100, swapped=300)
    planner, plan = choose(PlannerState(), *world.arguments())
    assert "soon" in planner.protections
    # The forecast changes its mind at once: the pages stay all the same.
    changed = world.after(plan).with_tenant("soon", need=0, need_10s=0).with_tenant("grower", need=800)
    early, plan = choose(planner, *changed.arguments())
    assert "soon" not in {action.workload for action in of_kind(plan, PageOut)}
    assert "protected" in codes(plan)
    _, plan = choose(early, *replace(changed, now_s=changed.now_s + 10).arguments())
    assert "soon" in {action.workload for action in of_kind(plan, PageOut)}
    # It ran, and is idle again: its phase has passed.
    ran, _ = choose(planner, *changed.with_tenant("soon", idle_s=0.0).arguments())
    assert ran.protections["soon"].has_run
    over, _ = choose(ran, *replace(changed, now_s=changed.now_s + 2).with_tenant("soon", idle_s=1.8).arguments())
    assert "soon" not in over.protections


def test_what_is_held_above_a_ceiling_leaves_without_anybody_growing():
    """A ceiling is kept by paging out what is cold above it, on a host with room for all."""
    world = World(
        tenants=(Tenant(name="a", held=400, idle_s=5.0, need=0),), partitions=(partition("a", ceiling_bytes=mib(300)),)
    )
    _, plan = choose(PlannerState(), *world.arguments())

    assert moved_mib(plan, PageOut) == pytest.approx(100, abs=0.1)
    assert of_kind(plan, PageOut)[0].reason.code == "above-ceiling"


def test_two_jobs_in_one_partition_give_to_each_other():
    """A partition's idle workload makes room for the other one of the same partition."""
    world = World(
        tenants=(
            Tenant(name="redis", held=525),
            Tenant(name="a", held=440, idle_s=2.5, need=0, swapped=10, partition="jobs", peak=450),
            Tenant(name="b", held=110, idle_s=7.0, need=450, swapped=340, partition="jobs", peak=450),
        ),
        partitions=(partition("redis", guarantee_bytes=mib(550), priority=400.0), partition("jobs")),
    )
    _, plan = choose(PlannerState(), *world.arguments())

    assert {action.workload for action in of_kind(plan, PageOut)} == {"a"}
    assert moved_mib(plan, PageOut) == pytest.approx(351, abs=4)


def test_a_donor_gives_down_to_its_size_and_the_next_one_the_rest():
    """Sizes hold for donors, too: who has a claim to room for waking up is not emptied for who has none left."""
    world = two_donors().with_tenant("late", peak=300)
    _, plan = choose(PlannerState(), *world.arguments())
    size = plan.division.size_bytes[1]

    assert 0 < moved_mib(plan, PageOut, "late") < 250
    assert mib(400) - moved_mib(plan, PageOut, "late") * (1 << 20) >= size - mib(0.02 * 1000) - 4096
    assert moved_mib(plan, PageOut) == pytest.approx(250, abs=0.1)
