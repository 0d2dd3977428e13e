# SPDX-License-Identifier: Apache-2.0
"""DAMON, against its folder as files; on a kernel that has it see tests/vm/test_damon.py.

This machine's own is never opened: where somebody uses it, it is his.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from memsculpt.domain.pages import Grain
from memsculpt.errors import Unavailable, Vanished
from memsculpt.host.linux.damon import AGE_SLACK, SLOTS, DamonSource, accessed_since, sweep
from memsculpt.host.linux.kdamond import MARK, Stretches
from memsculpt.host.linux.opened import find_instance
from tests.trees.damon import contents, kdamond, region, write_damon, write_tree
from tests.trees.frames import EXCLUSIVE, PRESENT, write_frames

BASE = 1 << 32
MIB = 1 << 20
WATERMARKS = "0/contexts/0/schemes/0/watermarks"


@pytest.fixture
def memory(tmp_path):
    """8 MiB of our own process, all in memory."""
    me = find_instance(os.getpid())
    pages = {BASE + number * 4096: PRESENT | EXCLUSIVE | 1 for number in range(2048)}
    return str(write_frames(tmp_path / "memory", me.pid, me.start_ticks, pages, {}).proc)


@pytest.fixture
def me():
    return find_instance(os.getpid())


def mark(folder, pid, start_ticks):
    for name, value in (("high", pid), ("mid", start_ticks), ("interval_us", MARK)):
        (folder / WATERMARKS / name).write_text(f"{value}\n")


@pytest.mark.parametrize(("count", "operations"), [(1, "paddr\n"), (3, "vaddr\n")])
def test_where_somebody_uses_it_nothing_is_written(tmp_path, memory, count, operations):
    """Not even opened: every file is as before, and who asks is told why."""
    folder = write_damon(tmp_path / "sys", count=count, operations=operations)
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(Unavailable, match="in use by somebody else") as told:
        DamonSource(str(tmp_path / "sys"), memory)
    assert ("CONFIG_DAMON_VADDR" in told.value.problem) == ("vaddr" not in operations)
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_who_came_first_after_we_looked_keeps_it(tmp_path, memory, me):
    """It was free when the source was chosen, and is not when a process is opened."""
    folder = write_damon(tmp_path / "sys")
    source = DamonSource(str(tmp_path / "sys"), memory)
    (folder / "nr_kdamonds").write_text("1\n")
    before = contents(folder)
    with pytest.raises(Unavailable, match="somebody else"):
        source.open(me)
    source.close()
    assert contents(folder) == before


def test_looking_whether_it_is_free_writes_nothing(tmp_path, memory):
    folder = write_damon(tmp_path / "sys")
    before = contents(folder)
    DamonSource(str(tmp_path / "sys"), memory).close()
    assert contents(folder) == before


def test_a_kernel_without_it_says_what_is_missing(tmp_path):
    with pytest.raises(Unavailable) as told:
        DamonSource(str(tmp_path / "sys"))
    assert "CONFIG_DAMON_SYSFS" in told.value.fix


def test_a_process_is_set_up_and_given_back(tmp_path, memory, me):
    """What the kernel is told, and that nothing is left."""
    folder = write_damon(tmp_path / "sys", regions=[region(BASE, BASE + 8 * MIB, 0)])
    source = DamonSource(str(tmp_path / "sys"), memory)
    reader = source.open(me)
    written = contents(folder)
    assert written["nr_kdamonds"] == f"{SLOTS}\n"
    assert written["0/state"] == "on\n"
    assert written["0/contexts/0/operations"] == "vaddr\n"
    assert written["0/contexts/0/targets/0/pid_target"] == f"{me.pid}\n"
    assert written["0/contexts/0/schemes/0/action"] == "stat\n"
    assert int(written["0/contexts/0/schemes/0/access_pattern/sz/max"]) == (1 << 64) - 1
    reader.close()
    assert contents(folder)["0/state"] == "off\n"
    source.close()
    assert contents(folder)["nr_kdamonds"] == "0\n"


def test_what_is_accessed_is_told_block_by_block(tmp_path, memory, me):
    regions = [
        region(BASE + 3 * MIB, BASE + 8 * MIB, 0),
        region(BASE - MIB, BASE + MIB, 0),
        region(BASE + MIB, BASE + 3 * MIB, 7),
    ]
    write_damon(tmp_path / "sys", regions=regions)
    source = DamonSource(str(tmp_path / "sys"), memory)
    reader = source.open(me)
    touches = reader.read()
    assert touches.grain is Grain.REGION
    assert touches.touched_pages is None
    assert int(touches.present.sum()) == 2048
    extents = reader.survey()
    assert extents.regions.tolist() == [BASE + number * 2 * MIB for number in range(4)]
    assert extents.present.tolist() == [512] * 4
    hot = touches.touched > 0
    assert touches.starts[hot].min() == BASE + MIB
    assert touches.ends[hot].max() == BASE + 3 * MIB
    assert int(touches.touched.sum()) == 512
    reader.close()
    source.close()


def test_a_part_s_interval_begins_alone(tmp_path, memory, me):
    """What was seen before is forgotten there, and kept elsewhere."""
    folder = write_damon(tmp_path / "sys", regions=[region(BASE, BASE + 4 * MIB, 3)])
    source = DamonSource(str(tmp_path / "sys"), memory)
    reader = source.open(me)
    assert int(reader.turn(BASE, BASE + 2 * MIB, lambda _share: None).touched.sum()) == 512
    (folder / "0/contexts/0/schemes/0/tried_regions/0/nr_accesses").write_text("0\n")
    assert int(reader.read([(BASE, BASE + 2 * MIB)]).touched.sum()) == 0
    assert int(reader.read().touched.sum()) == 512
    reader.clear()
    assert int(reader.read().touched.sum()) == 0
    reader.close()
    source.close()


def test_what_one_look_noted_serves_the_parts_that_follow(tmp_path, memory, me):
    """Each part forgets its own when its interval begins, and no other."""
    folder = write_damon(tmp_path / "sys", regions=[region(BASE, BASE + 8 * MIB, 3)])
    source = DamonSource(str(tmp_path / "sys"), memory)
    reader = source.open(me)
    found = []
    for number in range(4):
        start = BASE + number * 2 * MIB
        found.append(int(reader.turn(start, start + 2 * MIB, lambda _share: None).touched.sum()))
        (folder / "0/contexts/0/schemes/0/tried_regions/0/nr_accesses").write_text("0\n")
    assert found == [512] * 4
    assert int(reader.read().touched.sum()) == 0
    reader.close()
    source.close()


@pytest.mark.parametrize("what", ["operations", "tried_regions"])
def test_what_this_kernel_s_damon_cannot_do_is_said_and_all_is_given_back(tmp_path, memory, me, what):
    """Without virtual addresses, and before 6.2, where its regions were not told."""
    folder = write_damon(tmp_path / "sys", operations="paddr\n" if what == "operations" else "vaddr\n")
    if what == "tried_regions":
        for number in range(SLOTS):
            (folder / f"{number}/contexts/0/schemes/0/tried_regions").rmdir()
    source = DamonSource(str(tmp_path / "sys"), memory)
    with pytest.raises(Unavailable) as told:
        source.open(me)
    assert ("CONFIG_DAMON_VADDR" if what == "operations" else "6.2") in told.value.fix
    assert contents(folder)["nr_kdamonds"] == "0\n"
    assert {contents(folder)[f"{number}/state"] for number in range(SLOTS)} == {"off\n"}


def test_more_processes_than_slots_are_refused(tmp_path, memory, me):
    write_damon(tmp_path / "sys")
    source = DamonSource(str(tmp_path / "sys"), memory)
    readers = [source.open(me) for _ in range(SLOTS)]
    with pytest.raises(Unavailable, match=f"{SLOTS} processes"):
        source.open(me)
    readers.pop().close()
    readers.append(source.open(me))
    for one in readers:
        one.close()
    source.close()


def test_what_a_dead_memsculpt_left_is_taken_down(tmp_path, memory, me):
    """Its pid and start are in fields that mean nothing to the kernel; nothing happens before a process is opened."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    folder = write_damon(tmp_path / "sys", count=SLOTS)
    mark(folder, child.pid, 1)
    (folder / "3/state").write_text("on\n")
    before = contents(folder)
    source = DamonSource(str(tmp_path / "sys"), memory)
    assert contents(folder) == before
    reader = source.open(me)
    assert contents(folder)["3/state"] == "off\n"
    reader.close()
    source.close()
    assert contents(folder)["nr_kdamonds"] == "0\n"


