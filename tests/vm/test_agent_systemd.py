# SPDX-License-Identifier: Apache-2.0
"""The agent on a machine that systemd runs: units get their budgets from systemd, and all of it is undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memsculpt_bench.guests.guest import Guest
from tests.vm.tenant import Tenant

MIB = 1 << 20
CONFIG_PATH, LOG = "/tmp/memsculpt.toml", "/tmp/agent.log"
CONFIG = """\
[agent]
mode = "apply"
interval = "1s"
capacity = "300MiB"

[[partition]]
name = "front"
match = { cgroup = "system.slice/front.service" }
guarantee = "48MiB"

[[partition]]
name = "batch"
match = { cgroup = "system.slice/batch.service" }
kind = "fixed"
size = "96MiB"
"""
UNITS = ("front.service", "batch.service")
# What systemd holds of the units, what the kernel holds, and every file that systemd keeps of run-time changes.
SNAPSHOT = (
    "for u in front batch; do systemctl show -P MemoryMin -P MemoryLow -P MemoryHigh -P MemoryMax -P DropInPaths "
    "$u.service; for k in min low high max swap.high swap.max; do f=/sys/fs/cgroup/system.slice/$u.service/memory.$k; "
    "echo $f $(cat $f); done; done; find /run/systemd/system.control /etc/systemd | sort; "
    "for f in $(find /run/systemd/system.control -type f | sort); do echo $f; cat $f; done"
)
FRONT, BATCH = (f"/sys/fs/cgroup/system.slice/{unit}" for unit in UNITS)


@pytest.fixture
def units(guest_systemd: Guest, start_unit) -> Iterator[tuple[Tenant, Tenant]]:
    """Two services of 100 MiB; of the second one an administrator has set a limit at run time already."""
    guest_systemd.write_file(CONFIG_PATH, CONFIG.encode())
    found = start_unit("front.service"), start_unit("batch.service")
    guest_systemd.check("systemctl set-property --runtime batch.service MemoryMax=400M")
    yield found
    guest_systemd.check("[ ! -e /tmp/agent.pid ] || kill -9 $(cat /tmp/agent.pid) 2>/dev/null || true")
    guest_systemd.check(f"memsculpt restore --config {CONFIG_PATH}; rm -rf /tmp/agent.pid /var/lib/memsculpt")


def start_agent(guest: Guest) -> None:
    """Start the agent and wait until its budgets are in the kernel."""
    guest.check(f"memsculpt run --apply --config {CONFIG_PATH} >{LOG} 2>&1 </dev/null & echo $! >/tmp/agent.pid")
    guest.wait_until(
        f"[ $(cat {FRONT}/memory.min) = {48 * MIB} ] && [ $(cat {BATCH}/memory.max) = {96 * MIB} ] "
        f"|| {{ tail -5 {LOG}; false; }}",
        timeout_s=90.0,
    )


def test_units_are_changed_through_systemd_and_restored_after_kill(guest_systemd: Guest, units):
    """systemd knows the budgets, a reload keeps them; after kill -9 and restore nothing tells that we were there."""
    before = guest_systemd.check(SNAPSHOT)
    start_agent(guest_systemd)
    known = guest_systemd.check("systemctl show -P MemoryMin front.service; systemctl show -P MemoryMax batch.service")
    guest_systemd.check("systemctl daemon-reload")
    kept = guest_systemd.check(f"cat {FRONT}/memory.min {BATCH}/memory.max")
    etc = guest_systemd.check("find /etc/systemd/system.control 2>/dev/null || true")
    guest_systemd.check("kill -9 $(cat /tmp/agent.pid)")
    rc, output = guest_systemd.memsculpt("restore", "--config", CONFIG_PATH)

    assert known.split() == [str(48 * MIB), str(96 * MIB)]
    assert kept.split() == [str(48 * MIB), str(96 * MIB)]
    assert etc == ""
    assert rc == 0, output
    assert guest_systemd.check(SNAPSHOT) == before


def test_a_normal_end_undoes_it_too(guest_systemd: Guest, units):
    """SIGTERM: values, drop-ins and the administrator's own run-time limit are as before."""
    before = guest_systemd.check(SNAPSHOT)
    start_agent(guest_systemd)
    guest_systemd.check("kill -TERM $(cat /tmp/agent.pid)")
    guest_systemd.wait_until("! kill -0 $(cat /tmp/agent.pid) 2>/dev/null")

    assert "MemoryMax=419430400" in before
    assert guest_systemd.check(SNAPSHOT) == before
