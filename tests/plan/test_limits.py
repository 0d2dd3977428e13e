# SPDX-License-Identifier: Apache-2.0
"""Limits: they follow the use down, keep clear of what cannot be reclaimed, and are lifted when they hurt."""

from dataclasses import replace

import pytest

from memsculpt.domain.plan import Abilities, LimitKind, PageOut, Plan, SetLimit
from memsculpt.domain.settings import Kind, PlanSettings, Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.plan import PlannerState, choose
from tests.plan.world import Tenant, World, mib, of_kind, partition

V1 = PlannerState(abilities=Abilities(protects_by="soft"))
V2 = PlannerState(abilities=Abilities(protects_by="min"))


def crowded(**changes) -> World:
    """A cache in use, a job in use, and an idle one; together more than there is room for."""
    world = World(
        tenants=(
            Tenant(name="cache", held=500),
            Tenant(name="busy", held=450),
            Tenant(name="idle", held=450, idle_s=5.0, need=0),
        ),
        partitions=(partition("cache", guarantee_bytes=mib(550), priority=400.0), partition("busy"), partition("idle")),
    )
    return replace(world, **changes)


def limit_of(plan: Plan, cgroup: str, kind: LimitKind = LimitKind.LIMIT) -> SetLimit | None:
    found = [action for action in of_kind(plan, SetLimit) if action.cgroup == cgroup and action.kind is kind]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_limit_follows_the_use_down_and_never_pushes():
    """While its bytes are there a donor keeps its limit above them; once they have left, the limit comes after."""
    world = crowded()
    planner, plan = choose(V2, *world.arguments())
    assert of_kind(plan, PageOut)
    assert limit_of(plan, "idle").to_bytes > mib(450)
    after = world.after(plan)
    _, plan = choose(planner, *after.arguments())
    lowered = limit_of(plan, "idle")

    assert mib(after.tenant("idle").held) < lowered.to_bytes < mib(450)
    assert lowered.lift_at_s is None


def test_the_guarantee_is_asked_for_once():
    """memory.min is set to the guarantee, and not again while it stands, nor every tick while it does not."""
    world = crowded()
    planner, plan = choose(V2, *world.arguments())
    assert limit_of(plan, "cache", LimitKind.GUARANTEE).to_bytes == mib(550)
    assert limit_of(plan, "busy", LimitKind.GUARANTEE) is None
    later, plan = choose(planner, *replace(world, now_s=world.now_s + 1).arguments())
    assert limit_of(plan, "cache", LimitKind.GUARANTEE) is None
    _, plan = choose(later, *replace(world, now_s=world.now_s + 61).arguments())
    assert limit_of(plan, "cache", LimitKind.GUARANTEE).to_bytes == mib(550)


def test_on_v1_everybody_gets_a_soft_limit_when_one_has_a_guarantee():
    """A soft limit protects by comparison: whoever is furthest above theirs is taken from first."""
    world = crowded()
    for name in ("cache", "busy", "idle"):
        world = world.with_tenant(name, guarantee_now=UNLIMITED_BYTES)
    _, plan = choose(V1, *world.arguments())

    assert limit_of(plan, "cache", LimitKind.GUARANTEE).to_bytes == mib(550)
    assert limit_of(plan, "idle", LimitKind.GUARANTEE).to_bytes == mib(16)


def test_on_v1_a_limit_keeps_clear_of_all_that_was_ever_needed():
    """A random toucher under a tight v1 limit is killed, so its limit stays above its working set, idle or not."""
    world = crowded()
    planner, plan = choose(V1, *world.arguments())
    for _ in range(4):
        world = world.after(plan)
        planner, plan = choose(planner, *world.arguments())
        assert world.tenant("idle").held < 200
        assert world.tenant("idle").limit >= 1.05 * mib(450)


@pytest.mark.parametrize("state", [V1, V2])
@pytest.mark.parametrize("changes", [{"starting": True}, {"warm": False}])
def test_what_is_not_known_yet_is_not_limited(state, changes):
    """Nobody knows how far a start goes: no limit until there is a past to judge by."""
    _, plan = choose(state, *crowded().with_tenant("busy", **changes).arguments())

    assert limit_of(plan, "busy") is None


