# SPDX-License-Identifier: Apache-2.0
"""Balloons are asked for after it was journalled what they were, and put back, unless somebody else has set them."""

import pytest

from memsculpt.act import ActionIds, Budget, Journal, Outcome, apply, give_up_balloon, restore
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import Plan
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import Instance
from tests.act.builders import MIB, QEMU, VM, VM_BYTES, full_disk, new_host, set_balloon


@pytest.fixture
def host(tmp_path):
    return new_host(tmp_path / "host")


@pytest.fixture
def journal(tmp_path):
    journal = Journal.open(tmp_path / "state", machine_lock=None)
    yield journal
    journal.close()


def do(host, journal, *actions, budget=None):
    return apply(host, journal, Plan(made_at_s=0.0, actions=actions), ActionIds(), budget=budget)


def test_what_it_was_is_on_disk_before_it_is_asked(host, journal):
    seen = []
    host.before_write = lambda: seen.append(journal.path.read_bytes())
    (done,) = do(host, journal, set_balloon(to_bytes=256 * MIB))
    assert done.status is Status.DONE
    assert host.read_balloon(VM) == 256 * MIB
    assert b'"old":%d' % VM_BYTES in seen[0]


def test_the_first_value_comes_back_after_many_asks(host, journal):
    do(host, journal, set_balloon(to_bytes=400 * MIB))
    do(host, journal, set_balloon(from_bytes=400 * MIB, to_bytes=200 * MIB))
    do(host, journal, set_balloon(from_bytes=200 * MIB, to_bytes=300 * MIB))
    report = restore(host, journal)
    assert host.read_balloon(VM) == VM_BYTES
    assert report.is_complete
    assert [one.outcome for one in report.changes] == [Outcome.RESTORED]


def test_a_balloon_on_its_way_is_ours(host, journal):
    do(host, journal, set_balloon(to_bytes=200 * MIB))
    host.add_vm(VM, 350 * MIB)
    restore(host, journal)
    assert host.read_balloon(VM) == VM_BYTES


def test_what_somebody_else_set_is_left_alone(host, journal):
    do(host, journal, set_balloon(to_bytes=300 * MIB))
    host.add_vm(VM, 150 * MIB)
    report = restore(host, journal)
    assert host.read_balloon(VM) == 150 * MIB
    assert report.count(Outcome.LEFT_ALONE) == 1


def test_a_balloon_that_was_given_up_is_not_put_back(host, journal):
    do(host, journal, set_balloon(to_bytes=300 * MIB))
    give_up_balloon(journal, VM)
    restore(host, journal)
    assert host.read_balloon(VM) == 300 * MIB


def test_a_vm_that_is_gone_needs_nothing(host, journal):
    do(host, journal, set_balloon())
    (host.root / f"{VM}.balloon").unlink()
    assert restore(host, journal).count(Outcome.GONE) == 1
    assert journal.ledger.changes == ()


@pytest.mark.parametrize(("is_given_up", "comes_back"), [(False, VM_BYTES), (True, 480 * MIB)])
def test_the_first_value_is_that_of_the_vm_whatever_process_it_is_in(host, journal, is_given_up, comes_back):
    """A migration takes the balloon along; of another life of the VM the first one's is given up before."""
    do(host, journal, set_balloon(to_bytes=300 * MIB))
    if is_given_up:
        give_up_balloon(journal, VM)
    elsewhere = Instance(pid=99, start_ticks=5)
    do(host, journal, set_balloon(from_bytes=480 * MIB, to_bytes=460 * MIB, process=elsewhere))
    restore(host, journal)
    assert host.read_balloon(VM) == comes_back


def test_taking_is_budgeted_and_giving_is_not(host, journal):
    host.add_vm("name:b", 512 * MIB)
    budget = Budget(balloon_bytes=100 * MIB)
    first, second, third = do(
        host,
        journal,
        set_balloon(to_bytes=432 * MIB),
        set_balloon(vm=VmId("name:b"), process=QEMU, to_bytes=432 * MIB),
        set_balloon(from_bytes=432 * MIB, to_bytes=512 * MIB),
        budget=budget,
    )
    assert first.status is Status.DONE
    assert (second.status, second.done_bytes) == (Status.PARTIAL, 492 * MIB)
    assert third.status is Status.DONE


def test_with_a_full_disk_nothing_is_asked(host, journal):
    with full_disk(bytes_left=journal.path.stat().st_size):
        (done,) = do(host, journal, set_balloon())
    assert done.status is Status.FAILED
    assert "journal" in done.problem
    assert host.read_balloon(VM) == VM_BYTES
