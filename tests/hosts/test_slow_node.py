# SPDX-License-Identifier: Apache-2.0
"""What every host with a memory node without processors must do: move chosen ranges there and back."""

import pytest

from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable, Vanished
from tests.hosts.stages import MIB, Stage, offers
from tests.hosts.test_sculptor import heap, ranges_in

GUESTS = "tests/vm/test_slow_node.py asks kernels with two nodes"


@offers("slow_node", "page_walk", elsewhere=GUESTS)
def test_just_the_ranges_go_there_and_come_back(stage: Stage):
    """Each range tells what was done with it; nothing leaves memory, and the process finds all that it wrote."""
    start, end = heap(stage)
    room_bytes = stage.host.slow_room_bytes()
    wanted = ranges_in(start, (0, 1), (3, 3.5), (8, 12))
    there = stage.host.to_slow_node(stage.process, wanted)
    assert there.done_bytes.tolist() == [MIB, MIB // 2, 4 * MIB]
    assert stage.host.slow_runs(stage.process, [(start, end)]).tolist() == [list(one) for one in wanted]
    assert stage.host.slow_room_bytes() == room_bytes - there.moved_bytes
    assert int(stage.host.frames(stage.process, wanted).resident_bytes.sum()) == there.moved_bytes
    stage.touch_all()
    assert len(stage.host.slow_runs(stage.process, wanted)) == 3
    assert stage.host.to_slow_node(stage.process, wanted).problems == {"lies on the slow node already": 5.5 * MIB}

    back = stage.host.from_slow_node(stage.process, ranges_in(start, (3, 10)))
    assert back.moved_bytes == 2.5 * MIB
    assert stage.host.slow_runs(stage.process, [(start, end)]).tolist() == [
        list(one) for one in ranges_in(start, (0, 1), (10, 12))
    ]
    assert stage.host.from_slow_node(stage.process, [(start, end)]).moved_bytes == 3 * MIB
    assert stage.host.slow_room_bytes() == room_bytes
    stage.touch_all()


@offers("slow_node", "page_out", "page_walk", elsewhere=GUESTS)
def test_what_lies_there_may_go_on_to_the_swap(stage: Stage):
    """That gives its room there back; what comes from the swap comes to the fast node."""
    start, _ = heap(stage)
    some = ranges_in(start, (0, 4))
    room_bytes = stage.host.slow_room_bytes()
    stage.host.to_slow_node(stage.process, some)
    out = stage.host.page_out_ranges(stage.process, some)
    assert out.moved_bytes == pytest.approx(4 * MIB, abs=0.5 * MIB)
    assert stage.host.slow_room_bytes() == room_bytes - 4 * MIB + out.moved_bytes
    stage.host.bring_in_ranges(stage.process, some)
    assert stage.host.slow_room_bytes() == room_bytes - 4 * MIB + out.moved_bytes
    stage.touch_all()


@offers("slow_node", "collapse", "page_walk", elsewhere=GUESTS)
def test_huge_pages_move_whole(stage: Stage):
    stage.allow_huge()
    start, _ = heap(stage)
    stage.host.collapse(stage.process, ranges_in(start, (0, 4)))
    moved = stage.host.to_slow_node(stage.process, ranges_in(start, (1, 5)))
    assert moved.moved_bytes == 3 * MIB
    assert moved.problems == {"part of a huge page, which moves as a whole or not at all": MIB}
    assert stage.host.frames(stage.process, ranges_in(start, (0, 4))).huge_bytes.tolist() == [4 * MIB]


@offers("slow_node", "page_walk", elsewhere=GUESTS)
def test_who_is_gone_or_was_never_there_is_vanished(stage: Stage):
    start, _ = heap(stage)
    some = [(start, start + REGION_BYTES)]
    stranger = Instance(pid=stage.process.pid, start_ticks=stage.process.start_ticks + 1)
    calls = (stage.host.to_slow_node, stage.host.from_slow_node, stage.host.slow_runs)
    for call in calls:
        with pytest.raises(Vanished):
            call(stranger, some)
    stage.end_process()
    for call in calls:
        with pytest.raises(Vanished):
            call(stage.process, some)


def test_without_such_a_node_there_is_no_room_and_the_call_says_why(stage: Stage):
    """Where there is one, this machine's doctor says so, and the other tests here run."""
    if stage.host.capabilities().get("slow_node") and stage.host.capabilities()["slow_node"].available:
        assert stage.host.slow_room_bytes() > 0
        return
    assert stage.host.slow_room_bytes() == 0
    with pytest.raises(Unavailable, match="node"):
        stage.host.to_slow_node(stage.process, [(0, REGION_BYTES)])