def test_free_room_is_open_to_whoever_wakes():
    """Nobody else needs the room, so an idle workload in swap may wake into half of it at once."""
    world = World(
        tenants=(Tenant(name="a", held=300), Tenant(name="b", held=50, swapped=400, idle_s=9.0, need=0, limit=mib(60))),
        partitions=(partition("a"), partition("b")),
    )
    _, plan = choose(V2, *world.arguments())

    assert limit_of(plan, "b").to_bytes >= mib(50 + (0.97 * 1120 - 350) / 2 - 1)


def squeezed(**changes) -> World:
    """A busy workload at its limit, while an important one needs the rest of the host."""
    world = World(
        tenants=(
            Tenant(name="big", held=800, need=1000),
            Tenant(name="small", held=200, need=300, limit=mib(201), **changes),
            Tenant(name="cold", held=90, idle_s=3.0, need=0, need_10s=90),
        ),
        partitions=(partition("big", priority=4000.0, guarantee_bytes=mib(800)), partition("small"), partition("cold")),
        capacity=1130,
    )
    return world.with_tenant("big", limit=mib(1010), guarantee_now=mib(800))


@pytest.mark.parametrize("changes", [{"stall_ratio": 0.3}, {"hit_limit": True}])
def test_a_squeeze_is_lifted_at_once_when_it_hurts(changes):
    """Stalling on memory at the limit lifts it, and it rests before it is lowered again."""
    world = squeezed(**changes)
    planner, plan = choose(V2, *world.arguments())
    action = limit_of(plan, "small")

    assert action.reason.code == "lift-pressure"
    assert action.to_bytes == UNLIMITED_BYTES
    calm = world.after(plan).with_tenant("small", stall_ratio=0.0, hit_limit=False)
    rested, plan = choose(planner, *calm.arguments())
    assert limit_of(plan, "small") is None
    _, plan = choose(rested, *replace(calm, now_s=calm.now_s + 11).arguments())
    assert limit_of(plan, "small").reason.code == "shrink"


def test_pressure_on_the_host_lifts_squeezes_too():
    """The host's own stall time counts as the workload's."""
    world = squeezed()
    planner, _ = choose(V2, *world.arguments())
    _, plan = choose(planner, *replace(world, now_s=world.now_s + 1, host_stall_s=0.5).arguments())

    assert limit_of(plan, "small").reason.code == "lift-pressure"


def test_a_squeeze_expires_when_nobody_needs_the_room():
    """After squeeze_max_s a limit that is felt goes, also when it does not hurt."""
    world = World(
        tenants=(Tenant(name="a", held=200, limit=mib(201)), Tenant(name="b", held=800)),
        partitions=(partition("a"), partition("b", guarantee_bytes=mib(850), priority=400.0)),
        settings=Settings(plan=PlanSettings(min_move_bytes=mib(64))),
    )
    planner, codes = V2, []
    for second in range(12):
        planner, plan = choose(planner, *replace(world, now_s=1000.0 + second).arguments())
        action = limit_of(plan, "a")
        codes.append(action.reason.code if action else "")

    assert "lift-expired" in codes
    assert codes.index("lift-expired") <= 10


def test_a_limit_below_what_is_held_expires_even_where_others_need_the_room():
    """Being below the use is never renewed."""
    world = World(
        tenants=(
            Tenant(name="a", held=300, idle_s=30.0, need=0, peak=16, allowed=0.0),
            Tenant(name="b", held=600, need=900),
        ),
        partitions=(partition("a", ceiling_bytes=mib(200)), partition("b", priority=400.0)),
    )
    planner, plan = choose(V2, *world.arguments())
    first = limit_of(plan, "a")
    assert first.to_bytes == mib(200)
    assert first.lift_at_s == world.now_s + 10.0
    codes = []
    for second in range(1, 12):
        later = replace(world.with_tenant("a", limit=mib(200)), now_s=world.now_s + second)
        planner, plan = choose(planner, *later.arguments())
        action = limit_of(plan, "a")
        codes.append(action.reason.code if action else "")

    assert codes[9] == "lift-expired"
    assert set(codes[:9]) == {""}


