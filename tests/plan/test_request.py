# SPDX-License-Identifier: Apache-2.0
"""Requests: enough room, resized, moved, created, or refused with figures; and what is remembered of them."""

from dataclasses import replace

import pytest

from memsculpt.domain.plan import Abilities, Answer, CreateCgroup, MoveProcess, PageOut, Request
from memsculpt.domain.pool import PoolSummary
from memsculpt.domain.settings import Kind
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.plan import PlannerState, answer_request, choose, explain_grant
from tests.plan.world import Tenant, World, mib, moved_mib, of_kind, partition


def ask(world: World, who: str, size: float, within_s: float = 3.0, planner: PlannerState | None = None):
    observation, profiles, forecasts, _, settings = world.arguments()
    request = Request(workload=WorkloadId(who), size_bytes=mib(size), within_s=within_s, asked_at_s=world.now_s)
    return answer_request(planner or PlannerState(), request, observation, profiles, forecasts, settings)


def three(**changes) -> World:
    """Two busy workloads and an idle one, 30 MiB free of 1,086."""
    world = World(
        tenants=(
            Tenant(name="web", held=300),
            Tenant(name="db", held=400),
            Tenant(name="idle", held=356, idle_s=20.0, need=0, peak=16),
        ),
        partitions=(partition("web"), partition("db"), partition("idle")),
    )
    return replace(world, **changes)


def test_enough_room_needs_nothing():
    """Where room is free and the limit allows it, the answer is yes and nothing is done."""
    _, grant = ask(three(), "web", 5)

    assert grant.answer is Answer.ENOUGH
    assert grant.granted_bytes == mib(5)
    assert grant.actions == ()


def test_what_sculpts_sent_out_of_others_is_none_of_their_need():
    """Cold blocks that left a busy workload do not stand in the way: it will not want them back."""
    # The working set of "db" still counts what left it.
    world = three().with_tenant("db", held=200, swapped=200, need=400, peak=400)
    _, without = ask(world, "web", 100)
    observation, profiles, forecasts, _, settings = world.arguments()
    index = observation.workloads.ids.index("db")
    row = observation.processes.workload_index.tolist().index(index)
    process = Instance(
        pid=int(observation.processes.pids[row]), start_ticks=int(observation.processes.start_ticks[row])
    )
    gone = PoolSummary(
        pool="db", workload=WorkloadId("db"), process=process, gone_bytes=mib(200), left_at_s=world.now_s - 5.0
    )
    request = Request(workload=WorkloadId("web"), size_bytes=mib(100), within_s=3.0, asked_at_s=world.now_s)
    _, grant = answer_request(PlannerState(), request, observation, profiles, forecasts, settings, pools=(gone,))

    assert without.actions
    assert grant.answer is Answer.ENOUGH
    assert not grant.actions


def test_a_resize_frees_ahead_for_it():
    """Cold pages of others leave for what was asked; the next plan does it, because the need is reserved."""
    planner, grant = ask(three(), "web", 200)

    assert grant.answer is Answer.RESIZED
    assert {action.workload for action in grant.actions if isinstance(action, PageOut)} == {"idle"}
    _, plan = choose(planner, *three().arguments())
    assert moved_mib(plan, PageOut, "idle") == pytest.approx(300 + 400 + 356 + 200 - 0.95 * 1120, abs=4)


def test_more_than_can_leave_is_refused_with_figures():
    """What is in use stays; the refusal names what is lacking."""
    planner, grant = ask(three(), "web", 500)

    assert grant.answer is Answer.REFUSED
    assert grant.granted_bytes == 0
    assert grant.reason.figures["lacking_bytes"] > mib(80)
    assert "lacking" in explain_grant(grant)
    assert planner == PlannerState()


def test_what_cannot_leave_in_time_is_refused():
    """The rate bounds what can be promised within a time."""
    world = three(
        tenants=(Tenant(name="web", held=100), Tenant(name="idle", held=4900, idle_s=20.0, need=0, peak=16)),
        partitions=(partition("web"), partition("idle")),
        capacity=5200,
    )
    assert ask(world, "web", 3000, within_s=1.0)[1].answer is Answer.REFUSED
    assert ask(world, "web", 3000, within_s=30.0)[1].answer is Answer.RESIZED


@pytest.mark.parametrize(("who", "size"), [("nobody", 10), ("web", 0)])
def test_nonsense_is_refused(who, size):
    """An unknown workload or an empty request is answered, not failed on."""
    assert ask(three(), who, size)[1].answer is Answer.REFUSED


def capped() -> World:
    """A workload under a ceiling of its partition, another partition with room, and an idle important one."""
    return World(
        tenants=(Tenant(name="job", held=200), Tenant(name="batch", held=100), Tenant(name="vip", held=100)),
        partitions=(
            partition("job", ceiling_bytes=mib(250)),
            partition("batch"),
            partition("vip", priority=400.0),
        ),
    )


