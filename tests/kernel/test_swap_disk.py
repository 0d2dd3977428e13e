# SPDX-License-Identifier: Apache-2.0
"""Pages of real processes on their way to a swap file on disk and back."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memsculpt.host.linux.pager import LinuxPager
from memsculpt_bench.lab import file_swap
from tests.kernel.conftest import MIB

BATCHES_BYTES = 4 * MIB  # pages in other processors' batches, page tables, the interpreter's own

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/hosts runs the pager's contract on every host"),
    pytest.mark.needs("page_out"),
    pytest.mark.needs("page_in"),
    pytest.mark.needs("pagemap"),
    pytest.mark.usefixtures("disk_swap"),
]


@pytest.fixture(scope="module")
def disk_swap() -> Iterator[None]:
    """A swap file that is filled before any other swap; /tmp may be memory, /var/tmp is not."""
    with (
        tempfile.TemporaryDirectory(prefix="memsculpt-", dir="/var/tmp") as folder,
        file_swap(256 * MIB, Path(folder), priority=32_000),
    ):
        yield


def used_bytes(own_folder: Path) -> int:
    return int((own_folder / "memory.usage_in_bytes").read_text())


def test_what_left_is_free(start_holder, own_folder):
    """The cgroup's charge falls by what is said to have moved, the first time and when the pages are clean."""
    holder = start_holder(64 * MIB)
    content, pager = holder.ask("checksum"), LinuxPager()
    for _ in range(3):
        before = used_bytes(own_folder)
        moved = pager.page_out(holder.instance, 48 * MIB)
        assert moved.moved_bytes >= 48 * MIB - BATCHES_BYTES
        assert before - used_bytes(own_folder) >= moved.moved_bytes - BATCHES_BYTES
        assert pager.page_in(holder.instance, 48 * MIB).moved_bytes == moved.moved_bytes

    assert holder.ask("checksum") == content


def test_what_was_written_to_leaves_anew(start_holder, own_folder):
    """Pages changed since they came back still have their place in swap: they are written, and freed all the same."""
    holder = start_holder(32 * MIB)
    pager = LinuxPager()
    pager.page_out(holder.instance, 24 * MIB)
    pager.page_in(holder.instance, 24 * MIB)
    content = holder.ask("change")
    before = used_bytes(own_folder)
    moved = pager.page_out(holder.instance, 24 * MIB)

    assert before - used_bytes(own_folder) >= moved.moved_bytes - BATCHES_BYTES
    assert moved.moved_bytes >= 24 * MIB - BATCHES_BYTES
    assert holder.ask("checksum") == content


def test_what_is_brought_back_is_mapped(start_holder):
    """After a page-in the process touches all its memory without a fault."""
    holder = start_holder()
    holder.ask("touch")
    pager = LinuxPager()
    pager.page_out(holder.instance, 24 * MIB)
    moved = pager.page_in(holder.instance, 24 * MIB)
    before = holder.faults()
    holder.ask("touch")
    after = holder.faults()

    assert moved.moved_bytes >= 24 * MIB - BATCHES_BYTES
    assert after[1] == before[1]
    assert after[0] - before[0] < 16
