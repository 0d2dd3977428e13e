# SPDX-License-Identifier: Apache-2.0
"""What the agent costs when there is nothing to do, and whether everything comes back after kill -9."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memsculpt_bench import isolation
from memsculpt_bench.isolation import TENANTS, Scenario
from memsculpt_bench.lab import Lab, open_lab, poll, zram_swap

PROCESSES = 200
MIB = 1 << 20


def measure_cost(*, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the agent (apply mode, 1 s tick) beside 200 processes with nothing to move; return its cost."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        lab = stack.enter_context(open_lab(TENANTS))
        running = sum(name.isdigit() for name in os.listdir("/proc"))
        for number in range(max(0, PROCESSES - running)):
            lab.start(TENANTS[number % len(TENANTS)], ["sleep", "3600"])
        agent = stack.enter_context(isolation.Agent(isolation.agent_config(lab, Scenario(), folder), folder))
        time.sleep(5.0)  # start-up (imports, first full reading) is no part of steady cost
        before_s, before = time.monotonic(), agent.measure()
        time.sleep(seconds)
        after_s, after = time.monotonic(), agent.measure()
        cost = {
            "processes": sum(name.isdigit() for name in os.listdir("/proc")),
            "seconds": after_s - before_s,
            "cpu_ratio": (after["cpu_s"] - before["cpu_s"]) / (after_s - before_s),
            "resident_peak_bytes": after["resident_peak_bytes"],
        }
    say(
        f"agent at {cost['processes']} processes: {cost['cpu_ratio']:.2%} of a core, "
        f"{cost['resident_peak_bytes'] / MIB:.1f} MiB resident at most"
    )
    return cost


def measure_restore(*, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill the agent with SIGKILL after it changed limits, run `restore`, compare every value byte for byte."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        stack.enter_context(zram_swap(256 * MIB))
        lab = stack.enter_context(open_lab(TENANTS))
        scenario = Scenario(limit_bytes=700 * MIB, job_bytes=100 * MIB, periods=4, period_s=4.0, touches=1_000_000)
        lab.limit(scenario.limit_bytes)
        before = read_budgets(lab)
        start_s = time.monotonic() + 2.0
        for tenant in isolation.JOBS:
            isolation.start_job(lab, tenant, scenario, start_s, seed=1)
        agent = stack.enter_context(isolation.Agent(isolation.agent_config(lab, scenario, folder), folder))
        poll(lambda: read_budgets(lab) != before, what="the agent to change a budget", timeout_s=30.0)
        agent.kill()
        changed = {path: text for path, text in read_budgets(lab).items() if text != before[path]}
        command = [sys.executable, "-m", "memsculpt", "restore", "--json", "--config", str(agent.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = read_budgets(lab)
        back = [path for path in changed if after[path] == before[path]]
    result = {
        "changed": len(changed),
        "restored": len(back),
        "restored_ratio": 1.0 if changed and after == before else 0.0,
        "exit_code": done.returncode,
        "report": json.loads(done.stdout) if done.stdout.startswith("{") else done.stderr[-500:],
    }
    say(f"kill -9, then restore: {len(back)} of {len(changed)} changed budgets as before, byte for byte")
    return result


def read_budgets(lab: Lab) -> dict[str, str]:
    """Return the text of every budget file in the lab."""
    names = ("limit_in_bytes", "soft_limit_in_bytes", "memsw.limit_in_bytes", "swappiness")
    names_v2 = ("min", "low", "high", "max", "swap.high", "swap.max")
    texts: dict[str, str] = {}
    for tenant in ("", *lab.tenants):
        for name in names if lab.is_v1 else names_v2:
            path = lab.memory_folder(tenant) / f"memory.{name}"
            if path.exists():
                texts[f"{tenant}/{name}"] = path.read_text()
    return texts
