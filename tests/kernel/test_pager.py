# SPDX-License-Identifier: Apache-2.0
"""Pages of real processes: exactly those that were meant leave and come back, and nothing is lost on the way."""

import os
import threading
from pathlib import Path

import pytest

from memsculpt.errors import Transient, Vanished
from memsculpt.host.linux import pagemap, runs
from memsculpt.host.linux.pager import LinuxPager
from tests.kernel.conftest import MIB

PAGE = pagemap.PAGE
TIB = 1 << 40
# Pages that another processor touched last wait in its batch (31 folios) and cannot be isolated by us (mm/swap.c).
STRAGGLERS_BYTES = 64 * PAGE * (os.cpu_count() or 1)
INTERPRETER_BYTES = 4 * MIB  # what the holder has beside the memory that it was told to hold

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/hosts runs the pager's contract on every host"),
    pytest.mark.needs("zram_control"),
    pytest.mark.needs("page_out"),
    pytest.mark.needs("page_in"),
    pytest.mark.needs("pagemap"),
    pytest.mark.usefixtures("own_swap"),
]


@pytest.fixture
def pager():
    return LinuxPager()


def entries(holder, flags, ranges=None):
    """The runs of a process's pages with these flags."""
    descriptor = os.open(f"/proc/{holder.pid}/pagemap", os.O_RDONLY)
    try:
        memory = [(holder.address, holder.address + holder.size_bytes)]
        return pagemap.read_runs(descriptor, ranges or memory, flags)
    finally:
        os.close(descriptor)


def test_exactly_what_was_asked_leaves_and_survives(pager, start_holder):
    """As many bytes as asked are in swap by the page tables and by the kernel's own count; the content is as it was."""
    holder = start_holder()
    content = holder.ask("checksum")
    moved = pager.page_out(holder.instance, 20 * MIB)
    swapped = entries(holder, pagemap.SWAPPED)

    assert 20 * MIB - STRAGGLERS_BYTES <= moved.moved_bytes <= 20 * MIB
    assert holder.status_bytes("VmSwap") == pytest.approx(moved.moved_bytes, abs=64 << 10)
    assert moved.moved_bytes - INTERPRETER_BYTES <= runs.size_of(swapped) <= moved.moved_bytes
    assert runs.size_of(entries(holder, pagemap.PRESENT)) == holder.size_bytes - runs.size_of(swapped)
    assert holder.ask("checksum") == content


def test_what_is_brought_back_is_mapped(pager, start_holder):
    """After a page-in the process touches all its memory without any fault, major or minor."""
    holder = start_holder()
    holder.ask("touch")
    moved_out = pager.page_out(holder.instance, 24 * MIB)
    moved_in = pager.page_in(holder.instance, 24 * MIB)
    before = holder.faults()
    holder.ask("touch")
    after = holder.faults()

    assert moved_in.moved_bytes == moved_out.moved_bytes >= 24 * MIB - STRAGGLERS_BYTES
    assert after[1] == before[1]
    assert after[0] - before[0] < 16  # its own stack and heap; 6,144 pages came back


def test_the_same_pages_leave_again(pager, start_holder):
    """A set that alternates keeps what stayed: the second page-out takes the first one's pages, and no others."""
    holder = start_holder()
    pager.page_out(holder.instance, 12 * MIB)
    first = entries(holder, pagemap.SWAPPED)
    pager.page_in(holder.instance, 12 * MIB)
    back = entries(holder, pagemap.SWAPPED)
    pager.page_out(holder.instance, 12 * MIB)

    assert runs.size_of(back) == 0
    second = entries(holder, pagemap.SWAPPED)
    assert runs.size_of(runs.difference(second, first)) <= STRAGGLERS_BYTES
    assert runs.size_of(runs.difference(first, second)) <= STRAGGLERS_BYTES


def test_locked_memory_does_not_stand_in_the_way(pager, start_holder):
    """What may not leave is not chosen: the bytes asked for come from elsewhere."""
    holder = start_holder()
    assert holder.ask(f"lock {16 * MIB} {16 * MIB}") == "locked"
    moved = pager.page_out(holder.instance, 8 * MIB)
    swapped = entries(holder, pagemap.SWAPPED)

    assert moved.moved_bytes >= 8 * MIB - STRAGGLERS_BYTES
    assert len(swapped)
    assert int(swapped[-1, 1]) <= holder.address + 16 * MIB


def test_memory_shared_with_a_child_is_not_promised(pager, start_holder):
    """The kernel passes over what a forked child still shares: nothing of it is counted as moved."""
    holder = start_holder()
    child = int(holder.ask("fork"))
    moved = pager.page_out(holder.instance, 8 * MIB)

    assert runs.size_of(entries(holder, pagemap.SWAPPED)) <= moved.moved_bytes < 4 * MIB
    os.kill(child, 9)


@pytest.mark.needs("pagemap_scan")
def test_the_scan_loses_no_page(pager, start_holder):
    """What is read behind the kernel's scan is what reading every entry finds, present and swapped, with gaps."""
    holder = start_holder()
    pager.page_out(holder.instance, 8 * MIB)
    ranges = [(holder.address - holder.size_bytes, holder.address + 2 * holder.size_bytes)]
    descriptor = os.open(f"/proc/{holder.pid}/pagemap", os.O_RDONLY)
    try:
        for flags in (pagemap.PRESENT, pagemap.SWAPPED):
            whole = pagemap.read_entries(descriptor, ranges, flags)
            assert pagemap.read_runs(descriptor, ranges, flags).tolist() == whole.tolist()
            assert runs.size_of(whole) >= 7 * MIB
    finally:
        os.close(descriptor)


@pytest.mark.needs("pagemap_scan")
def test_a_reserved_terabyte_costs_nothing(pager, start_holder):
    """Only what was touched is looked at, and pages leave all the same."""
    holder = start_holder()
    assert holder.ask(f"reserve {TIB}") == "reserved"
    ranges = pagemap.parse_private(Path(f"/proc/{holder.pid}/maps").read_bytes())
    descriptor = os.open(f"/proc/{holder.pid}/pagemap", os.O_RDONLY)
    try:
        narrow = pagemap.touched_ranges(descriptor, ranges)
    finally:
        os.close(descriptor)

    assert sum(end - start for start, end in ranges) > TIB
    assert sum(end - start for start, end in narrow) < 128 * MIB
    assert pager.page_out(holder.instance, 4 * MIB).moved_bytes >= 4 * MIB - STRAGGLERS_BYTES


def test_a_process_that_ends_in_the_middle(pager, start_holder):
    """Killed while its pages move: what moved is told, or that it is gone, and no descriptor stays open."""
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        holder = start_holder(64 * MIB)
        killer = threading.Timer(0.01, holder.kill)
        killer.start()
        try:
            moved = pager.page_out(holder.instance, 64 * MIB)
        except Vanished:
            moved = None
        killer.join()
        holder.end()
        assert moved is None or 0 <= moved.moved_bytes <= 64 * MIB
    with pytest.raises(Vanished):
        pager.page_in(holder.instance, MIB)
    assert len(os.listdir("/proc/self/fd")) <= opened


def test_a_full_swap_is_said(tmp_path, start_holder):
    """When nothing can leave because there is no room to go to, the caller is told to come again later."""
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nSwapTotal: 8 kB\nSwapFree: 0 kB\n")

    with pytest.raises(Transient, match="swap is full"):
        LinuxPager(str(tmp_path))._check_swap(start_holder(MIB).instance)
