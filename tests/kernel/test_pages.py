# SPDX-License-Identifier: Apache-2.0
"""Real pages of a real process: exactly those asked for leave, nothing is lost, and they come back mapped.

The second source is the process's own page tables, read here and not by what is tested.
"""

import os
import struct
from pathlib import Path

import pytest

from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished

pytestmark = [pytest.mark.needs("page_out"), pytest.mark.needs("page_in"), pytest.mark.needs("zram_control")]

PAGE = 4096
# Pages still in a processor's own batch (at most 31 each) are on no list that reclaim could take them from.
IN_BATCHES = 31 * (os.cpu_count() or 1)
MIB = 1 << 20

HOLDER = """
import ctypes, hashlib, mmap, random, sys
size = 16 << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
noise = random.Random(5).randbytes(2048)
for at in range(0, size, 4096):
    memory[at:at + 2056] = at.to_bytes(8, "little") + noise
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(address, hashlib.sha256(memory).hexdigest(), flush=True)
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "sum":
        print(hashlib.sha256(memory).hexdigest(), flush=True)
    elif word == "lock":
        libc = ctypes.CDLL(None)
        print(libc.mlock(ctypes.c_void_p(address + int(numbers[0])), ctypes.c_size_t(int(numbers[1]))), flush=True)
    elif word == "unmap":
        libc = ctypes.CDLL(None)
        print(libc.munmap(ctypes.c_void_p(address + int(numbers[0])), ctypes.c_size_t(int(numbers[1]))), flush=True)
"""


class Holder:
    """A child that holds 16 MiB of private memory at a known address."""

    size_bytes = 16 * MIB

    def __init__(self, child) -> None:
        self.child = child
        address, self.checksum = child.first.split()
        self.address = int(address)
        self.instance: Instance = child.instance()

    def swapped(self) -> set[int]:
        """The numbers of those of its 4,096 pages that are in swap."""
        with Path(f"/proc/{self.child.pid}/pagemap").open("rb") as pagemap:
            pagemap.seek(self.address // PAGE * 8)
            entries = struct.unpack("<4096Q", pagemap.read(4096 * 8))
        return {number for number, entry in enumerate(entries) if entry >> 62 & 1}

    def major_faults(self) -> int:
        return int(self.child.stat()[9])


@pytest.fixture
def holder(start, own_swap) -> Holder:
    return Holder(start(HOLDER))


def test_what_is_said_to_have_left_has_left_and_nothing_is_lost(host, holder):
    """All private memory but a little is asked for; the page tables agree with the answer, the content survives."""
    moved = host.page_out(holder.instance, 64 * MIB)

    assert 4096 - IN_BATCHES <= len(holder.swapped()) <= 4096
    assert moved.moved_bytes >= len(holder.swapped()) * 4096
    assert holder.child.ask("sum") == holder.checksum


def test_no_more_leaves_than_was_asked_for(host, holder):
    """As the kernel's own sum of the process's swap says; pages still in a processor's own list may not leave."""
    moved = host.page_out(holder.instance, 4 * MIB)
    swapped_kib = Path(f"/proc/{holder.child.pid}/status").read_text().partition("VmSwap:")[2].split()[0]

    assert 3 * MIB <= moved.moved_bytes <= 4 * MIB
    assert int(swapped_kib) * 1024 == moved.moved_bytes


def test_what_came_back_is_mapped(host, holder):
    """After a page-in every page can be read without a major fault."""
    host.page_out(holder.instance, 64 * MIB)
    out_bytes = len(holder.swapped()) * PAGE
    moved = host.page_in(holder.instance, 64 * MIB)
    before = holder.major_faults()

    assert moved.moved_bytes >= out_bytes
    assert holder.swapped() == set()
    assert holder.child.ask("sum") == holder.checksum
    assert holder.major_faults() == before


def test_what_left_before_leaves_again(host, holder):
    """A second round takes the same pages but for a few in batches, so the ones that stayed keep staying."""
    host.page_out(holder.instance, 8 * MIB)
    first = holder.swapped()
    host.page_in(holder.instance, 64 * MIB)
    host.page_out(holder.instance, 8 * MIB)

    assert first
    assert len(holder.swapped() ^ first) <= 2 * IN_BATCHES


def test_locked_pages_stay_and_hold_nobody_up(host, holder):
    """Pages before and behind a locked range leave; the locked ones do not, and nothing raises."""
    first, count = 1001, 300
    assert holder.child.ask(f"lock {first * PAGE} {count * PAGE}") == "0"
    host.page_out(holder.instance, 64 * MIB)

    may_leave = set(range(4096)) - set(range(first, first + count))
    assert holder.swapped() <= may_leave
    assert len(may_leave - holder.swapped()) <= IN_BATCHES
    assert holder.child.ask("sum") == holder.checksum


def test_a_process_that_ends_in_between_raises_vanished(host, holder):
    """Whoever is gone is gone, in both directions."""
    host.page_out(holder.instance, 4 * MIB)
    holder.child.end()

    with pytest.raises(Vanished):
        host.page_in(holder.instance, 4 * MIB)
    with pytest.raises(Vanished):
        host.page_out(holder.instance, 4 * MIB)
