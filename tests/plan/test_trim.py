# SPDX-License-Identifier: Apache-2.0
"""Page cache of trimmed partitions: what is kept is learnt from refaults; what keeps the planner from taking."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.plan import Abilities, Reclaim
from memsculpt.domain.settings import MIB, PlanSettings, Settings
from memsculpt.plan import PlannerState, choose
from tests.plan.world import Tenant, World, mib, of_kind, partition

PAGES_OF_MIB = MIB // 4096


def build(**changes) -> World:
    """A build that holds page cache, on a host with room for all of it, beside a service that is not trimmed."""
    world = World(
        tenants=(Tenant(name="build", held=100, cache=300), Tenant(name="web", held=100, cache=300)),
        partitions=(partition("build", trim=True), partition("web")),
        capacity=10_000,
    )
    return replace(world, **changes)


def taken_mib(plan) -> float:
    return sum(action.size_bytes for action in of_kind(plan, Reclaim)) / MIB


def test_page_cache_of_a_trimmed_partition_leaves_and_no_other():
    """Nobody needs the room, and of whom it was not asked nothing leaves; nothing of it may go to swap."""
    _, plan = choose(PlannerState(), *build().arguments())
    (action,) = of_kind(plan, Reclaim)

    assert (action.cgroup, action.size_bytes, action.only_cache) == ("build", mib(300), True)
    assert action.reason.code == "trim"


def test_what_is_read_again_is_kept_and_what_is_no_longer_read_leaves():
    """Refaults raise what is kept by more than came back; a quiet while later it may leave, too."""
    state, _ = choose(PlannerState(), *build().arguments())
    missed = build(now_s=1001.0).with_tenant("build", refaults=20 * PAGES_OF_MIB)
    state, after_refaults = choose(state, *missed.arguments())
    quiet = replace(missed, now_s=1601.0)
    _, much_later = choose(state, *quiet.arguments())

    assert 300 - 100 <= taken_mib(after_refaults) <= 300 - 20
    assert taken_mib(after_refaults) < taken_mib(much_later)


def test_all_refaults_before_the_first_look_are_somebody_elses():
    """A cgroup that had refaults in its past is not taken to have missed anything."""
    _, plan = choose(PlannerState(), *build().with_tenant("build", refaults=10**6).arguments())

    assert taken_mib(plan) == pytest.approx(300)


@pytest.mark.parametrize(
    "world",
    [
        build().with_tenant("build", stall_ratio=0.2),
        build(backoff_until_s=1010.0),
        build().with_tenant("build", cache=3),
        build(settings=Settings(plan=PlanSettings(floor_bytes=mib(1000)))),
        build(partitions=(partition("build", trim=True, guarantee_bytes=mib(400)), partition("web"))),
    ],
    ids=["stalls", "backs off", "not worth it", "floor", "guarantee"],
)
def test_nothing_is_taken_where_it_may_not_be(world):
    """Stalls, a back-off, too little to gain, and what the partition is promised each hold it back."""
    _, plan = choose(PlannerState(), *world.arguments())

    assert of_kind(plan, Reclaim) == []


def test_who_stalled_is_let_alone_for_a_while():
    """A tick after the stall nothing is taken yet; after some minutes without one it is."""
    stalled = build().with_tenant("build", stall_ratio=0.2)
    state, _ = choose(PlannerState(), *stalled.arguments())
    _, next_tick = choose(state, *build(now_s=1001.0).arguments())
    _, much_later = choose(state, *build(now_s=1600.0).arguments())

    assert taken_mib(next_tick) == 0
    assert taken_mib(much_later) > 0


def test_a_host_that_cannot_reclaim_says_so():
    """What was configured and cannot be done is told."""
    _, plan = choose(PlannerState(abilities=Abilities(drop_cache=False)), *build().arguments())

    assert of_kind(plan, Reclaim) == []
    assert "unable" in {reason.code for reason in plan.held_back}


@given(
    cache=st.lists(st.floats(0, 2000), min_size=1, max_size=4),
    refaults=st.integers(0, 10**6),
    guarantee=st.floats(0, 500),
)
def test_never_more_than_the_cache_the_rate_and_the_promise_allow(cache, refaults, guarantee):
    """Whatever is held and missed: no more than each one's page cache, in sum within the rate, down to no promise."""
    names = [f"b{number}" for number in range(len(cache))]
    world = World(
        tenants=tuple(Tenant(name=name, held=50, cache=size) for name, size in zip(names, cache, strict=True)),
        partitions=tuple(partition(name, trim=True, guarantee_bytes=mib(guarantee)) for name in names),
        capacity=20_000,
    )
    state, first = choose(PlannerState(), *world.arguments())
    again = replace(world, now_s=1001.0).with_tenant("b0", refaults=refaults)
    _, second = choose(state, *again.arguments())

    for plan in (first, second):
        actions = of_kind(plan, Reclaim)
        assert sum(action.size_bytes for action in actions) <= 512 * MIB
        for action in actions:
            tenant = world.tenant(action.cgroup)
            assert 0 < action.size_bytes <= mib(tenant.cache)
            assert mib(tenant.held + tenant.cache) - action.size_bytes >= mib(guarantee) - 4096
