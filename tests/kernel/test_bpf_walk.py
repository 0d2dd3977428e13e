# SPDX-License-Identifier: Apache-2.0
"""The page walker and the clear before it, held against programs whose touched pages are known."""

import gc
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from memsculpt.domain.pages import PAGE_BYTES, count_bits
from memsculpt.domain.workload import Instance
from memsculpt.errors import Refused, Unavailable, Vanished
from memsculpt.host import sources
from memsculpt.host.bpf.pagewalk import RECORD, STATE, PageWalker, own_pages
from memsculpt.host.linux import clear_accessed, madvise
from memsculpt.host.linux.pagewalk import WalkingSource
from memsculpt.host.linux.smaps import SmapsSource
from memsculpt_bench.known_pages import built, compare, pages_from, toucher

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("page_walk")]
MIB_PAGES = (1 << 20) // PAGE_BYTES
OTHER_CPU = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def source():
    opened = WalkingSource()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def program():
    with built("toucher") as path:
        yield path


def every_third(pages):
    marked = np.zeros(pages, bool)
    marked[::3] = True
    return marked


def at_random(pages):
    return np.random.default_rng(5).random(pages) < 0.3


def by_huge_page(pages):
    """Every second huge page, all of whose pages then show as touched: the processor keeps one bit for it."""
    return np.arange(pages) // 512 % 2 == 0


def found_in_one_of(tries, attempt):
    """Right at least once: on a machine where DAMON runs, it clears some accessed bits between any two moments.

    A page that was not touched must never be found; one that was may be missed when another's clear fell between.
    """
    for _ in range(tries):
        found = attempt()
        assert found.wrong == 0
        if found.right == found.touched:
            return
    pytest.fail(f"{found.right} of {found.touched} pages found, {tries} times")


@pytest.mark.parametrize(("name", "kind"), [("walk_record", RECORD), ("walk_state", STATE)])
def test_the_records_are_what_the_program_writes(name, kind):
    header = (Path(__file__).parents[2] / "native" / "bpf" / "records.h").read_text()
    (body,) = re.findall(rf"struct {name} \{{(.*?)\n\}};", header, re.DOTALL)
    fields = re.findall(r"^\t(__[us]\d+) (\w+);", body, re.MULTILINE)
    kinds = {"__u64": "<u8", "__s32": "<i4", "__u32": "<u4"}
    assert np.dtype([(field, kinds[each]) for each, field in fields]) == kind


@pytest.mark.parametrize("hold_most_s", [1.0, 0.0], ids=["whole", "parts"])
@pytest.mark.parametrize("how", ["t", "w"])
@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("private", every_third),
        ("private", at_random),
        ("huge", by_huge_page),
        ("shared", at_random),
        ("file", every_third),
    ],
)
def test_every_touched_page_is_found_and_no_other(source, program, kind, pattern, how, hold_most_s):
    with toucher(program, kind, 64 * MIB_PAGES) as one:
        reader = source.open(sources.find_process(one.pid))
        marked = pattern(one.pages)

        def attempt():
            reader.clear(hold_most_s=hold_most_s)
            one.touch(marked, how)
            return compare(reader.read(), one.address, marked)

        found_in_one_of(3, attempt)
        reader.clear(hold_most_s=hold_most_s)
        assert not pages_from(reader.read(), one.address, one.pages).any()
        reader.close()


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_pages_that_came_last_on_another_processor_are_cleared_too(source, program, kind):
    """They lie in a batch of that processor, where MADV_COLD alone passes them over."""
    for _ in range(5):
        with toucher(program, kind, 4 * MIB_PAGES + 7, cpus={OTHER_CPU}) as one:
            reader = source.open(sources.find_process(one.pid))
            reader.clear(hold_most_s=0.0)
            assert not pages_from(reader.read(), one.address, one.pages).any()
            reader.close()


@pytest.mark.parametrize("kind", ["inherited", "copied"])
def test_pages_of_several_processes_are_exact_or_said_to_be_unknown(source, program, kind):
    with toucher(program, kind, 16 * MIB_PAGES) as one:
        reader = source.open(sources.find_process(one.pid))
        marked = at_random(one.pages)
        if not clear_accessed.keeps_soft_dirty():

            def attempt():
                reader.clear(hold_most_s=1.0)
                one.touch(marked)
                return compare(reader.read(), one.address, marked)

            found_in_one_of(3, attempt)
        cleared = reader.clear(hold_most_s=0.0)
        assert "mapped by several processes" in cleared.note
        one.touch(marked)
        touches = reader.read()
        assert compare(touches, one.address, marked).wrong == 0
        assert int(touches.unknown.sum()) >= int(marked.sum()) if kind == "copied" else touches.unknown.any()
        reader.close()


