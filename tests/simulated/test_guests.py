# SPDX-License-Identifier: Apache-2.0
"""Simulated virtual machines: guests that are willing, deaf, lying, swapping, dying."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.vm import VmFeatures, VmState
from memsculpt.domain.workload import Match
from memsculpt.errors import Refused, Transient
from memsculpt.host.simulated import Constant, Driver, Program, SilentMonitor, SimulatedHost, VirtualMachine, Word
from tests.hosts import vm_contract
from tests.hosts.vm_contract import MIB, reading_of

GIB = 1 << 30
FORGIVING = VmFeatures(balloon=True, deflate_on_oom=True)


def a_vm(name: str = "web-1", *, ram: int = 512 * MIB, needs: int = 128 * MIB, **more) -> VirtualMachine:
    return VirtualMachine(name=name, ram_bytes=ram, demand=more.pop("demand", lambda _: needs), **more)


def a_host(*vms: Program, **more) -> SimulatedHost:
    host = SimulatedHost(3, total_bytes=8 * GIB, workloads=vms, chunk_bytes=1 * MIB, **more)
    run(host, 3.0)
    return host


def run(host: SimulatedHost, duration_s: float) -> None:
    deadline_s = host.now_s() + duration_s
    while host.now_s() < deadline_s:
        host.wait_until(deadline_s)


def waiting(host: SimulatedHost) -> Callable[[Callable[[], bool]], None]:
    def wait_for(holds: Callable[[], bool]) -> None:
        for _ in range(100):
            if holds():
                return
            run(host, 0.25)
        pytest.fail("it never came to hold")

    return wait_for


def resident(host: SimulatedHost, name: str = "web-1") -> int:
    seen = host.observe()
    return int(seen.workloads.resident_bytes[seen.workloads.ids.index(f"vm:{name}")])


def test_what_holds_of_every_vm_holds_of_a_simulated_one():
    """The contract that tests/vm asks of QEMU."""
    host = a_host(a_vm())
    wait_for = waiting(host)
    vm_contract.check_is_told_whole(host, "web-1", wait_for)
    vm_contract.check_refuses_what_cannot_be(host, "web-1")
    vm_contract.check_memory_is_found(host, "web-1")
    vm_contract.check_balloon_moves(host, "web-1", wait_for)


def test_a_large_guests_memory_goes_around_the_hole():
    """Above 2 GiB guest addresses go on at 4 GiB."""
    host = a_host(a_vm(ram=3 * GIB))
    vm_contract.check_memory_is_found(host, "web-1")
    ram = host.guest_ram(reading_of(host, "web-1").id)
    assert ram.host_address(4 * GIB) == ram.host_ranges()[0][0] + 2 * GIB
    assert ram.host_address(3 * GIB) is None


def test_a_balloon_returns_what_the_guest_no_longer_uses():
    """The host keeps what a guest has once touched until the balloon takes it, or the guest reports it free."""

    def shrinking(at_s: float) -> int:
        return 400 * MIB if at_s < 2.0 else 100 * MIB

    host = a_host(a_vm(demand=shrinking), a_vm("tells", demand=shrinking, features=VmFeatures(
        balloon=True, free_page_reporting=True)))  # fmt: skip
    assert resident(host) > 420 * MIB
    assert resident(host, "tells") < 150 * MIB

    host.set_balloon(reading_of(host, "web-1").id, 200 * MIB)
    run(host, 3.0)
    assert resident(host) <= 200 * MIB
    host.set_balloon(reading_of(host, "web-1").id, 512 * MIB)
    run(host, 3.0)
    assert resident(host) <= 200 * MIB, "deflating alone brings nothing back"


def test_a_guest_that_lacks_memory_swaps_and_is_slower():
    """Too small a balloon shows in its swap counters and in what its processors get done, and room heals it."""
    host = a_host(a_vm(needs=300 * MIB, swap_bytes=GIB, touch_hz=4.0))
    vm = reading_of(host, "web-1")
    assert vm.guest is not None
    assert vm.guest.swapped_out_bytes == 0
    ran_s = vm.vcpu_s

    run(host, 10.0)
    free_s = reading_of(host, "web-1").vcpu_s - ran_s
    host.set_balloon(vm.id, 200 * MIB)
    run(host, 5.0)
    before = reading_of(host, "web-1")
    run(host, 10.0)
    after = reading_of(host, "web-1")

    assert before.guest is not None
    assert after.guest is not None
    assert after.guest.swapped_in_bytes > before.guest.swapped_in_bytes > 0
    assert after.guest.swapped_out_bytes > 100 * MIB
    assert after.vcpu_s - before.vcpu_s < 0.8 * free_s

    host.set_balloon(vm.id, 512 * MIB)
    run(host, 10.0)
    healed = reading_of(host, "web-1")
    run(host, 10.0)
    assert reading_of(host, "web-1").vcpu_s - healed.vcpu_s == pytest.approx(free_s)


def test_cache_gives_way_before_programs_do():
    """A balloon takes page cache first: nothing is swapped while there is any."""
    host = a_host(a_vm(needs=100 * MIB, cache_bytes=GIB, cache_bytes_per_s=512.0 * MIB, swap_bytes=GIB))
    guest = reading_of(host, "web-1").guest
    assert guest is not None
    assert guest.cache_bytes is not None
    assert guest.cache_bytes > 300 * MIB
    assert guest.used_bytes == 100 * MIB

    host.set_balloon(reading_of(host, "web-1").id, 200 * MIB)
    run(host, 5.0)
    guest = reading_of(host, "web-1").guest
    assert guest is not None
    assert guest.swapped_out_bytes == 0
    assert guest.cache_bytes is not None
    assert guest.cache_bytes < 100 * MIB


def test_a_guest_that_is_asked_for_too_much_dies_or_takes_it_back():
    """Without deflate-on-oom its kernel panics; with it the balloon gives way by itself."""
    host = a_host(a_vm(comes_back_after_s=None), a_vm("forgiving", features=FORGIVING))
    for name in ("web-1", "forgiving"):
        host.set_balloon(reading_of(host, name).id, 64 * MIB)
    run(host, 5.0)

    (left,) = host.observe().vms
    assert left.name == "forgiving"
    assert left.balloon_bytes is not None
    assert left.balloon_bytes >= 128 * MIB


def test_statistics_are_as_old_as_their_interval():
    """What the guest told is up to one interval old, and says so."""
    host = a_host(a_vm(demand=lambda at_s: round(at_s * 10) * MIB, stats_interval_s=5.0))
    for _ in range(20):
        vm = reading_of(host, "web-1")
        if vm.guest is not None:
            assert 0.0 <= host.now_s() - vm.guest.updated_at_s <= 5.25
        run(host, 0.7)


@pytest.mark.parametrize("word", [Word.NOT_TOLD, Word.ZERO, Word.JUMPS])
def test_a_liar_is_never_believed_beyond_its_memory(word: Word):
    """Whatever the figures, no part of them leaves the memory; what cannot be is None."""
    host = a_host(a_vm(word=word))
    for _ in range(20):
        guest = reading_of(host, "web-1").guest
        assert guest is not None
        assert guest.total_bytes is None or 0 < guest.total_bytes <= 512 * MIB
        assert guest.used_bytes is None or 0 <= guest.used_bytes <= 512 * MIB
        if word is not Word.JUMPS:
            assert guest.total_bytes is None
        run(host, 1.0)


def test_guests_that_do_not_help():
    """Without a driver a request is refused, without a balloon too; a deaf guest takes it and nothing moves."""
    host = a_host(
        a_vm("absent", driver=Driver.ABSENT), a_vm("deaf", driver=Driver.DEAF), a_vm("bare", features=VmFeatures())
    )
    with pytest.raises(Refused, match="driver"):
        host.set_balloon(reading_of(host, "absent").id, 256 * MIB)
    assert reading_of(host, "absent").guest is None
    with pytest.raises(Refused, match="no balloon"):
        host.set_balloon(reading_of(host, "bare").id, 256 * MIB)
    assert reading_of(host, "bare").balloon_bytes is None
    host.set_balloon(reading_of(host, "deaf").id, 256 * MIB)
    run(host, 5.0)
    assert reading_of(host, "deaf").balloon_bytes == 512 * MIB


def test_a_silent_monitor_leaves_what_was_known():
    """While a monitor says nothing the VM is unreachable, its last figures stay with their age, and others go on."""
    host = SimulatedHost(
        3, workloads=(a_vm(), a_vm("other")), faults=[SilentMonitor(program="web-1", from_s=5.0, until_s=10.0)]
    )
    host.observe()
    run(host, 4.5)
    known = reading_of(host, "web-1")
    run(host, 2.0)
    silent = reading_of(host, "web-1")
    assert (silent.state, silent.read_at_s) == (VmState.UNREACHABLE, known.read_at_s)
    assert silent.balloon_bytes == known.balloon_bytes
    assert silent.problem
    with pytest.raises(Transient):
        host.set_balloon(silent.id, 256 * MIB)
    assert reading_of(host, "other").read_at_s == host.now_s()
    run(host, 4.0)
    assert reading_of(host, "web-1").state is VmState.RUNNING


def test_a_paused_vm_does_nothing_and_its_balloon_is_left_alone():
    """Only a running VM is ballooned."""
    host = a_host(a_vm())
    host.set_vm_state("web-1", VmState.PAUSED)
    before = reading_of(host, "web-1")
    run(host, 3.0)
    after = reading_of(host, "web-1")
    assert (after.state, after.vcpu_s) == (VmState.PAUSED, before.vcpu_s)
    with pytest.raises(Refused, match="paused"):
        host.set_balloon(after.id, 256 * MIB)


def test_rules_by_vm_take_it_and_cgroups_tell_it_apart():
    """`match = { vm }` takes a VM wherever it lives; in an adopted cgroup it is told apart, nothing counts twice."""
    machines = [a_vm(name, cgroup="machine.slice") for name in ("web-1", "db-1")]
    host = a_host(*machines, Constant(name="swtpm", cgroup="machine.slice", size_bytes=32 * MIB))
    host.watch([PartitionSettings(name="web", match=Match(vm="web-*"))])
    seen = host.observe()
    partitions = dict(zip(seen.workloads.ids, seen.workloads.partitions, strict=True))
    assert partitions["vm:web-1"] == "web"
    assert partitions["vm:db-1"] is None

    host.watch([PartitionSettings(name="all", match=Match(cgroup="machine.slice"))])
    seen = host.observe()
    rows = {name: row for row, name in enumerate(seen.workloads.ids)}
    assert {seen.workloads.partitions[rows[name]] for name in ("vm:web-1", "vm:db-1", "machine.slice")} == {"all"}
    (state,) = seen.cgroups
    total = sum(int(seen.workloads.resident_bytes[rows[name]]) for name in ("vm:web-1", "vm:db-1", "machine.slice"))
    assert total == state.used_bytes
    assert int(seen.workloads.resident_bytes[rows["machine.slice"]]) == 32 * MIB


@settings(max_examples=25, deadline=None)
@given(
    asks=st.lists(st.integers(1, 512), min_size=1, max_size=6),
    needs=st.integers(0, 600),
    swap=st.sampled_from([0, 256]),
    forgiving=st.booleans(),
)
def test_a_guest_never_holds_more_than_it_has(asks: list[int], needs: int, swap: int, forgiving: bool):
    """Whatever is asked of it: memory within the balloon, counters that only grow within a life."""
    features = FORGIVING if forgiving else VmFeatures(balloon=True)
    host = a_host(a_vm(needs=needs * MIB, swap_bytes=swap * MIB, features=features, comes_back_after_s=None))
    told = []
    for ask in asks:
        if not host.observe().vms:
            break
        host.set_balloon(reading_of(host, "web-1").id, ask * MIB)
        run(host, 1.0)
        for vm in host.observe().vms:
            assert vm.balloon_bytes is not None
            assert resident(host) <= vm.balloon_bytes + MIB <= 513 * MIB
            if vm.guest is not None:
                told.append((vm.guest.swapped_in_bytes or 0, vm.guest.swapped_out_bytes or 0, vm.vcpu_s))
    assert all(later[0] >= sooner[0] and later[1] >= sooner[1] for sooner, later in pairwise(told))
