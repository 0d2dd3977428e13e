# SPDX-License-Identifier: Apache-2.0
"""Guest RAM as a pool: real guests on every backing, whose memory leaves, comes back and is gathered, unchanged."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.settings import Settings
from memsculpt.domain.vm import Backing, GuestRam
from memsculpt.errors import Vanished
from memsculpt.host import open_host
from memsculpt.host.linux import LinuxHost
from memsculpt_bench.guests import debian, lab, small
from memsculpt_bench.guests.small import SmallGuest, SmallMachine
from memsculpt_bench.lab import zram_swap

MIB = 1 << 20
FILLED = 96 * MIB
SHARED = (Backing.SHARED, Backing.MEMFD, Backing.FILE)

pytestmark = [
    pytest.mark.xdist_group("machine"),  # its memory leaves to this machine's swap
    pytest.mark.needs("root"),
    pytest.mark.needs("zram_control"),
    pytest.mark.needs("page_out"),
    pytest.mark.needs("collapse"),
]


@pytest.fixture(scope="module")
def own_swap() -> Iterator[None]:
    with zram_swap(512 * MIB):
        yield


@pytest.fixture(scope="session")
def filled_guest(tmp_path_factory: pytest.TempPathFactory) -> SmallMachine:
    """A guest with FILLED bytes of a pattern, booted once and saved: each test begins there, on its own backing."""
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    try:
        return small.saved(tmp_path_factory.mktemp("small"), FILLED)
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")


@pytest.fixture
def start(filled_guest: SmallMachine, tmp_path: Path) -> Iterator[Callable[..., SmallGuest]]:
    with contextlib.ExitStack() as stack:

        def started(backing: Backing) -> SmallGuest:
            return stack.enter_context(SmallGuest(replace(filled_guest, backing=backing), tmp_path / backing.value))

        yield started


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    opened = open_host(Settings())
    yield opened
    opened.close()


def smaps_bytes(pid: int, ram: GuestRam, name: str) -> int:
    """The kernel's own count for the RAM's mapping, found in another way than what is tested."""
    content = Path(f"/proc/{pid}/smaps").read_text()
    (start, _), *_ = ram.host_ranges()
    part = re.split(rf"^{start:x}-[0-9a-f]+ ", content, maxsplit=1, flags=re.MULTILINE)[1]
    return int(re.search(rf"^{name}: +(\d+) kB", part, re.MULTILINE)[1]) * 1024


@pytest.mark.usefixtures("own_swap")
@pytest.mark.parametrize("backing", [Backing.PRIVATE, *SHARED])
def test_ram_leaves_and_comes_back_as_the_kernel_counts_it(start, host, backing):
    """What is told to have moved is what smaps says, nothing outside the ranges moves, and the guest sees its bytes."""
    guest = start(backing)
    ram = guest.ram()
    host.know_guest(ram)
    ((begin, end),) = ram.host_ranges()
    half = begin + (end - begin) // 2 // REGION_BYTES * REGION_BYTES
    before = host.frames(ram.process, [(begin, half), (half, end)])
    out = host.page_out_ranges(ram.process, [(begin, half)])
    after = host.frames(ram.process, [(begin, half), (half, end)])

    # A guest that runs needs some of it again at once; what it never wrote leaves without being swapped.
    assert smaps_bytes(guest.pid, ram, "Rss") == pytest.approx(int(after.resident_bytes.sum()), abs=2 * MIB)
    assert out.moved_bytes == pytest.approx(int(before.resident_bytes[0] - after.resident_bytes[0]), abs=4 * MIB)
    assert out.moved_bytes > 0.85 * before.resident_bytes[0] > 32 * MIB
    assert smaps_bytes(guest.pid, ram, "Swap") == pytest.approx(int(after.swapped_bytes.sum()), abs=2 * MIB)
    assert after.swapped_bytes[0] > 32 * MIB
    assert after.swapped_bytes[1] == 0
    assert int(after.resident_bytes[1]) == pytest.approx(int(before.resident_bytes[1]), abs=MIB)

    back = host.bring_in_ranges(ram.process, [(begin, half)])
    assert back.moved_bytes == pytest.approx(int(after.swapped_bytes[0]), abs=4 * MIB)
    assert smaps_bytes(guest.pid, ram, "Swap") == 0
    assert guest.verify() == (FILLED // PAGE_BYTES, 0)


@pytest.mark.usefixtures("own_swap")
def test_a_back_end_in_another_process_keeps_what_it_maps(start, host):
    """What is mapped twice (vhost-user) stays and is told so; what is not leaves."""
    guest = start(Backing.MEMFD)
    ram = guest.ram()
    host.know_guest(ram)
    ((begin, end),) = ram.host_ranges()
    low = begin + 64 * MIB
    with back_end(guest.pid, begin, end) as memory:
        assert np.frombuffer(memory, np.uint8, 8 * MIB, low - begin)[::PAGE_BYTES].size == 8 * MIB // PAGE_BYTES
        held = int(np.frombuffer(memory, np.uint8, 8 * MIB, low - begin)[::PAGE_BYTES].astype(int).sum())
        out = host.page_out_ranges(ram.process, [(low, low + 16 * MIB)])
        assert int(np.frombuffer(memory, np.uint8, 8 * MIB, low - begin)[::PAGE_BYTES].astype(int).sum()) == held
    twice = next(size for cause, size in out.problems.items() if "vhost-user" in cause)
    assert twice == pytest.approx(8 * MIB, abs=MIB)
    assert 0 < out.moved_bytes <= 16 * MIB - twice
    assert guest.verify() == (FILLED // PAGE_BYTES, 0)


@contextlib.contextmanager
def back_end(pid: int, begin: int, end: int) -> Iterator[mmap.mmap]:
    """Map a guest's memory as a vhost-user back end does."""
    file = os.open(f"/proc/{pid}/map_files/{begin:x}-{end:x}", os.O_RDWR)
    try:
        with mmap.mmap(file, end - begin) as memory:
            yield memory
    finally:
        os.close(file)