@pytest.mark.parametrize("hold_most_s", [1.0, 0.0], ids=["whole", "parts"])
@pytest.mark.parametrize("kind", ["private", "shared"])
@pytest.mark.parametrize("pages", [40, 200])
def test_a_program_that_never_leaves_its_processor_hides_nothing(source, program, kind, pages, hold_most_s):
    """Its translations stay in the TLB, so a clear without a flush would show it idle."""
    with toucher(program, kind, 8 * MIB_PAGES, cpus={OTHER_CPU}) as one:
        marked = np.zeros(one.pages, bool)
        marked[:pages] = True
        one.touch(marked, "s")
        reader = source.open(sources.find_process(one.pid))

        def attempt():
            reader.clear(hold_most_s=hold_most_s)
            for _ in range(3):
                time.sleep(0.002)
                reader.look()
            return compare(reader.read(), one.address, marked)

        for _ in range(3):
            found_in_one_of(3, attempt)
        reader.close()


def test_swapped_pages_are_told_and_found_when_they_come_back(source, program, own_swap):
    with toucher(program, "private", 32 * MIB_PAGES) as one:
        pidfd = os.pidfd_open(one.pid)
        half = one.pages // 2
        madvise.advise(pidfd, [(one.address, half * PAGE_BYTES)], madvise.MADV_PAGEOUT)
        os.close(pidfd)
        reader = source.open(sources.find_process(one.pid))
        reader.clear()
        inside = reader.read()
        rows = (inside.starts >= one.address) & (inside.starts < one.address + half * PAGE_BYTES)
        assert int(inside.swapped[rows].sum()) == half
        marked = every_third(one.pages)
        one.touch(marked)
        touches = reader.read()
        found = compare(touches, one.address, marked)
        assert found.wrong == 0
        assert found.recall > 0.99
        assert int(touches.swapped.sum()) == half - int(marked[:half].sum())
        reader.close()


def test_only_the_ranges_that_are_asked_for_are_cleared_and_read(source, program):
    with toucher(program, "private", 16 * MIB_PAGES) as one:
        reader = source.open(sources.find_process(one.pid))
        middle = (one.address + (8 << 20)) // (2 << 20) * (2 << 20)
        reader.clear([(middle, middle + (4 << 20))])
        touched = pages_from(reader.read(), one.address, one.pages)
        low = (middle - one.address) // PAGE_BYTES
        assert touched[:low].all()
        assert not touched[low : low + 4 * MIB_PAGES].any()
        assert touched[low + 4 * MIB_PAGES :].all()
        part = reader.read([(middle, middle + (2 << 20))])
        assert part.starts.min() >= middle
        assert part.ends.max() <= middle + (2 << 20)
        nothing = reader.read([(1 << 20, 2 << 20)])  # nothing is mapped so low
        assert len(nothing.starts) == 0
        assert nothing.is_complete
        reader.close()


def test_counts_agree_with_the_kernels_own(source, program):
    """Resident and referenced pages by mapping: smaps, the slow twin."""
    with toucher(program, "private", 16 * MIB_PAGES) as one:
        process = sources.find_process(one.pid)
        reader, twin = source.open(process), SmapsSource().open(process)
        reader.clear()
        one.touch(every_third(one.pages))
        fast, slow = reader.read(), twin.read()

        def by_mapping(touches):
            return {
                (each.start, each.name): (
                    int(touches.present[touches.mapping_index == row].sum()),
                    int(touches.touched[touches.mapping_index == row].sum()),
                )
                for row, each in enumerate(touches.mappings)
                if not each.name.startswith("[v")  # the kernel's own pages are not counted as resident
            }

        told, found = by_mapping(slow), by_mapping(fast)
        assert {key: value[0] for key, value in found.items() if value[0]} == {
            key: value[0] for key, value in told.items() if value[0]
        }
        # The kernel also counts pages whose bits others have cleared, and which it noticed (page_idle).
        assert all(value[1] <= told[key][1] for key, value in found.items() if value[0])
        assert sum(value[1] for value in found.values()) > 0.99 * sum(value[1] for value in told.values())
        reader.close()
        twin.close()


def test_memory_that_changes_between_two_looks(source, start):
    """Mapped, unmapped, moved and replaced by exec: each look shows what is there then."""
    child = start(
        "import mmap, sys, os\n"
        "held = [mmap.mmap(-1, 8 << 20)]\n"
        "for at in range(0, 8 << 20, 4096): held[0][at] = 1\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line.strip() == 'more':\n"
        "        held.append(mmap.mmap(-1, 4 << 20))\n"
        "        for at in range(0, 4 << 20, 4096): held[-1][at] = 1\n"
        "    elif line.strip() == 'less': held.pop(0).close()\n"
        "    elif line.strip() == 'exec':\n"
        "        os.execv(sys.executable, [sys.executable, '-c', 'print(1, flush=True); input()'])\n"
        "    print('done', flush=True)\n"
    )
    reader = source.open(child.instance())
    reader.clear()
    before = int(reader.read().present.sum())
    child.ask("more")
    grown = reader.read()
    assert int(grown.present.sum()) >= before + 4 * MIB_PAGES
    assert int(grown.touched.sum()) >= 4 * MIB_PAGES
    child.ask("less")
    assert int(reader.read().present.sum()) < int(grown.present.sum()) - 7 * MIB_PAGES
    assert child.ask("exec") == "1"
    replaced = reader.read()
    assert replaced.is_complete
    assert 0 < int(replaced.present.sum()) < before
    reader.close()


