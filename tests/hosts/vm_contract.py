# SPDX-License-Identifier: Apache-2.0
"""What must hold of a virtual machine on every host: asked of the simulated one here, of QEMU in tests/vm."""

from collections.abc import Callable

import pytest

from memsculpt.domain.vm import VmId, VmReading, VmState
from memsculpt.errors import Refused, Vanished
from memsculpt.host.protocol import Host

MIB = 1 << 20


def reading_of(host: Host, name: str) -> VmReading:
    """Return what an observation says of the VM called `name`."""
    (found,) = [one for one in host.observe().vms if one.name == name]
    return found


def check_is_told_whole(host: Host, name: str, wait_for: Callable[[Callable[[], bool]], None]) -> None:
    """A VM with a balloon tells its size, and its guest what it uses; its process is the workload `vm:NAME`."""
    wait_for(lambda: reading_of(host, name).guest is not None)
    seen = host.observe()
    (vm,) = [one for one in seen.vms if one.name == name]
    row = int(seen.processes.workload_index[seen.processes.pids.tolist().index(vm.process.pid)])

    assert vm.workload == seen.workloads.ids[row] == f"vm:{name}"
    assert vm.state is VmState.RUNNING
    assert vm.problem == ""
    assert vm.features.balloon
    assert vm.balloon_bytes == vm.ram_bytes > 0
    assert vm.read_at_s <= seen.time_s
    assert vm.guest is not None
    assert vm.guest.updated_at_s <= seen.time_s
    assert vm.guest.total_bytes is not None
    assert vm.guest.used_bytes is not None
    assert 0 < vm.guest.used_bytes < vm.guest.total_bytes < vm.ram_bytes
    assert vm.vcpu_s > 0.0
    assert len({one.id for one in seen.vms}) == len(seen.vms)


def check_balloon_moves(host: Host, name: str, wait_for: Callable[[Callable[[], bool]], None]) -> None:
    """The balloon gets where it is asked to, and back; its guest sees less memory meanwhile, and so does the host."""
    vm = reading_of(host, name)
    half = vm.ram_bytes // 2

    asked = host.set_balloon(vm.id, half)
    assert (asked.asked_bytes, asked.before_bytes) == (half, vm.ram_bytes)
    wait_for(lambda: reading_of(host, name).balloon_bytes == half)
    assert host.read_balloon(vm.id) == half
    assert host.set_balloon(vm.id, vm.ram_bytes).before_bytes == half
    wait_for(lambda: reading_of(host, name).balloon_bytes == vm.ram_bytes)


def check_refuses_what_cannot_be(host: Host, name: str) -> None:
    """No balloon larger than the memory, none of nothing; nobody answers for a VM that is not there."""
    vm = reading_of(host, name)
    for size_bytes in (0, -1, vm.ram_bytes + 1):
        with pytest.raises(Refused, match="not within its memory"):
            host.set_balloon(vm.id, size_bytes)
    with pytest.raises(Vanished):
        host.set_balloon(VmId("no such VM"), 64 * MIB)
    with pytest.raises(Vanished):
        host.guest_ram(VmId("no such VM"))


def check_memory_is_found(host: Host, name: str) -> None:
    """Ranges ascend, do not overlap, and hold the memory, but for the little that a PC keeps for its firmware."""
    vm = reading_of(host, name)
    ram = host.guest_ram(vm.id)

    assert ram.process == vm.process
    ends = [one.guest_start + one.size_bytes for one in ram.ranges]
    assert all(end <= one.guest_start for end, one in zip(ends, ram.ranges[1:], strict=False))
    assert vm.ram_bytes - MIB <= sum(one.size_bytes for one in ram.ranges) <= vm.ram_bytes
    assert sum(end - start for start, end in ram.host_ranges()) == sum(one.size_bytes for one in ram.ranges)
