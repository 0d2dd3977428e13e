# SPDX-License-Identifier: Apache-2.0
"""Heat, idle age and working sets from made-up looks; which slice has its turn."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.heat import LookAt, Looked, LookKind
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Extents, Grain, Mapping, Touches
from memsculpt.domain.settings import SenseSettings
from memsculpt.domain.workload import Instance
from memsculpt.profile import heat, sensing
from tests.profile.world import running, see, watch

BLOCK = 16 * PAGE_BYTES


def touches(*masks, start=0, present=16):
    """A row a block from `start` on, with the pages of its mask touched; None leaves the block out."""
    rows = [(start + number * BLOCK, mask) for number, mask in enumerate(masks) if mask is not None]
    pages = np.array([mask for _, mask in rows], np.uint16)
    starts = np.array([at for at, _ in rows], np.int64)
    count = len(rows)
    return Touches(
        mappings=(Mapping(start=0, end=1 << 40, name="[heap]", is_shared=False, is_file=False),),
        grain=Grain.PAGE,
        starts=starts,
        ends=starts + BLOCK,
        mapping_index=np.zeros(count, np.int64),
        present=np.full(count, present, np.int64),
        touched=np.bitwise_count(pages).astype(np.int64),
        touched_pages=pages,
        dirty=np.zeros(count, np.int64),
        swapped=np.zeros(count, np.int64),
        unknown=np.zeros(count, np.int64),
        is_huge=np.zeros(count, np.bool_),
    )


def test_the_working_set_is_the_union_over_its_window():
    """Ten looks of one second, each touching another page: ten pages in ten seconds, one in each."""
    state = heat.begin(0.0)
    for second in range(1, 11):
        state = heat.update(state, touches(1 << (second - 1)), float(second), cleared=True)
    one_s, ten_s, minute, ten_min = state.working_sets
    assert (one_s.touched_pages, ten_s.touched_pages) == (1, 10)
    assert ten_s.measured_s >= 9.0
    assert minute is None
    assert ten_min is None


def test_a_window_can_pass_without_a_clear():
    """A look at the age of a second tells of that second, whenever the turn comes."""
    state = heat.update(heat.begin(0.0), touches(0b11), 1.0, cleared=False)
    assert state.working_sets[0].touched_pages == 2
    state = heat.update(state, touches(0b1111), 5.0, cleared=False)
    assert state.working_sets[0].touched_pages == 2  # of the first second, not of five
    assert state.cleared_at_s == 0.0
    state = heat.update(state, touches(0b11111), 10.0, cleared=True)
    assert state.working_sets[1].touched_pages == 5
    assert state.touched_pages == 5


def test_heat_forgets_by_half_in_thirty_seconds():
    state = heat.update(heat.begin(0.0), touches(0xFFFF), 10.0, cleared=True)
    assert state.heat.tolist() == [1.0]
    state = heat.update(state, touches(0), 40.0, cleared=True)
    assert state.heat[0] == pytest.approx(0.5)
    assert state.idle_s(40.0).tolist() == [30.0]


@given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=12))
def test_heat_does_not_depend_on_how_often_is_looked(steps):
    """Always wholly touched after a first idle interval: only the time passed counts."""
    state = heat.update(heat.begin(0.0), touches(0), 1.0, cleared=True)
    now_s = 1.0
    for step in steps:
        now_s += step
        state = heat.update(state, touches(0xFFFF), now_s, cleared=True)
    assert state.heat[0] == pytest.approx(1.0 - 2.0 ** (-(now_s - 1.0) / heat.HALF_LIFE_S), abs=1e-4)


def test_blocks_that_come_and_go():
    state = heat.update(heat.begin(0.0), touches(0xFFFF, 0xFFFF), 10.0, cleared=True)
    state = heat.update(state, touches(None, 0, 0xFF), 20.0, cleared=True)
    assert state.starts.tolist() == [BLOCK, 2 * BLOCK]
    assert state.heat[1] == pytest.approx(0.5)  # the first interval is all that is known of it


def test_touches_of_two_looks_make_one():
    both = heat.merged(touches(0b01, 0b1), touches(0b10, 0b1, 0b100))
    assert both.touched.tolist() == [2, 1, 1]
    assert heat.merged(None, touches(1)).touched.tolist() == [1]


def test_blocks_of_any_size():
    told = touches(0b1, 0, 0b111, 0b1, start=4 * BLOCK)
    addresses, counts, _ = heat.blocks_of(told, 2 * BLOCK)
    assert addresses.tolist() == [4 * BLOCK, 6 * BLOCK]
    assert counts.tolist() == [1, 4]
    with pytest.raises(ValueError, match="power of two"):
        heat.blocks_of(told, 3 * BLOCK)


def test_modules():
    assert heat.module_of("/usr/lib/libc.so.6 (deleted)") == "/usr/lib/libc.so.6"
    assert heat.module_of("") == "[anonymous]"
    assert heat.module_of("", is_shared=True) == heat.module_of("/dev/shm/x") == "[shared memory]"


def many(regions):
    return touches(*([0xFFFF] * (32 * regions)))


def extents(regions):
    addresses = np.arange(regions, dtype=np.int64) * REGION_BYTES
    return Extents(regions=addresses, present=np.full(regions, 512, np.int64))


def test_slices_hold_64_mib_and_cover_everything():
    parts = sensing.slices_from(extents(80))
    assert parts[0].start == 0
    assert parts[-1].end == 80 * REGION_BYTES
    assert all(one.end == after.start for one, after in pairwise(parts))
    assert all(one.resident_pages * PAGE_BYTES <= sensing.SLICE_BYTES for one in parts)
    assert sum(one.resident_pages for one in parts) == 80 * 512
    assert sensing.slices_from(extents(0)) == ()


def looked(task, at_s, regions):
    """What an agent finds that looks at memory of so many regions, all of it touched."""
    if task.kind is LookKind.SURVEY:
        return Looked(task=task, at_s=at_s, cpu_s=1e-4, extents=extents(regions))
    told = many(regions)
    rows = (told.starts >= task.start) & (told.starts < task.end)
    part = touches(*[0xFFFF] * int(rows.sum()), start=task.start)
    return Looked(task=task, at_s=at_s, cpu_s=1e-4, touches=part, cleared=task.kind is LookKind.TURN)


def sensed(regions, heats=True):
    state = sensing.SensingState(processes={Instance(pid=10, start_ticks=1): sensing.Sensed(workload="w")})
    survey = LookAt(kind=LookKind.SURVEY, process=Instance(pid=10, start_ticks=1))
    state = sensing.absorb(state, [looked(survey, 1.0, regions)], touch_cost_s=0.0)
    if heats:
        (one,) = state.processes.values()
        for at_s in (2.0, 12.0):
            turns = [
                LookAt(kind=LookKind.TURN, process=Instance(pid=10, start_ticks=1), start=part.start, end=part.end)
                for part in one.slices
            ]
            state = sensing.absorb(state, [looked(turn, at_s, regions) for turn in turns], touch_cost_s=1e-6)
    return state


def test_what_is_found_touched_is_paid_for():
    state = sensed(2)
    assert state.spent_s == pytest.approx(3e-4 + 2 * 2 * 512 * 1e-6)
    assert state.saved_s == pytest.approx(-state.spent_s)


def test_the_summary_tells_what_is_hot():
    summary = sensing.summarize(sensed(4), source="bpf", now_s=12.0)
    assert summary.ids == ("w",)
    assert summary.resident_bytes.tolist() == [4 * REGION_BYTES]
    assert summary.hot_bytes.tolist() == [4 * REGION_BYTES]
    assert summary.idle_bytes.tolist() == [0]
    assert summary.covered_ratio.tolist() == [1.0]
    assert summary.working_set_bytes[0, 1] == 4 * REGION_BYTES
    assert np.isnan(summary.working_set_bytes[0, 3])
    assert summary.interval_s.tolist() == [10.0]


def test_what_the_budget_does_not_reach_is_told_from_a_part():
    """3 GiB, all of it touched all the time, and a budget for a slice a second: windows that pass are not missed."""
    regions = 1536
    job = running(at_s=0.0, anon=3072.0, pid=10)
    state = sensing.SensingState()
    for second in range(1, 31):
        observation = see(float(second), job, partition="p")
        (profiles,) = watch(observation)
        state, tasks = sensing.choose(
            state, observation, profiles, SenseSettings(budget_ratio=0.018), touch_cost_s=1e-6
        )
        turns = [task for task in tasks if task.kind is LookKind.TURN]
        assert len(turns) <= 2
        done = [looked(task, float(second), regions) for task in tasks]
        state = sensing.absorb(state, done, touch_cost_s=1e-6)
    summary = sensing.summarize(state, source="bpf", now_s=30.0)
    assert 0.3 < summary.covered_ratio[0] < 0.7
    assert summary.working_set_bytes[0, 0] == regions * REGION_BYTES
    assert summary.working_set_bytes[0, 1] == regions * REGION_BYTES
    assert summary.spent_ratio <= 0.02
    (process,) = state.processes.values()
    seen = [part.heat is not None for part in process.slices]
    assert any(seen[: len(seen) // 4])
    assert any(seen[-len(seen) // 4 :])  # all over, not from the lowest address on


def test_a_process_that_is_gone_is_forgotten_and_one_that_is_denied_is_left_alone():
    process = Instance(pid=10, start_ticks=1)
    task = LookAt(kind=LookKind.SURVEY, process=process)
    state = sensing.absorb(sensed(1), [Looked(task=task, at_s=20.0, cpu_s=0.0, is_gone=True)], touch_cost_s=0.0)
    assert not state.processes
    state = sensing.absorb(sensed(1), [Looked(task=task, at_s=20.0, cpu_s=0.0, problem="denied")], touch_cost_s=0.0)
    assert state.processes[process].paused_until_s > 20.0
    assert sensing.summarize(state, source="bpf", now_s=20.0).notes == ("pages are not looked at: denied",)


def test_a_source_that_never_looked_before_begins_an_interval_and_tells_of_none():
    """A stand-in's first turn: what it found is of no known interval, so heat and windows wait for its second."""
    state = sensed(1)
    process = next(iter(state.processes))
    (part,) = state.processes[process].slices
    turn = LookAt(kind=LookKind.TURN, process=process, start=part.start, end=part.end)
    later = Looked(
        task=turn,
        at_s=40.0,
        cpu_s=0.0,
        touches=touches(*[0] * 32),  # a source that knows of nothing: were it counted, everything would be idle
        cleared=True,
        is_first=True,
        problem="source bpf: no memory",
    )
    after = sensing.absorb(state, [later], touch_cost_s=0.0).processes[process]
    assert after.slices[0].heat.heat.tolist() == part.heat.heat.tolist()
    assert after.slices[0].heat.working_sets == part.heat.working_sets
    assert after.slices[0].heat.cleared_at_s == 40.0
    again = sensing.absorb(state, [later], touch_cost_s=0.0)
    notes = sensing.summarize(again, source="bpf", now_s=41.0).notes
    assert notes == ("pages are looked at by a lesser source: source bpf: no memory",)
