# SPDX-License-Identifier: Apache-2.0
"""Guest RAM as a pool: real guests on every backing, whose memory leaves, comes back and is gathered, unchanged."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.settings import Settings
from memsculpt.domain.vm import Backing, GuestRam
from memsculpt.host import open_host
from memsculpt.host.linux import LinuxHost
from memsculpt_bench.guests import debian, lab, small
from memsculpt_bench.guests.small import SmallGuest, SmallMachine
from memsculpt_bench.lab import zram_swap

MIB = 1 << 20
FILLED = 96 * MIB
SHARED = (Backing.SHARED, Backing.MEMFD, Backing.FILE)

pytestmark = [
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
