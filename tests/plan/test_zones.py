# SPDX-License-Identifier: Apache-2.0
"""Inside of pools: whose cold blocks leave when nobody idles, what bounds them, and when hot ones are gathered."""

from dataclasses import replace

import pytest

from memsculpt.domain.observation import Processes
from memsculpt.domain.plan import Abilities, PageIn, PageOut, Plan, SculptPool
from memsculpt.domain.pool import ColdZone, HotZone, PoolSummary
from memsculpt.domain.settings import Mode, PlanSettings, Sculpt, Settings
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.plan import PlannerState, choose, explain_action
from tests.plan.world import MIB, Tenant, World, mib, of_kind, partition

NOW_S = 1000.0
LACKING_MIB = 600 + 500 + 100 - 0.95 * 1000


def busy_donor(**changes) -> World:
    """A grower that lacks 300 MiB, a donor that is busy on all it holds as far as its size tells, and a third."""
    world = World(
        tenants=(
            Tenant(name="grower", held=200, need=500),
            Tenant(name="donor", held=600),
            Tenant(name="third", held=100),
        ),
        partitions=(partition("grower"), partition("donor"), partition("third")),
        capacity=1000,
        now_s=NOW_S,
    )
    return replace(world, **changes)


def pool(world: World, workload: str, **more) -> PoolSummary:
    """A pool of the workload's only process; sizes in MiB."""
    rows = [row for row, each in enumerate(world.tenants) if each.name == workload]
    processes = world.processes()
    at = processes.workload_index.tolist().index(rows[0])
    sizes = {f"{name}_bytes": mib(more.pop(name)) for name in ("cold", "hot", "fills", "gone") if name in more}
    return PoolSummary(
        pool=workload,
        workload=WorkloadId(workload),
        process=world_instance(processes, at),
        **{"idle_least_s": 120.0, "loss_ratio": 0.001, **sizes, **more},
    )


def world_instance(processes: Processes, at: int) -> Instance:
    return Instance(pid=int(processes.pids[at]), start_ticks=int(processes.start_ticks[at]))


def planned(world: World, *pools: PoolSummary, planner: PlannerState | None = None) -> Plan:
    return choose(planner or PlannerState(), *world.arguments(), pools=pools)[1]


def sent_mib(plan: Plan, workload: str | None = None) -> float:
    actions = [each for each in of_kind(plan, SculptPool) if isinstance(each.request, ColdZone)]
    return sum(each.size_bytes for each in actions if workload in {None, each.workload}) / MIB


def codes(plan: Plan) -> set[str]:
    return {reason.code for reason in plan.held_back}


def test_cold_blocks_of_a_busy_donor_leave_before_the_receiver_grows():
    """As many as the growth to come lacks and no more, and the reason says why."""
    world = busy_donor()
    plan = planned(world, pool(world, "donor", cold=300))
    (action,) = of_kind(plan, SculptPool)

    assert action.workload == "donor"
    assert sent_mib(plan) == pytest.approx(LACKING_MIB, abs=1)
    assert plan.actions.index(action) == 0
    assert not of_kind(plan, PageOut)
    told = explain_action(action)
    assert told.startswith("donor: send out 250 MiB of cold blocks of pool donor: use is forecast 250 MiB above")
    assert "300 MiB were not touched for 2 min and more" in told
    assert "{" not in told


def test_without_pools_nothing_is_different():
    """Nothing is cold: the plan says so as before."""
    world = busy_donor()

    assert not of_kind(planned(world), SculptPool)


def test_idle_processes_leave_first():
    """Blocks of the busy give only what is lacking after them."""
    world = busy_donor().with_tenant("third", held=200, idle_s=60.0, need=0, peak=16)
    plan = planned(world, pool(world, "donor", cold=300))
    whole = sum(each.size_bytes for each in of_kind(plan, PageOut)) / MIB

    assert whole > 0
    assert whole + sent_mib(plan) == pytest.approx(LACKING_MIB + 100, abs=1)


def test_a_guarantee_and_a_floor_are_kept():
    """The donor goes down to what it is promised, cold as it may be, and what is lacking still is told."""
    shares = (partition("grower"), partition("donor", guarantee_bytes=mib(500)), partition("third"))
    world = busy_donor(partitions=shares)
    plan = planned(world, pool(world, "donor", cold=300), pool(world, "third", cold=100))

    assert sent_mib(plan, "donor") == pytest.approx(100, abs=1)
    assert sent_mib(plan, "third") == pytest.approx(100 - 16, abs=1)
    assert "no-cold" in codes(plan)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"stall_ratio": 0.2}, "stalled"),
        ({"hit_limit": True}, "stalled"),
        ({"refused_until_s": NOW_S + 10.0}, "refused"),
    ],
)
def test_nothing_leaves_where_it_hurts_or_went_wrong(changes, code):
    """Another donor is asked instead, and the reason is told."""
    world = busy_donor().with_tenant("donor", **changes)
    plan = planned(world, pool(world, "donor", cold=300), pool(world, "third", cold=50))

    assert (sent_mib(plan, "donor"), sent_mib(plan, "third")) == (0, pytest.approx(50, abs=0.1))
    assert code in codes(plan)


