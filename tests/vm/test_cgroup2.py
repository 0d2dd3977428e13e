# SPDX-License-Identifier: Apache-2.0
"""What a real cgroup v2 does with limits: the facts that host/linux and the squeeze's bounds build on."""

from __future__ import annotations

from memsculpt_bench.guests.guest import Guest
from tests.vm.tenant import TENANT_BYTES

MIB = 1 << 20


def test_sizes_are_cut_to_whole_pages_and_no_limit_is_max(guest_v2: Guest, start_tenant):
    """What is read back may differ from what was written, so the journal must hold the kernel's own text."""
    tenant = start_tenant("pages")

    for file, unlimited in (("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max"), ("memory.max", "max")):
        path = f"{tenant.cgroup}/{file}"
        assert guest_v2.check(f"cat {path}") == unlimited
        guest_v2.check(f"echo {200 * MIB + 4095} > {path}")
        assert guest_v2.check(f"cat {path}") == str(200 * MIB)
        guest_v2.check(f"echo {unlimited} > {path}")
        assert guest_v2.check(f"cat {path}") == unlimited


def test_memory_reclaim_sends_a_tenants_memory_to_zram(guest_v2: Guest, start_tenant):
    """Reclaiming 40 MiB of a tenant that holds 100 MiB leaves less in memory and the difference in swap."""
    tenant = start_tenant("reclaimed")
    before_bytes = int(guest_v2.check(f"cat {tenant.cgroup}/memory.current"))

    guest_v2.check(f"echo {40 * MIB} > {tenant.cgroup}/memory.reclaim")

    after_bytes = int(guest_v2.check(f"cat {tenant.cgroup}/memory.current"))
    swapped_bytes = int(guest_v2.check(f"cat {tenant.cgroup}/memory.swap.current"))
    assert before_bytes >= TENANT_BYTES
    assert after_bytes <= before_bytes - 35 * MIB
    assert swapped_bytes >= 35 * MIB


def test_reclaiming_more_than_there_is_fails_but_takes_what_it_can(guest_v2: Guest, start_tenant):
    """EAGAIN does not mean that nothing was done: what was freed must be read from the counters."""
    tenant = start_tenant("drained")

    rc, output = guest_v2.sh(f"echo {4 * TENANT_BYTES} > {tenant.cgroup}/memory.reclaim")

    assert rc != 0
    assert "Resource temporarily unavailable" in output
    assert int(guest_v2.check(f"cat {tenant.cgroup}/memory.swap.current")) >= TENANT_BYTES // 2


def test_a_limit_that_cannot_be_met_is_taken_all_the_same(guest_v2: Guest, start_tenant):
    """Without swap a memory.high below what is held is not refused: bounds of a squeeze must be our own."""
    tenant = start_tenant("squeezed")
    guest_v2.check(f"echo 0 > {tenant.cgroup}/memory.swap.max")

    guest_v2.check(f"echo {20 * MIB} > {tenant.cgroup}/memory.high")

    assert guest_v2.check(f"cat {tenant.cgroup}/memory.high") == str(20 * MIB)
    assert int(guest_v2.check(f"cat {tenant.cgroup}/memory.current")) >= TENANT_BYTES
    assert guest_v2.check(f"cat {tenant.cgroup}/memory.swap.current") == "0"


def test_a_hard_limit_without_swap_kills(guest_v2: Guest, start_tenant):
    """The kernel kills the tenant whose memory.max it cannot keep, and memory.events tells."""
    tenant = start_tenant("killed")
    guest_v2.check(f"echo 0 > {tenant.cgroup}/memory.swap.max")
    assert "oom_kill 0" in guest_v2.check(f"cat {tenant.cgroup}/memory.events")

    guest_v2.check(f"echo {20 * MIB} > {tenant.cgroup}/memory.max")

    guest_v2.wait_until(f"! kill -0 {tenant.pid}", timeout_s=30)
    assert "oom_kill 1" in guest_v2.check(f"cat {tenant.cgroup}/memory.events")
