# SPDX-License-Identifier: Apache-2.0
"""What every host must do with chosen ranges of a process: gather, split, send out, bring back, measure."""

import numpy as np
import pytest

from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from tests.hosts.stages import MIB, Stage, offers


def heap(stage: Stage) -> tuple[int, int]:
    """The whole regions of 2 MiB of the memory that the scene's process has filled."""
    reader = stage.host.open_pages(stage.process)
    try:
        rows = reader.read()
    finally:
        reader.close()
    held = np.bincount(rows.mapping_index, weights=rows.present + rows.swapped)
    inside = rows.mapping_index == held.argmax()
    start, end = int(rows.starts[inside].min()), int(rows.ends[inside].max())
    return -(-start // REGION_BYTES) * REGION_BYTES, end // REGION_BYTES * REGION_BYTES


def ranges_in(start: int, *parts: tuple[float, float]) -> list[tuple[int, int]]:
    return [(start + round(low * MIB), start + round(high * MIB)) for low, high in parts]


@offers("page_out", "page_in", "page_walk")
def test_just_the_ranges_leave_and_come_back(stage: Stage):
    """Each range tells what was done with it, and what lies between stays as it is."""
    start, end = heap(stage)
    wanted = ranges_in(start, (0, 1), (3, 3.5), (8, 12))
    between = ranges_in(start, (1, 3), (3.5, 8))
    out = stage.host.page_out_ranges(stage.process, wanted)
    frames = stage.host.frames(stage.process, wanted)

    assert out.asked_bytes == 5.5 * MIB
    # Some 31 pages a processor lie in batches and stay (mm/swap.c).
    assert out.moved_bytes == pytest.approx(5.5 * MIB, abs=0.5 * MIB)
    assert out.done_bytes.tolist() == frames.swapped_bytes.tolist()
    assert out.moved_bytes == int(out.done_bytes.sum())
    assert int(stage.host.frames(stage.process, between).swapped_bytes.sum()) == 0
    assert (frames.resident_bytes + frames.swapped_bytes).tolist() == [MIB, MIB // 2, 4 * MIB]

    back = stage.host.bring_in_ranges(stage.process, [wanted[2]])
    assert back.moved_bytes == int(out.done_bytes[2])
    rest = stage.host.frames(stage.process, wanted)
    assert rest.swapped_bytes.tolist() == [*out.done_bytes[:2].tolist(), 0]
    assert stage.host.page_out_ranges(stage.process, []).moved_bytes == 0
    assert stage.host.bring_in_ranges(stage.process, [(start, end)]).moved_bytes == int(out.done_bytes[:2].sum())
    stage.touch_all()


@offers("collapse", "page_walk")
def test_regions_are_gathered_and_split_again(stage: Stage):
    """A whole region becomes one huge page of frames that follow one another; a part of one is left alone."""
    stage.allow_huge()
    start, _ = heap(stage)
    wanted = ranges_in(start, (0, 4), (8, 11))
    gathered = stage.host.collapse(stage.process, wanted)
    frames = stage.host.frames(stage.process, wanted)

    assert gathered.done_bytes.tolist() == [4 * MIB, 2 * MIB]
    assert frames.huge_bytes.tolist() == [4 * MIB, 2 * MIB]
    assert (frames.longest_run_bytes >= REGION_BYTES).all()
    assert gathered.grown_bytes == 0
    assert sum(gathered.problems.values()) == MIB
    again = stage.host.collapse(stage.process, wanted)
    assert again.moved_bytes == 0
    assert again.problems["is huge already"] == 6 * MIB

    parted = stage.host.split(stage.process, ranges_in(start, (2, 4), (8, 16)))
    assert parted.done_bytes.tolist() == [2 * MIB, 2 * MIB]
    assert stage.host.frames(stage.process, wanted).huge_bytes.tolist() == [2 * MIB, 0]
    assert stage.host.frames(stage.process, wanted).resident_bytes.tolist() == [4 * MIB, 3 * MIB]
    stage.touch_all()


@offers("collapse", "page_out", "page_walk")
def test_a_part_of_a_huge_page_may_leave(stage: Stage):
    """The huge page is split for it, and the rest of it stays in memory."""
    stage.allow_huge()
    start, _ = heap(stage)
    stage.host.collapse(stage.process, ranges_in(start, (0, 2)))
    out = stage.host.page_out_ranges(stage.process, ranges_in(start, (1, 2)))
    frames = stage.host.frames(stage.process, ranges_in(start, (0, 1), (1, 2)))
    assert out.moved_bytes == MIB
    assert frames.huge_bytes.tolist() == [0, 0]
    assert frames.resident_bytes.tolist() == [MIB, 0]
    # A gathering of what has left brings it back.
    stage.host.collapse(stage.process, ranges_in(start, (0, 2)), REGION_BYTES)
    assert stage.host.frames(stage.process, ranges_in(start, (0, 2))).huge_bytes.tolist() == [2 * MIB]
    stage.touch_all()


@offers("page_out", "collapse", "page_walk")
def test_what_is_not_mapped_is_counted_and_left(stage: Stage):
    """Ranges reach beyond what is there: the rest is done."""
    _, end = heap(stage)
    nowhere = (1 << 45, (1 << 45) + 8 * MIB)
    wanted = [(end - 2 * MIB, end), nowhere]
    out = stage.host.page_out_ranges(stage.process, wanted)
    assert int(out.done_bytes[1]) == 0
    assert int(out.done_bytes[0]) > MIB
    assert out.problems["not mapped"] == 8 * MIB
    for call in (stage.host.collapse, stage.host.split, stage.host.bring_in_ranges):
        told = call(stage.process, [nowhere])
        assert told.moved_bytes == 0
        assert told.problems["not mapped"] == 8 * MIB
    assert stage.host.frames(stage.process, [nowhere]).resident_bytes.tolist() == [0]


@offers("page_out", "page_walk")
def test_pages_are_sampled_without_bringing_them_back(stage: Stage):
    """What is in memory is compressed on trial; what is swapped or absent is not known, and stays where it is."""
    start, _ = heap(stage)
    out = ranges_in(start, (0, 1))
    stage.host.page_out_ranges(stage.process, out)
    swapped = stage.host.frames(stage.process, out).swapped_bytes.tolist()
    ratios = stage.host.packed_ratio(stage.process, np.array([start, start + 4 * MIB, 1 << 45]))
    assert np.isnan(ratios[[0, 2]]).all()
    assert 0.0 < ratios[1] <= 1.0
    assert stage.host.frames(stage.process, out).swapped_bytes.tolist() == swapped


@offers("page_out", "collapse", "page_walk")
def test_a_process_that_is_gone_is_vanished(stage: Stage):
    """Nothing is done to whoever has the pid next."""
    start, _ = heap(stage)
    some = [(start, start + REGION_BYTES)]
    stranger = Instance(pid=stage.process.pid, start_ticks=stage.process.start_ticks + 1)
    host = stage.host
    calls = (host.collapse, host.split, host.page_out_ranges, host.bring_in_ranges, host.frames)
    for call in calls:
        with pytest.raises(Vanished):
            call(stranger, some)
    stage.end_process()
    for call in calls:
        with pytest.raises(Vanished):
            call(stage.process, some)
    with pytest.raises(Vanished):
        host.packed_ratio(stage.process, np.array([start]))