def test_the_swap_and_the_rate_bound_what_leaves():
    world = busy_donor(swap=1000, swap_used=700)
    assert sent_mib(planned(world, pool(world, "donor", cold=300))) == pytest.approx(100, abs=0.1)
    slow = busy_donor(settings=Settings(plan=PlanSettings(page_out_bytes_per_s=50.0 * MIB)))
    planner, plan = choose(PlannerState(), *slow.arguments(), pools=(pool(slow, "donor", cold=300),))
    assert sent_mib(plan) == pytest.approx(50, abs=0.1)
    assert planner.page_out_budget_bytes == pytest.approx(0.0, abs=4096)


def test_those_above_their_size_give_first_then_the_coldest():
    world = busy_donor(partitions=(partition("grower"), partition("donor", priority=50.0), partition("third")))
    first, second = pool(world, "donor", cold=100), pool(world, "third", cold=50, idle_least_s=900.0)
    plan = planned(world, second, first)

    assert [each.workload for each in of_kind(plan, SculptPool)] == ["donor", "third"]


@pytest.mark.parametrize(
    ("settings", "abilities"),
    [
        (Settings(plan=PlanSettings(sculpt=Sculpt.OFF)), Abilities()),
        (Settings(), Abilities(page_out=False)),
    ],
)
def test_switched_off_or_unable_it_keeps_out(settings, abilities):
    world = busy_donor(settings=settings)

    assert not of_kind(
        planned(world, pool(world, "donor", cold=300), planner=PlannerState(abilities=abilities)), SculptPool
    )


def test_what_is_held_above_a_ceiling_leaves_though_nobody_lacks_it():
    """Of a busy workload nothing idles as a whole: its cold blocks leave, as many as are too many and no more."""
    shares = (partition("grower"), partition("donor", ceiling_bytes=mib(500)), partition("third"))
    world = busy_donor(partitions=shares).with_tenant("grower", held=100, need=100)
    plan = planned(world, pool(world, "donor", cold=300), pool(world, "third", cold=100))
    (action,) = of_kind(plan, SculptPool)

    assert action.workload == "donor"
    assert action.reason.code == "above-ceiling"
    assert sent_mib(plan) == pytest.approx(100, abs=1)
    assert "holds 100 MiB more than its partition may" in explain_action(action)


def test_a_backoff_holds_still():
    world = busy_donor(backoff_until_s=NOW_S + 5.0)

    assert not planned(world, pool(world, "donor", cold=300)).actions


def test_what_left_is_no_part_of_the_need():
    """The working set and the forecast still count what was sent out: without its pool it would come back at once."""
    world = busy_donor().with_tenant("donor", held=300, swapped=300, need=600, peak=600)
    world = world.with_tenant("grower", need=200)
    plan = planned(world, pool(world, "donor", gone=300, left_at_s=NOW_S - 5.0))

    assert of_kind(planned(world), PageIn)
    assert not of_kind(plan, PageIn)
    assert plan.division is not None
    assert plan.division.needed_bytes[1] == mib(300)


def test_a_forecast_is_corrected_only_as_long_as_it_remembers():
    """What is forecast long after the sculpt is growth to come, and is served."""
    world = busy_donor().with_tenant("donor", held=300, swapped=300, need=400, peak=300)
    world = world.with_tenant("grower", need=200)
    plan = planned(world, pool(world, "donor", gone=300, left_at_s=NOW_S - 700.0))

    assert plan.division is not None
    assert plan.division.needed_bytes[1] == mib(400)


def calm(sculpt: Sculpt = Sculpt.ALL, mode: Mode = Mode.APPLY, **changes) -> World:
    settings = Settings(mode=mode, plan=PlanSettings(sculpt=sculpt))
    return busy_donor(capacity=2000, settings=settings, **changes)


def hot_pool(world: World, **more) -> PoolSummary:
    return pool(world, "donor", **{"hot": 128, "fills": 2, "gain_s_per_s": 0.05, **more})


def test_hot_blocks_are_gathered_where_there_is_room():
    """A part at a time, with its reason; what it fills is within the room."""
    world = calm()
    (action,) = of_kind(planned(world, hot_pool(world)), SculptPool)

    assert action.request == HotZone(size_bytes=64 * MIB)
    assert "gathered they save 5.0% of a processor" in explain_action(action)


@pytest.mark.parametrize(
    ("world", "more"),
    [
        (calm(sculpt=Sculpt.COLD), {}),
        (calm(mode=Mode.OBSERVE), {}),
        (calm(), {"gathered_at_s": NOW_S - 30.0}),
        (calm(), {"hot": 1}),
        (calm(), {"fills": 1500}),
        (replace(calm(), capacity=1000), {}),
        (calm(backoff_until_s=NOW_S + 5.0), {}),
    ],
    ids=["not asked for", "observing", "gathered lately", "less than a region", "fills too much", "no room", "backoff"],
)
def test_hot_blocks_are_left_otherwise(world, more):
    assert not of_kind(planned(world, hot_pool(world, **more)), SculptPool)