def test_a_ceiling_in_the_way_means_a_move():
    """The workload moves to a partition that fits, not to a more important one, and its charge stays behind."""
    planner, grant = ask(capped(), "job", 200)

    assert grant.answer is Answer.MOVED
    assert grant.partition == "batch"
    assert grant.stays_charged_bytes == mib(200)
    assert planner.moves[0].charged_bytes == mib(200)
    _, plan = choose(planner, *capped().arguments())
    moves = of_kind(plan, MoveProcess)
    assert [(action.from_cgroup, action.to_cgroup) for action in moves] == [("job", "batch")]
    assert not choose(_, *capped().arguments())[1].actions or not of_kind(
        choose(_, *capped().arguments())[1], MoveProcess
    )


def test_charges_that_stayed_behind_shrink_as_pages_are_released():
    """The old partition keeps the bytes in its arithmetic for as long as they are charged there, and no longer."""
    world = capped()
    planner, _ = ask(world, "job", 200)
    planner, _ = choose(planner, *world.arguments())
    # The process now lives in batch's cgroup; its 200 MiB are still charged to job's.
    moved = replace(world, now_s=world.now_s + 1)
    planner, plan = choose(planner, *moved.arguments())
    assert planner.moves[0].charged_bytes == mib(200)
    released = replace(moved.with_tenant("job", held=80), now_s=world.now_s + 2)
    planner, plan = choose(planner, *released.arguments())
    assert planner.moves[0].charged_bytes == mib(80)
    gone = replace(released, tenants=released.tenants[1:], now_s=world.now_s + 3)
    planner, plan = choose(planner, *gone.arguments())
    assert planner.moves == ()
    assert plan.division is not None


def test_where_no_partition_fits_one_is_created():
    """A partition just large enough is made, in a cgroup of our own, and the workload moves in."""
    world = capped()
    world = replace(
        world, partitions=(world.partitions[0], partition("batch", ceiling_bytes=mib(300)), world.partitions[2])
    )
    planner, grant = ask(world, "job", 200)

    assert grant.answer is Answer.CREATED
    assert planner.created[0].name == grant.partition
    assert planner.created[0].ceiling_bytes == mib(400)
    _, plan = choose(planner, *world.arguments())
    made = of_kind(plan, CreateCgroup)
    assert [action.cgroup for action in made] == [f"memsculpt/{grant.partition}"]
    assert plan.actions.index(made[0]) < plan.actions.index(of_kind(plan, MoveProcess)[0])
    assert grant.partition in plan.division.names


def test_a_host_that_cannot_move_refuses():
    """Without cgroups of our own a ceiling is final."""
    planner = PlannerState(abilities=Abilities(groups=False))
    _, grant = ask(capped(), "job", 200, planner=planner)

    assert grant.answer is Answer.REFUSED


def test_a_fixed_partition_does_not_grow():
    """Its size is what it has; who needs more moves."""
    world = capped()
    fixed = partition("job", kind=Kind.FIXED, size_bytes=mib(250))
    _, grant = ask(replace(world, partitions=(fixed, *world.partitions[1:])), "job", 200)

    assert grant.answer is Answer.MOVED


def test_a_second_request_counts_the_first():
    """Two grants before either was used add up."""
    planner, first = ask(three(), "web", 100)
    planner, second = ask(three(), "web", 100, planner=planner)

    assert first.answer is Answer.RESIZED
    assert second.answer is Answer.RESIZED
    assert planner.reservations[0].target_bytes == mib(500)


def test_a_reservation_ends_when_use_has_caught_up_or_never_comes():
    """It holds until `within` has passed; then until the use is there, but not for ever."""
    planner, _ = ask(three(), "web", 100, within_s=5.0)

    def kept(world: World) -> bool:
        return bool(choose(planner, *world.arguments())[0].reservations)

    assert kept(replace(three(), now_s=1004.0))
    assert kept(replace(three(), now_s=1010.0))
    assert not kept(replace(three().with_tenant("web", held=401), now_s=1010.0))
    assert not kept(replace(three(), now_s=1070.0))


def test_a_configured_cgroup_is_made_and_filled_once():
    """A partition with `create` gets its cgroup, its processes are moved there, and not again."""
    world = World(
        tenants=(Tenant(name="worker", held=100, partition="pool", has_cgroup=False, process_count=2),),
        partitions=(partition("pool", create=True),),
    )
    planner, plan = choose(PlannerState(), *world.arguments())

    assert [action.cgroup for action in of_kind(plan, CreateCgroup)] == [CgroupPath("memsculpt/pool")]
    assert len(of_kind(plan, MoveProcess)) == 2
    _, again = choose(planner, *replace(world, now_s=1001.0).arguments())
    assert not of_kind(again, MoveProcess)
