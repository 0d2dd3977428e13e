# SPDX-License-Identifier: Apache-2.0
"""Idle page tracking, against files that stand for main memory: no kernel here has it (docs/methods/heat.md)."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from memsculpt.errors import Unavailable
from memsculpt.host.linux.opened import find_instance
from memsculpt.host.linux.page_idle import PageIdleSource
from memsculpt_bench.known_pages import pages_from
from tests.trees.frames import EXCLUSIVE, HEAD, LRU, PRESENT, SWAPPED, TAIL, THP, write_frames

BASE = 1 << 32
REGION = 2 << 20


def entry(frame, shared=False):
    return PRESENT | frame | (0 if shared else EXCLUSIVE)


@pytest.fixture
def opened(tmp_path):
    """Open our own process, whose memory is said to lie in these frames."""
    made = []

    def open_on(pages, flags=None, folder="memory"):
        me = find_instance(os.getpid())
        frames = write_frames(tmp_path / folder, me.pid, me.start_ticks, pages, flags or {})
        source = PageIdleSource(str(frames.sys), str(frames.proc))
        reader = source.open(me)
        made.extend((reader, source))
        return frames, reader

    yield open_on
    for one in made:
        one.close()


def test_what_was_accessed_since_it_was_marked_is_touched(opened):
    pages = {BASE + number * 4096: entry(100 + 7 * number) for number in range(40)}
    frames, reader = opened(pages)
    cleared = reader.clear()
    assert frames.idle() == {100 + 7 * number for number in range(40)}
    assert cleared.cleared_bytes == 40 * 4096
    assert not reader.read().touched.any()
    frames.access(100, 100 + 7 * 39)
    touches = reader.read()
    assert np.flatnonzero(pages_from(touches, BASE, 40)).tolist() == [0, 39]
    assert int(touches.present.sum()) == 40
    extents = reader.survey()
    assert (extents.regions.tolist(), extents.present.tolist()) == ([BASE], [40])
    assert not touches.has_dirty


def test_of_a_huge_page_the_head_speaks(opened):
    """Its tails are never marked, and all of it is touched as soon as one access is seen."""
    pages = {BASE + number * 4096: entry(512 + number) for number in range(512)}
    flags = {512 + number: (HEAD | LRU if number == 0 else TAIL) | THP for number in range(512)}
    frames, reader = opened(pages, flags)
    reader.clear()
    assert frames.idle() == {512}
    assert not reader.read().touched.any()
    frames.access(512)
    touches = reader.read()
    assert int(touches.touched.sum()) == 512
    assert touches.is_huge.all()


def test_a_large_folio_s_tail_finds_its_own_head(opened):
    """Two neighbours of 16 pages, of which the process maps some tails alone; heads of others lie between."""
    flags = {64 + number: (HEAD | LRU if number % 16 == 0 else TAIL) for number in range(32)}
    pages = {BASE: entry(64 + 9), BASE + 4096: entry(64 + 25), BASE + 8192: entry(200)}
    frames, reader = opened(pages, flags)
    reader.clear()
    assert frames.idle() == {64, 80, 200}
    frames.access(80)
    touches = reader.read()
    assert np.flatnonzero(pages_from(touches, BASE, 3)).tolist() == [1]
    assert not touches.is_huge.any()


def test_pages_of_several_processes_and_untracked_ones_are_unknown(opened):
    """Anybody may have touched the first, and of the second nothing can be told; neither counts as touched."""
    pages = {BASE: entry(100, shared=True), BASE + 4096: entry(101), BASE + 8192: SWAPPED | 5}
    frames, reader = opened(pages, {101: 0})
    reader.clear()
    frames.access(100)
    touches = reader.read()
    assert int(touches.touched.sum()) == 0
    assert int(touches.unknown.sum()) == 2
    assert int(touches.swapped.sum()) == 1


def test_a_part_is_marked_alone(opened):
    held = [100 + 64 * number for number in range(6)]  # words of their own: a file does not add marks to marks
    frames, reader = opened({BASE + number * REGION: entry(frame) for number, frame in enumerate(held)})
    reader.clear()
    frames.access(*held)
    pauses = []
    part = reader.turn(BASE, BASE + 5 * REGION, pauses.append)
    assert int(part.touched.sum()) == 5
    assert pauses == [2 / 5, 4 / 5]
    assert frames.idle() == set(held[:5])
    assert reader.read().starts[reader.read().touched > 0].tolist() == [BASE + 5 * REGION]


def test_a_page_that_came_since_the_clear_is_touched(opened, tmp_path):
    pages = {BASE: entry(100), BASE + 4096: entry(0)}
    frames, reader = opened(pages)
    reader.clear()
    descriptor = os.open(frames.proc / str(os.getpid()) / "pagemap", os.O_WRONLY)
    os.pwrite(descriptor, entry(300).to_bytes(8, "little"), (BASE + 4096) // 4096 * 8)
    os.close(descriptor)
    assert np.flatnonzero(pages_from(reader.read(), BASE, 2)).tolist() == [1]


@given(frames=some.lists(some.integers(1, 4000), min_size=1, max_size=60, unique=True), data=some.data())
def test_whatever_frames_they_lie_in(frames, data, tmp_path_factory):
    """Marked are those of the process and no other; touched are those that were accessed."""
    accessed = data.draw(some.sets(some.sampled_from(frames)))
    me = find_instance(os.getpid())
    pages = {BASE + number * 4096: entry(frame) for number, frame in enumerate(frames)}
    made = write_frames(tmp_path_factory.mktemp("memory"), me.pid, me.start_ticks, pages, {})
    source = PageIdleSource(str(made.sys), str(made.proc))
    reader = source.open(me)
    try:
        reader.clear()
        assert made.idle() == set(frames)
        made.access(*accessed)
        found = pages_from(reader.read(), BASE, len(frames))
        assert {frames[number] for number in np.flatnonzero(found)} == accessed
    finally:
        reader.close()
        source.close()


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(Unavailable) as told:
        PageIdleSource(str(tmp_path / "sys"), str(tmp_path / "proc"))
    assert told.value.fix == "CONFIG_IDLE_PAGE_TRACKING"
    (tmp_path / "sys/kernel/mm/page_idle").mkdir(parents=True)
    (tmp_path / "sys/kernel/mm/page_idle/bitmap").touch()
    with pytest.raises(Unavailable) as told:
        PageIdleSource(str(tmp_path / "sys"), str(tmp_path / "proc"))
    assert told.value.fix == "CONFIG_PROC_PAGE_MONITOR"


def test_frames_that_are_hidden_are_said(opened):
    """The kernel shows zeros to who may not know."""
    _, reader = opened({BASE: entry(0), BASE + 4096: entry(0)})
    with pytest.raises(Unavailable, match="frame numbers"):
        reader.read()