def test_a_limit_that_is_felt_moves_up_with_the_use():
    """Growth without room is slowed to a few percent a tick, not stopped: what is in use is never below the limit."""
    world = World(
        tenants=(Tenant(name="a", held=203, limit=mib(206)), Tenant(name="b", held=700, need=1100)),
        partitions=(partition("a", priority=1.0), partition("b", priority=400.0)),
    )
    planner = V2
    for _ in range(15):
        planner, plan = choose(planner, *world.arguments())
        action = limit_of(plan, "a")
        assert action.reason.code == "grow"
        assert 1.02 * world.tenant("a").held < action.to_bytes / mib(1) < 1.05 * world.tenant("a").held
        world = world.after(plan)
        world = world.with_tenant("a", held=world.tenant("a").limit / mib(1) * 0.99)


def test_a_fixed_partition_gets_a_hard_limit():
    """Its size is the hard limit, exactly, whatever it uses."""
    world = World(
        tenants=(Tenant(name="batch", held=100), Tenant(name="web", held=100)),
        partitions=(partition("batch", kind=Kind.FIXED, size_bytes=mib(300)), partition("web")),
    )
    _, plan = choose(V2, *world.arguments())

    assert limit_of(plan, "batch", LimitKind.HARD).to_bytes == mib(300)
    assert limit_of(plan, "batch") is None
    assert plan.division.size_bytes[0] == mib(300)


def test_a_fixed_size_below_what_is_in_use_is_not_enforced():
    """What cannot be reclaimed is not squeezed, and the plan says so."""
    world = World(
        tenants=(Tenant(name="batch", held=400),),
        partitions=(partition("batch", kind=Kind.FIXED, size_bytes=mib(300)),),
    )
    _, plan = choose(V2, *world.arguments())

    assert limit_of(plan, "batch", LimitKind.HARD).to_bytes > mib(400)
    assert "above-ceiling" in {reason.code for reason in plan.held_back}


def test_small_changes_are_not_written():
    """A limit within a few percent of where it should be stays."""
    world = crowded()
    planner, plan = choose(V2, *world.arguments())
    for held in (500, 505, 510, 503, 498):
        world = world.after(plan).with_tenant("cache", held=held)
        planner, plan = choose(planner, *world.arguments())
        if held != 500:
            assert limit_of(plan, "cache") is None


def test_a_limit_comes_down_at_the_configured_rate():
    """A set limit is lowered step by step, even far above the use."""
    world = World(
        tenants=(Tenant(name="a", held=100, limit=mib(1100)), Tenant(name="b", held=900)),
        partitions=(partition("a"), partition("b", priority=400.0)),
        settings=Settings(plan=PlanSettings(shrink_bytes_per_s=100.0 * (1 << 20))),
    )
    _, plan = choose(V2, *world.arguments())

    assert limit_of(plan, "a").to_bytes == mib(1000)


def test_page_cache_may_stay_while_nobody_needs_the_room():
    """Use that could be reclaimed is not squeezed out for nothing."""
    world = World(
        tenants=(Tenant(name="a", held=100, cache=400), Tenant(name="b", held=100)),
        partitions=(partition("a"), partition("b")),
    )
    _, plan = choose(V2, *world.arguments())

    assert limit_of(plan, "a").to_bytes > mib(500)


def test_several_cgroups_share_their_partition():
    """Each gets its need and an even part of the rest; together no more than the partition's guarantee."""
    world = World(
        tenants=(
            Tenant(name="web-1", held=300, partition="web"),
            Tenant(name="web-2", held=100, partition="web"),
            Tenant(name="other", held=500),
        ),
        partitions=(partition("web", guarantee_bytes=mib(500)), partition("other")),
    )
    _, plan = choose(V2, *world.arguments())
    parts = {name: limit_of(plan, name, LimitKind.GUARANTEE).to_bytes for name in ("web-1", "web-2")}

    assert parts == {"web-1": mib(350), "web-2": mib(150)}


def test_a_host_without_limits_gets_none():
    """Where limits cannot be set none are planned."""
    _, plan = choose(PlannerState(abilities=Abilities(limits=False)), *crowded().arguments())

    assert not of_kind(plan, SetLimit)
    assert of_kind(plan, PageOut)