def test_the_sweep_takes_down_what_is_ours_and_dead_alone(tmp_path, memory, me):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    free = write_damon(tmp_path / "free")
    others = write_damon(tmp_path / "others", count=1)
    living = write_damon(tmp_path / "living", count=SLOTS)
    mark(living, me.pid, me.start_ticks)
    for folder in (free, others, living):
        before = contents(folder)
        assert not sweep(str(folder.parents[4]), memory)
        assert contents(folder) == before
    dead = write_damon(tmp_path / "dead", count=SLOTS)
    mark(dead, child.pid, 1)
    assert sweep(str(tmp_path / "dead"), memory)
    assert contents(dead)["nr_kdamonds"] == "0\n"


def test_a_living_memsculpt_keeps_it(tmp_path, memory, me):
    folder = write_damon(tmp_path / "sys", count=SLOTS)
    mark(folder, me.pid, me.start_ticks)
    with pytest.raises(Unavailable, match=f"another memsculpt, process {me.pid}"):
        DamonSource(str(tmp_path / "sys"), memory)


def test_what_somebody_took_from_us_is_left_alone(tmp_path, memory, me):
    """He made the number another one while we looked: then nothing there is ours any more."""
    folder = write_damon(tmp_path / "sys")
    source = DamonSource(str(tmp_path / "sys"), memory)
    source.open(me).close()
    (folder / "nr_kdamonds").write_text("2\n")
    source.close()
    assert contents(folder)["nr_kdamonds"] == "2\n"


