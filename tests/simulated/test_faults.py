# SPDX-License-Identifier: Apache-2.0
"""Each injected fault shows at its time, as the error that the real host would raise, and is over afterwards."""

import pytest

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Transient, Unavailable, Vanished
from memsculpt.host.simulated import (
    BusyLimit,
    Constant,
    DeniedPaging,
    Fault,
    ForeignLimit,
    SimulatedHost,
    SwapFull,
    VanishBeforeAction,
)

MIB = 1 << 20
SERVER = CgroupPath("srv")


def host_with(*faults: Fault) -> SimulatedHost:
    server = Constant(name="server", cgroup=SERVER, size_bytes=64 * MIB, touches_per_s=10.0)
    host = SimulatedHost(1, workloads=(server,), faults=faults)
    host.wait_until(1010.0)
    return host


def test_a_process_vanishes_between_observing_and_acting():
    """It is seen, then acted on, and only then gone; it comes back as another instance."""
    host = host_with(VanishBeforeAction(program="server", from_s=5.0))
    (instance,) = host.instances("server")
    assert instance.pid in host.observe().processes.pids

    with pytest.raises(Vanished):
        host.page_out(instance, MIB)
    assert host.observe().processes.pids.size == 0

    host.wait_until(1015.0)
    (other,) = host.instances("server")
    assert other != instance
    assert host.page_out(other, MIB).moved_bytes == MIB


def test_a_busy_limit_is_transient_and_changes_nothing():
    """EBUSY leaves the old value, and the same write works later."""
    host = host_with(BusyLimit(cgroup=SERVER, from_s=5.0, until_s=20.0))
    before = host.read_limit(SERVER, LimitKind.LIMIT)

    with pytest.raises(Transient, match="EBUSY"):
        host.write_limit(SERVER, LimitKind.LIMIT, 100 * MIB)
    assert host.read_limit(SERVER, LimitKind.LIMIT) == before

    host.wait_until(1020.0)
    assert host.write_limit(SERVER, LimitKind.LIMIT, 100 * MIB).size_bytes == 100 * MIB


def test_denied_paging_shows_in_the_capabilities():
    """Who asks first is told; who does not gets Unavailable; both end with the fault."""
    host = host_with(DeniedPaging(from_s=5.0, until_s=20.0))
    (instance,) = host.instances("server")

    assert not host.capabilities()["page_out"].available
    with pytest.raises(Unavailable):
        host.page_out(instance, MIB)
    with pytest.raises(Unavailable):
        host.page_in(instance, MIB)

    host.wait_until(1020.0)
    assert host.capabilities()["page_out"].available
    assert host.page_out(instance, MIB).moved_bytes == MIB


def test_a_full_swap_takes_nothing():
    """Nothing goes out, what is out can come back, and a squeeze that would need swap is refused."""
    host = host_with(SwapFull(from_s=15.0, until_s=30.0))
    (instance,) = host.instances("server")
    host.write_limit(SERVER, LimitKind.HARD, 60 * MIB)
    host.wait_until(1016.0)
    assert host.observe().memory.swap_free_bytes == 0

    with pytest.raises(Transient, match="full"):
        host.page_out(instance, MIB)
    with pytest.raises(Transient, match="EBUSY"):
        host.write_limit(SERVER, LimitKind.HARD, 20 * MIB)
    assert host.read_limit(SERVER, LimitKind.HARD).size_bytes == 60 * MIB


def test_somebody_else_writes_a_budget_once():
    """It happens at its time, and what is written afterwards stays."""
    host = host_with(ForeignLimit(cgroup=SERVER, kind=LimitKind.LIMIT, size_bytes=200 * MIB, at_s=12.0))
    assert host.write_limit(SERVER, LimitKind.LIMIT, 100 * MIB).size_bytes == 100 * MIB

    host.wait_until(1013.0)
    assert host.read_limit(SERVER, LimitKind.LIMIT).size_bytes == 200 * MIB
    host.write_limit(SERVER, LimitKind.LIMIT, 100 * MIB)
    host.wait_until(1015.0)
    assert host.read_limit(SERVER, LimitKind.LIMIT).size_bytes == 100 * MIB