def test_processes_without_memory_are_refused_and_gone_ones_vanish(source, start):
    child = start("print('ready', flush=True); input()")
    instance = child.instance()
    reader = source.open(instance)
    child.popen.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Refused, match="zombie"):
        source.open(instance)
    with pytest.raises((Vanished, Refused)):
        reader.read()
    child.end()
    with pytest.raises(Vanished):
        source.open(instance)
    with pytest.raises(Vanished):
        reader.read()
    with pytest.raises(Vanished):
        reader.clear()
    reader.close()
    with pytest.raises(Refused, match="thread of the kernel"):
        source.open(Instance(pid=2, start_ticks=sources.find_process(2).start_ticks))
    with pytest.raises(Vanished):  # the pid is another's by now
        source.open(Instance(pid=os.getpid(), start_ticks=1))


def test_processes_that_end_in_the_middle_of_a_walk_give_no_wrong_answer(source, program):
    """Killed at every stage; what is answered is void or right, and nothing breaks."""
    for delay_us in range(0, 2000, 100):
        with toucher(program, "private", 32 * MIB_PAGES) as one:
            reader = source.open(sources.find_process(one.pid))
            subprocess.Popen(
                [sys.executable, "-S", "-c", f"import os,time;time.sleep({delay_us / 1e6});os.kill({one.pid},9)"]
            ).wait(10)
            try:
                touches = reader.read()
            except (Vanished, Refused):
                touches = None
            assert touches is None or int(touches.present.sum()) <= one.pages + 2000
            reader.close()


@pytest.fixture
def many_mappings_allowed():
    """Raise the limit of mappings (65,530 as a rule) for a while."""
    limit = Path("/proc/sys/vm/max_map_count")
    before = limit.read_text()
    limit.write_text(str(max(int(before), 300_000)))
    yield
    limit.write_text(before)


def test_many_mappings(source, start, many_mappings_allowed):
    """200,000 mappings, each of one page."""
    child = start(
        "import ctypes, mmap\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]\n"
        "libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "at = libc.mmap(None, 200000 * 4096, 3, 0x22, -1, 0)\n"
        "ctypes.memset(at, 1, 200000 * 4096)\n"
        "for n in range(0, 200000, 2): libc.mprotect(at + n * 4096, 4096, 1)\n"
        "print(at, flush=True); input(); print(ctypes.string_at(at, 4096 * 50)[0], flush=True); input()\n"
    )
    reader = source.open(child.instance())
    assert len(reader.read().mappings) > 200000
    for hold_most_s in (1.0, 0.0):
        reader.clear(hold_most_s=hold_most_s)
        assert int(reader.read().touched.sum()) < 100
    child.ask("go")
    assert int(pages_from(reader.read(), int(child.first), 200000).sum()) == 50
    reader.close()


def test_nothing_is_left_behind_after_many_looks(program):
    """Descriptors, maps and memory are flat over a thousand looks and a hundred processes."""

    def used():
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
        return len(os.listdir("/proc/self/fd")), resident

    source = WalkingSource()
    with toucher(program, "private", 4 * MIB_PAGES) as one:
        reader = source.open(sources.find_process(one.pid))
        for _ in range(20):
            reader.clear()
            reader.read()
        files, resident = used()
        for _ in range(1000):
            reader.read()
        for _ in range(100):
            reader.clear()
        assert used()[0] == files
        assert used()[1] < resident + (2 << 20)
        reader.close()
    for _ in range(30):
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
        reader = source.open(sources.find_process(child.pid))
        child.kill()
        with suppress(Vanished, Refused):
            reader.read()
        reader.close()
        child.communicate()
    assert used()[0] <= files
    source.close()
    for _ in range(3):
        with_program = PageWalker()
        with_program.close()
    assert used()[0] <= files - 3  # the program, its BTF and its maps are gone with it


def test_the_walker_finds_frames_as_pagemap_does():
    walker = PageWalker()
    attached = walker.attach(os.getpid())
    with own_pages() as pages:
        assert [attached.frame_of(address) for address in pages] == list(pages.values())
    attached.close()
    walker.close()


def test_without_the_compiled_program_it_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="was not compiled"):
        PageWalker(tmp_path)


def test_other_processes_pages_are_whole(source):
    """Every process of this machine can be walked, and has about the pages that statm tells."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            reader = source.open(sources.find_process(int(name)))
        except (Vanished, Refused, Unavailable):
            continue
        try:
            touches = reader.read()
            assert bool((touches.touched <= touches.present).all())
            assert int(count_bits(reader.bits.present).sum()) >= 0
        except (Vanished, Unavailable):
            continue
        finally:
            reader.close()
