# SPDX-License-Identifier: Apache-2.0
"""What a real systemd does with limits: the facts that host/linux builds on, so that a change of theirs is noticed."""

from __future__ import annotations

from memsculpt_bench.guests.guest import Guest

MIB = 1 << 20
SET_RUNTIME = (
    "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager "
    "SetUnitProperties 'sba(sv)' {unit} true 1 {name} t {size_bytes}"
)


def test_a_runtime_property_of_a_unit_reaches_its_cgroup_and_not_etc(guest_systemd: Guest, start_unit):
    """SetUnitProperties(MemoryHigh, runtime) shows in memory.high as whole pages, and is kept below /run only."""
    tenant = start_unit("limited.service", settings="MemoryHigh=300M")
    etc_before = guest_systemd.check("find /etc/systemd | sort")

    guest_systemd.check(SET_RUNTIME.format(unit="limited.service", name="MemoryHigh", size_bytes=200 * MIB + 1))

    assert guest_systemd.check(f"cat {tenant.cgroup}/memory.high") == str(200 * MIB)
    assert guest_systemd.check("systemctl show -P MemoryHigh limited.service") == str(200 * MIB + 1)
    assert guest_systemd.check("find /etc/systemd | sort") == etc_before
    assert guest_systemd.check("ls /run/systemd/system.control/limited.service.d") == "50-MemoryHigh.conf"


def test_undoing_a_property_by_its_old_value_leaves_a_drop_in(guest_systemd: Guest, start_unit):
    """The old value comes back, but pinned by a file in /run; without that file the unit is as it was before."""
    tenant = start_unit("undone.service")
    drop_in = "/run/systemd/system.control/undone.service.d"
    guest_systemd.check(SET_RUNTIME.format(unit="undone.service", name="MemoryHigh", size_bytes=200 * MIB))

    guest_systemd.check(SET_RUNTIME.format(unit="undone.service", name="MemoryHigh", size_bytes=2**64 - 1))

    assert guest_systemd.check(f"cat {tenant.cgroup}/memory.high") == "max"
    assert "MemoryHigh=infinity" in guest_systemd.check(f"cat {drop_in}/50-MemoryHigh.conf")
    guest_systemd.check(f"rm -r {drop_in}; systemctl daemon-reload")
    assert guest_systemd.check(f"cat {tenant.cgroup}/memory.high") == "max"
    assert guest_systemd.check("systemctl show -P DropInPaths undone.service") == ""


def test_what_is_written_behind_systemd_is_lost_at_its_next_reload(guest_systemd: Guest, start_unit):
    """A limit written into the cgroup of a unit vanishes when anybody reloads systemd: so limits go through D-Bus."""
    tenant = start_unit("behind.service")
    guest_systemd.check(f"echo {200 * MIB} > {tenant.cgroup}/memory.high")

    guest_systemd.check("systemctl daemon-reload")

    assert guest_systemd.check(f"cat {tenant.cgroup}/memory.high") == "max"


def test_only_root_may_set_properties(guest_systemd: Guest, start_unit):
    """Another user is refused by D-Bus' policy, and the limit stays."""
    tenant = start_unit("guarded.service")
    call = SET_RUNTIME.format(unit="guarded.service", name="MemoryHigh", size_bytes=200 * MIB)

    rc, output = guest_systemd.sh(f'su tenant -c "{call}"')

    assert rc != 0
    assert "denied" in output.lower()
    assert guest_systemd.check(f"cat {tenant.cgroup}/memory.high") == "max"