def test_who_has_ended_is_vanished(tmp_path):
    """Its kdamond ends with it, and the kernel answers EINVAL, as the missing file does here."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    folder = write_damon(tmp_path / "sys", regions=[region(BASE, BASE + MIB, 1)])
    source = DamonSource(str(tmp_path / "sys"))
    reader = source.open(find_instance(child.pid))
    child.kill()
    child.communicate()
    (folder / "0/state").unlink()
    with pytest.raises(Vanished):
        reader.read()
    with pytest.raises(Vanished):
        reader.clear()
    reader.close()
    write_tree(tmp_path / "again", kdamond())
    (tmp_path / "again/state").rename(folder / "0/state")
    source.close()
    assert contents(folder)["nr_kdamonds"] == "0\n"


@given(
    ages=some.lists(some.integers(0, 50), min_size=1, max_size=20),
    aggregation=some.integers(0, 60),
    since=some.integers(0, 60),
)
def test_an_age_that_does_not_reach_back_tells_of_accesses(ages, aggregation, since):
    """Whatever the ages: without accesses a stretch that has stayed as it is since before the clear is untouched."""
    count = len(ages)
    found = Stretches(
        starts=np.arange(count, dtype=np.int64),
        ends=np.arange(count, dtype=np.int64) + 1,
        accesses=np.zeros(count, np.int64),
        ages=np.array(ages, np.int64),
        aggregation=aggregation,
    )
    accessed = accessed_since(found, np.full(count, since, np.int64))
    for age, told in zip(ages, accessed.tolist(), strict=True):
        assert told == (age < aggregation - since - AGE_SLACK)
    if since >= aggregation:
        assert not accessed.any()
