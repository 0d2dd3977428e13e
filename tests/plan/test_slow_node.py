# SPDX-License-Identifier: Apache-2.0
"""What changes its memory node, for which lack of fast memory, within which bounds, and with which reason."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.plan import Abilities, Plan, SculptPool
from memsculpt.domain.pool import ColdTo, ColdZone, PoolSummary, Promote
from memsculpt.domain.settings import PlanSettings, Settings
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.plan import PlannerState, choose, explain_action
from tests.plan.world import MIB, Tenant, World, mib, of_kind, partition

ABLE = PlannerState(abilities=Abilities(slow_node=True))
WORLD = World(
    tenants=(Tenant(name="grower", held=200, need=300), Tenant(name="web", held=300), Tenant(name="db", held=300)),
    partitions=(partition("grower"), partition("web"), partition("db")),
    capacity=2000,
)


def pool(name: str, demotable: float = 0.0, returned: float = 0.0, idle_s: float = 120.0) -> PoolSummary:
    return PoolSummary(
        pool=name,
        workload=WorkloadId(name),
        process=Instance(pid=len(name), start_ticks=1),
        demotable_bytes=mib(demotable),
        demotable_idle_s=idle_s,
        returned_bytes=mib(returned),
    )


def planned(
    *pools: PoolSummary,
    spare: float,
    room: float = 512,
    fast: float = 1000,
    planner: PlannerState = ABLE,
    world: World = WORLD,
    **settings: object,
) -> Plan:
    """The plan for a host with so many MiB of fast memory, of which `spare` are to be had."""
    observation, *rest, configured = world.arguments()
    memory = replace(
        observation.memory, fast_total_bytes=mib(fast), fast_spare_bytes=mib(spare), slow_room_bytes=mib(room)
    )
    configured = replace(configured, plan=PlanSettings(**settings))
    return choose(planner, replace(observation, memory=memory), *rest, configured, pools=pools)[1]


def moved(plan: Plan) -> dict[str, float]:
    """MiB by pool: to the slow node, and back from there below 0."""
    found: dict[str, float] = {}
    for each in of_kind(plan, SculptPool):
        sign = -1 if isinstance(each.request, Promote) else 1
        found[each.pool] = sign * each.size_bytes / MIB
    return found


def test_the_longest_idle_go_first_as_far_as_fast_memory_will_lack():
    """100 MiB more will be needed and 30 MiB be kept free; 50 MiB are to be had."""
    plan = planned(pool("web", 60, idle_s=60.0), pool("db", 60, idle_s=300.0), spare=50)
    assert moved(plan) == {"db": 60, "web": 20}
    (first, _) = of_kind(plan, SculptPool)
    assert first.request == ColdZone(size_bytes=mib(60), to=ColdTo.SLOW_NODE)
    assert (first.is_demotion, first.leaving_bytes) == (True, 0)
    told = explain_action(first)
    assert told.startswith(
        "db: send to the slow node 60.0 MiB of cold blocks of pool db: fast memory will lack 80.0 MiB"
    )
    assert "not touched for 5 min and more" in told


def test_with_fast_memory_to_spare_nothing_goes_there():
    assert moved(planned(pool("web", 200), spare=130)) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"slow_node": False},
        {"planner": PlannerState()},
        {"world": replace(WORLD, backoff_until_s=WORLD.now_s + 5.0)},
    ],
)
def test_switched_off_unable_or_holding_still_nothing_moves(more: dict[str, object]):
    assert moved(planned(pool("web", 200), pool("db", returned=50), spare=0, **more)) == {}


def test_a_full_node_is_told():
    plan = planned(pool("web", 200), spare=0, room=1)
    assert moved(plan) == {}
    assert [one.code for one in plan.held_back] == ["slow-node-full"]


def test_what_is_in_use_there_comes_back_into_what_is_free():
    """The margin of 30 MiB stays free, and a tick brings no more than its rate."""
    assert moved(planned(pool("web", returned=50), spare=60)) == {"web": -30}
    assert moved(planned(pool("web", returned=50), spare=500, page_in_bytes_per_s=16.0 * MIB)) == {"web": -16}
    plan = planned(pool("web", returned=50), spare=500)
    assert moved(plan) == {"web": -50}
    assert "web: bring back from the slow node 50.0 MiB" in explain_action(of_kind(plan, SculptPool)[0])


def test_what_leaves_for_the_swap_is_not_moved_besides():
    """The capacity is short: cold blocks of the web server leave for good, and not for the slow node."""
    cold = replace(pool("web", 100), cold_bytes=mib(200), idle_least_s=120.0, loss_ratio=0.001)
    plan = planned(cold, spare=0, world=replace(WORLD, capacity=800))
    (only,) = of_kind(plan, SculptPool)
    assert isinstance(only.request, ColdZone)
    assert only.request.to is ColdTo.SWAP


sizes = st.floats(0, 400)


@given(
    demotable=st.lists(sizes, min_size=2, max_size=2),
    returned=st.lists(sizes, min_size=2, max_size=2),
    spare=st.floats(0, 1000),
    room=st.floats(0, 600),
    rate=st.floats(8, 600),
)
def test_bounds_hold_whatever_is_asked(
    demotable: list[float], returned: list[float], spare: float, room: float, rate: float
):
    """No more than is cold, lacking, has room and is in the rate; and never both ways for one pool."""
    pools = [pool(*one) for one in zip(("web", "db"), demotable, returned, strict=True)]
    plan = planned(*pools, spare=spare, room=room, page_out_bytes_per_s=rate * MIB, page_in_bytes_per_s=rate * MIB)
    found = moved(plan)
    actions = of_kind(plan, SculptPool)
    there = sum(size for size in found.values() if size > 0)
    back = -sum(size for size in found.values() if size < 0)
    assert len(actions) == len(found)
    assert there <= min(room, rate, max(0.0, 130 - spare)) + 0.01  # pages are whole
    assert back <= min(rate, max(0.0, spare - 30)) + 0.01  # pages are whole
    for one in pools:
        size = found.get(one.pool, 0.0)
        assert -one.returned_bytes <= size * MIB <= one.demotable_bytes
        assert size <= 0 or size >= Settings().plan.min_move_bytes / MIB