@pytest.mark.usefixtures("own_swap")
def test_a_huge_page_of_shared_memory_is_made_split_and_leaves(start, host):
    """Gathered where mapping and file lie on borders; what a split unmaps is in memory still, and can leave."""
    guest = start(Backing.FILE)
    ram = guest.ram()
    host.know_guest(ram)
    low = ram.host_ranges()[0][0] + 64 * MIB
    some = [(low, low + 16 * MIB)]
    gathered = host.collapse(ram.process, some, REGION_BYTES)
    assert gathered.moved_bytes == 16 * MIB == smaps_bytes(guest.pid, ram, "ShmemPmdMapped")
    parted = host.split(ram.process, some)
    assert parted.moved_bytes == 16 * MIB
    assert host.frames(ram.process, some).resident_bytes.tolist() == [16 * MIB]
    out = host.page_out_ranges(ram.process, some)
    assert out.moved_bytes == pytest.approx(16 * MIB, abs=MIB)
    assert smaps_bytes(guest.pid, ram, "Swap") == pytest.approx(16 * MIB, abs=2 * MIB)
    assert guest.verify() == (FILLED // PAGE_BYTES, 0)


@pytest.mark.usefixtures("own_swap")
def test_memory_that_is_no_guests_and_what_cannot_be_huge_are_left(start, host):
    """Shared memory of a process that is no known guest stays; a memfd off the borders is not gathered, and why."""
    guest = start(Backing.MEMFD)
    ram = guest.ram()
    ((begin, end),) = ram.host_ranges()
    assert host.page_out_ranges(ram.process, [(begin, end)]).problems == {"shared memory": end - begin}
    host.know_guest(ram)
    low = -(-(begin + 64 * MIB) // REGION_BYTES) * REGION_BYTES
    told = host.collapse(ram.process, [(low, low + 8 * MIB)], REGION_BYTES)
    assert told.moved_bytes == 0
    assert any("borders of 2 MiB" in cause for cause in told.problems)
    assert "align=2M" in ram.why_not_gathered
    guest.close()
    with pytest.raises(Vanished):
        host.page_out_ranges(ram.process, [(begin, end)])
    host.forget_guest(ram.process)


@contextlib.contextmanager
def rearranging(host: LinuxHost, ram: GuestRam) -> Iterator[Future[int]]:
    """Have a thread send blocks of RAM out and back, gather and split, until the end; its result: bytes that left."""
    ((begin, end),) = ram.host_ranges()
    low = -(-begin // REGION_BYTES) * REGION_BYTES
    parts = [[(at, at + 16 * MIB)] for at in range(low, end - 16 * MIB, 16 * MIB)]
    is_over, has_begun = threading.Event(), threading.Event()

    def rearrange() -> int:
        left_bytes = 0
        while not is_over.is_set():
            for part in parts:
                left_bytes += host.page_out_ranges(ram.process, part).moved_bytes
                host.bring_in_ranges(ram.process, part)
                host.collapse(ram.process, part, REGION_BYTES)
                host.split(ram.process, part)
                has_begun.set()
        return left_bytes

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(rearrange)
        try:
            assert has_begun.wait(30.0) or result.done()
            yield result
        finally:
            is_over.set()


@pytest.mark.usefixtures("own_swap")
@pytest.mark.parametrize("backing", [Backing.PRIVATE, Backing.MEMFD])
def test_a_guest_is_saved_whole_while_its_ram_is_rearranged(start, host, filled_guest, tmp_path, backing):
    """What QEMU writes is what the guest wrote, whatever of it was on its way out or in; also of one that runs on."""
    guest = start(backing)
    ram = guest.ram()
    host.know_guest(ram)
    with rearranging(host, ram) as left:
        assert guest.verify() == (FILLED // PAGE_BYTES, 0)
        guest.save(tmp_path / "saved")
    assert left.result() > FILLED // 2
    guest.close()
    with SmallGuest(replace(filled_guest, backing=backing, state=tmp_path / "saved"), tmp_path / "again") as again:
        assert again.verify() == (FILLED // PAGE_BYTES, 0)


@pytest.mark.usefixtures("own_swap")
def test_a_guest_boots_anew_while_its_ram_is_rearranged(start, host):
    """A reset is nothing to the host's pages: the ranges stay the VM's, and the new guest's memory is its own."""
    guest = start(Backing.PRIVATE)
    ram = guest.ram()
    host.know_guest(ram)
    with rearranging(host, ram) as left:
        guest.boot_anew()
        guest.fill(FILLED, seed=2)
        assert guest.verify() == (FILLED // PAGE_BYTES, 0)
    assert left.result() > 0
    assert guest.ram() == ram
