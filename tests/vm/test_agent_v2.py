# SPDX-License-Identifier: Apache-2.0
"""The agent itself, as root, on a machine with cgroup v2: what it changes, and that all of it is undone."""

from __future__ import annotations

import json
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
match = { cgroup = "front" }
guarantee = "48MiB"
ceiling = "160MiB"

[[partition]]
name = "batch"
match = { cgroup = "batch" }
kind = "fixed"
size = "96MiB"
"""
# Every file of the two cgroups that a write can change with its content, all cgroups, and who lives where.
SNAPSHOT = (
    "cd /sys/fs/cgroup && for f in front batch; do for k in min low high max oom.group swap.high swap.max; do "
    "[ -e $f/memory.$k ] && echo $f/memory.$k $(cat $f/memory.$k); done; done; ls -d */; cat */cgroup.procs"
)


@pytest.fixture
def tenants(guest_v2: Guest, start_tenant) -> Iterator[tuple[Tenant, Tenant]]:
    """Two programs of 100 MiB: one with a guarantee and a ceiling, one in a fixed partition that is smaller."""
    guest_v2.write_file(CONFIG_PATH, CONFIG.encode())
    yield start_tenant("front"), start_tenant("batch")
    guest_v2.check("[ ! -e /tmp/agent.pid ] || kill -9 $(cat /tmp/agent.pid) 2>/dev/null || true; rm -f /tmp/agent.pid")
    guest_v2.check(f"memsculpt restore --config {CONFIG_PATH}; rm -rf /var/lib/memsculpt")


def start_agent(guest: Guest) -> None:
    """Start the agent and wait until its budgets are in the kernel."""
    guest.check(f"memsculpt run --apply --config {CONFIG_PATH} >{LOG} 2>&1 </dev/null & echo $! >/tmp/agent.pid")
    guest.wait_until(
        f"[ $(cat /sys/fs/cgroup/front/memory.min) = {48 * MIB} ] && [ $(cat /sys/fs/cgroup/batch/memory.max) != max ]"
        f" || {{ tail -5 {LOG}; false; }}",
        timeout_s=90.0,
    )


def test_doctor_names_the_hierarchy(guest_v2: Guest):
    """Limits, pressure and proactive reclaim are there, on cgroup v2."""
    rc, output = guest_v2.memsculpt("doctor", "--json")
    rows = {row["name"]: row for row in json.loads(output)["capabilities"]}

    assert rc == 0
    assert "v2" in json.dumps(rows["cgroup_limits"])
    assert all(rows[name]["available"] for name in ("cgroup_limits", "psi", "page_out", "page_in", "swap"))


def test_an_observing_agent_changes_nothing(guest_v2: Guest, tenants):
    """And it sees what the cgroups hold."""
    before = guest_v2.check(SNAPSHOT)
    rc, output = guest_v2.memsculpt("run", "--observe", "--config", CONFIG_PATH, "--duration", "3s", "--json")
    summary = json.loads(output.splitlines()[-1])

    assert rc == 0
    assert summary["failed_count"] == 0
    assert summary["workload_count"] >= 2
    assert guest_v2.check(SNAPSHOT) == before


def test_everything_is_as_before_after_kill_and_restore(guest_v2: Guest, tenants):
    """The agent is killed while its budgets are in force; `restore` brings every file back, byte for byte."""
    before = guest_v2.check(SNAPSHOT)
    start_agent(guest_v2)
    changed = guest_v2.check(SNAPSHOT)
    guest_v2.check("kill -9 $(cat /tmp/agent.pid)")
    rc, output = guest_v2.memsculpt("restore", "--config", CONFIG_PATH)

    assert changed != before
    assert rc == 0, output
    assert guest_v2.check(SNAPSHOT) == before


def test_a_normal_end_undoes_all_but_what_somebody_else_changed(guest_v2: Guest, tenants):
    """A value that was written over meanwhile is left alone, and said."""
    before = guest_v2.check(SNAPSHOT)
    start_agent(guest_v2)
    guest_v2.check(f"echo {200 * MIB} > /sys/fs/cgroup/batch/memory.max")
    guest_v2.check("kill -TERM $(cat /tmp/agent.pid)")
    guest_v2.wait_until("! kill -0 $(cat /tmp/agent.pid) 2>/dev/null")
    after = guest_v2.check(SNAPSHOT)

    assert after == before.replace("batch/memory.max max", f"batch/memory.max {200 * MIB}")
    assert "left-alone" in guest_v2.check(f"cat {LOG}")


def test_a_program_that_wants_more_than_its_partition_is_cut_back(guest_v2: Guest, tenants):
    """The fixed partition of 96 MiB holds: what is above it went to swap, and the program lives on."""
    _, batch = tenants
    start_agent(guest_v2)
    guest_v2.wait_until(f"[ $(cat {batch.cgroup}/memory.current) -le {96 * MIB} ]")

    assert int(guest_v2.check(f"cat {batch.cgroup}/memory.swap.current")) > 0
    assert guest_v2.check(f"kill -0 {batch.pid} && echo alive") == "alive"
    assert "oom_kill 0" in guest_v2.check(f"cat {batch.cgroup}/memory.events")
