# SPDX-License-Identifier: Apache-2.0
"""Real QEMUs and real guests, seen from the host: found, asked, ballooned, and their memory located by its content."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt.domain.settings import PartitionSettings, Settings, VmSettings
from memsculpt.domain.vm import Backing, VmId, VmState
from memsculpt.domain.workload import Match
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt_bench import known_pages
from memsculpt_bench.guests import bare, debian, lab
from memsculpt_bench.guests.bare import BareMachine
from memsculpt_bench.guests.guest import Guest, compiled
from tests.hosts import vm_contract
from tests.hosts.vm_contract import MIB, reading_of

BALLOON = ("-device", "virtio-balloon-pci,id=balloon0")
UUIDS = {
    "split": "6f9619ff-8b86-d011-b42d-00c04fc964ff",
    "memfd": "0b6f6e2c-6f1b-4d3a-9a52-2f0f3c1a7e11",
    "huge": "5d1c2f7a-6a35-4d0c-8a54-53b1c1b2e7d9",
}
SIZES = {"split": 3 << 30, "memfd": 256 * MIB, "huge": 160 * MIB}
BACKINGS = {"split": Backing.PRIVATE, "memfd": Backing.MEMFD, "huge": Backing.HUGETLB}
SET_ASIDE = Path("/proc/sys/vm/nr_hugepages")
HUGE_BYTES = 2 * MIB
FRAMES = 8
MONITORS = 4  # each serves one client, and an agent of another test on this machine may find them, too

# Any host that is opened on this machine finds these guests and takes one of their monitors.
pytestmark = [pytest.mark.needs("root"), pytest.mark.xdist_group("machine")]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Guest]]:
    """VMs with memory split around the PCI hole, in a memfd, in huge pages set aside; frames of each are known."""
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    folder = tmp_path_factory.mktemp("monitors")
    try:
        frames = compiled(known_pages.SOURCES / "frames.c", folder)
        kernel, initramfs = bare.prepare(lab.cache(), folder, programs={"frames": frames})
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    of_a_memfd = (
        *("-object", f"memory-backend-memfd,id=pool,size={SIZES['memfd']},share=on"),
        *("-machine", "memory-backend=pool"),
    )
    of_huge_pages = (
        *("-object", f"memory-backend-memfd,id=pool,size={SIZES['huge']},hugetlb=on,hugetlbsize=2M,prealloc=on"),
        *("-machine", "memory-backend=pool"),
    )
    with ExitStack() as stack:
        stack.enter_context(set_aside(SIZES["huge"] // HUGE_BYTES))
        made: dict[str, Guest] = {}
        for name, backend in (("split", ()), ("memfd", of_a_memfd), ("huge", of_huge_pages)):
            machine = BareMachine(
                kernel_image=kernel,
                initramfs=initramfs,
                name=f"{name},debug-threads=on",
                memory_bytes=SIZES[name],
                memory_backend=not backend,
                monitor=folder / f"{name}-0.qmp",
                more=("-uuid", UUIDS[name].upper(), *BALLOON, *backend, *_monitors(folder, name)),
            )
            made[name] = stack.enter_context(bare.guest(machine, folder / name))
        yield made


@contextlib.contextmanager
def set_aside(count: int) -> Iterator[None]:
    """Have the machine set so many huge pages aside; as before afterwards."""
    before = SET_ASIDE.read_text()
    SET_ASIDE.write_text(str(int(before) + count))
    try:
        if int(SET_ASIDE.read_text()) < int(before) + count:
            pytest.skip(f"hugetlb: {count} huge pages are not to be had on this machine now")
        yield
    finally:
        SET_ASIDE.write_text(before)


def _monitors(folder: Path, name: str) -> list[str]:
    places = [folder / f"{name}-{number}.qmp" for number in range(1, MONITORS)]
    return [word for place in places for word in ("-qmp", f"unix:{place},server=on,wait=off")]


@pytest.fixture(scope="module")
def host(guests: dict[str, Guest]) -> Iterator[Host]:
    settings = replace(Settings(), interval_s=0.2, vms=VmSettings(timeout_s=1.0))
    opened = open_host(settings)
    yield opened
    opened.close()


def wait_for(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.05)


@pytest.mark.parametrize("name", UUIDS)
def test_what_holds_of_every_vm_holds_of_qemu(guests, host, name):
    """The contract that the simulated host keeps, too; and it is known by its UUID and its process."""
    vm_contract.check_is_told_whole(host, name, wait_for)
    vm_contract.check_refuses_what_cannot_be(host, name)
    vm_contract.check_memory_is_found(host, name)
    vm = reading_of(host, name)
    assert (vm.id, vm.process.pid) == (UUIDS[name], guests[name].pid)
    assert vm.ram_bytes == SIZES[name]
    assert not vm.features.deflate_on_oom
    assert vm.guest is not None
    told = int(guests[name].check("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
    assert vm.guest.total_bytes == told * 1024


@pytest.mark.parametrize("name", UUIDS)
def test_guest_memory_is_where_it_is_said_to_be(guests, host, name):
    """What a program of the guest wrote to known frames stands at the addresses that follow from them."""
    guest = guests[name]
    guest.check(f"frames {FRAMES} > /tmp/frames 2>&1 & echo $! > /tmp/frames.pid")
    guest.wait_until(f"[ $(wc -l < /tmp/frames) = {FRAMES} ]")
    ram = host.guest_ram(VmId(UUIDS[name]))
    assert ram.backing is BACKINGS[name]
    highest = 0
    memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDONLY)
    try:
        for line in guest.check("cat /tmp/frames").splitlines():
            address, words = line.split(" ", 1)
            at = ram.host_address(int(address))
            assert at is not None
            assert os.pread(memory, len(words) + 1, at) == words.encode() + b"\0"
            highest = max(highest, int(address))
    finally:
        os.close(memory)
        guest.check("kill $(cat /tmp/frames.pid)")
    if name == "split":
        assert highest >= 4 << 30, "no frame above the hole: this guest does not test what lies there"


def test_huge_pages_that_were_set_aside_are_not_moved(host):
    """Where they lie is known, and why nothing is done with them; a sculpt leaves them, and says so."""
    ram = host.guest_ram(VmId(UUIDS["huge"]))
    assert ram.page_bytes == HUGE_BYTES
    assert "huge TLB" in ram.why_not_moved
    host.know_guest(ram)
    for call in (host.page_out_ranges, host.collapse):
        told = call(ram.process, ram.host_ranges())
        assert told.moved_bytes == 0
        assert sum(told.problems.values()) == told.asked_bytes > SIZES["huge"] - MIB
    host.forget_guest(ram.process)


def test_a_balloon_takes_what_the_guest_has_freed(guests, host):
    """256 MiB of guest, 120 MiB touched and freed: the balloon gives them back to the host, deflating takes none."""
    guest = guests["memfd"]
    guest.check("dd if=/dev/zero of=/tmp/fill bs=1M count=120 2>/dev/null; rm /tmp/fill")
    wait_for(lambda: reading_of(host, "memfd").guest is not None)

    def resident() -> int:
        lines = Path(f"/proc/{guest.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:"))

    before = resident()
    assert before > 150 * MIB
    asked = host.set_balloon(VmId(UUIDS["memfd"]), 128 * MIB)
    assert asked.before_bytes == 256 * MIB
    wait_for(lambda: reading_of(host, "memfd").balloon_bytes == 128 * MIB)
    small = resident()
    assert small < before - 60 * MIB
    wait_for(lambda: _total(host, "memfd") < 128 * MIB)
    host.set_balloon(VmId(UUIDS["memfd"]), 256 * MIB)
    wait_for(lambda: reading_of(host, "memfd").balloon_bytes == 256 * MIB)
    assert resident() < before - 60 * MIB


def _total(host: Host, name: str) -> int:
    guest = reading_of(host, name).guest
    assert guest is not None
    assert guest.total_bytes is not None
    return guest.total_bytes


def test_a_qemu_that_hangs_delays_nobody(guests, host):
    """A stopped process answers nothing: it is said, its figures stay, the other VM is asked on, and it comes back."""
    known = reading_of(host, "split")
    os.kill(guests["split"].pid, signal.SIGSTOP)
    try:
        wait_for(lambda: reading_of(host, "split").state is VmState.UNREACHABLE)
        before = reading_of(host, "memfd")
        wait_for(lambda: reading_of(host, "memfd").read_at_s > before.read_at_s)
        hung = reading_of(host, "split")
        assert "no answer" in hung.problem
        assert hung.ram_bytes == known.ram_bytes
    finally:
        os.kill(guests["split"].pid, signal.SIGCONT)
    wait_for(lambda: reading_of(host, "split").problem == "", timeout_s=60.0)
    assert reading_of(host, "split").state is VmState.RUNNING


def test_rules_by_vm_take_it(guests, host):
    """`match = { vm = ... }` puts it into its partition, by its name."""
    host.watch([PartitionSettings(name="vms", match=Match(vm="spl*"))])
    seen = host.observe()
    partitions = dict(zip(seen.workloads.ids, seen.workloads.partitions, strict=True))
    assert partitions["vm:split"] == "vms"
    assert partitions["vm:memfd"] is None
    host.watch([])


def test_statistics_are_switched_off_again(guests, host):
    """Whoever ends leaves a guest's statistics as he found them. The last test: the monitors are free afterwards."""
    links = host._vms.monitors._links.values()
    (link,) = [one for one in links if one.target.process.pid == guests["memfd"].pid]
    was_ours = link.asking.farewell() != []  # another test's agent may have come first; then they stay switched on
    host._vms.close()
    assert _polling_interval(link.target.sockets) == (0 if was_ours else 1)


def _polling_interval(sockets: tuple[str, ...]) -> int:
    """Ask QEMU itself, through the first monitor that is free."""
    about = {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"}
    for place in sockets:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(TimeoutError):
            client.settimeout(2.0)
            client.connect(place)
            stream = client.makefile("rwb")
            for asked in ({"execute": "qmp_capabilities"}, {"execute": "qom-get", "arguments": about}):
                stream.write(json.dumps(asked).encode() + b"\n")
                stream.flush()
            return [json.loads(stream.readline()) for _ in range(3)][-1]["return"]
    pytest.fail("no monitor is free")
