# SPDX-License-Identifier: Apache-2.0
"""bench vm-agent: what virtual machines cost the agent.

The agent runs as a user starts it (observing, without partitions, with its budget of 1 % of a processor) beside
processes that look like QEMU from outside: its name, a command line with name, UUID and monitor, four threads as
virtual processors. Their monitors are served by one process that answers as QEMU does (qmp_peers.py) and is not
counted. Nothing else of a VM costs the agent anything.

Arms, one after another in each round:

    none      no VM
    vms       50 VMs (with --quick 10), asked as often as the budget allows
    second    the same without a budget: all looked at and asked every second, as beside partitions
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memsculpt_bench import known_pages
from memsculpt_bench.contract import at_least, at_most, reported, result
from memsculpt_bench.lab import LabUnavailable, poll
from memsculpt_bench.qmp_peers import monitors_of, uuid_of

COUNT, COUNT_QUICK = 50, 10
ARMS = {"none": "1%", "vms": "1%", "second": "0%"}  # and the budget in [agent]
CPU_BAR = 0.01  # of one processor
RESIDENT_BAR_MIB = 80.0
WARM_S = 12.0  # start-up (imports, the first full reading) is no part of steady cost; the pace is found meanwhile
MIB = 1 << 20

Say = Callable[[str], None]


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Measure; return the object that `bench vm-agent --json` prints."""
    tell = say or _nothing
    count, seconds = (COUNT_QUICK, 10.0) if quick else (COUNT, 30.0)
    arms: dict[str, dict[str, list[float]]] = {
        name: {figure: [] for figure in ("cpu_ratio", "resident_peak_mib", "asked_ratio", "processes", "tick_s")}
        for name in ARMS
    }
    for number in range(rounds):
        for name, budget in ARMS.items():
            for figure, value in _measure(0 if name == "none" else count, seconds, budget).items():
                arms[name][figure].append(value)
        tell(
            f"round {number + 1} of {rounds}: {arms['none']['cpu_ratio'][-1]:.2%} of a core without VMs, "
            f"{arms['vms']['cpu_ratio'][-1]:.2%} and {arms['vms']['resident_peak_mib'][-1]:.1f} MiB with {count}, a "
            f"look every {arms['vms']['tick_s'][-1]:.1f} s; {arms['second']['cpu_ratio'][-1]:.2%} with one every second"
        )
    pairs = zip(arms["second"]["cpu_ratio"], arms["none"]["cpu_ratio"], strict=True)
    return result(
        "vm-agent",
        rounds,
        arms,
        {
            "cpu_ratio": at_most(CPU_BAR, arms["vms"]["cpu_ratio"]),
            "resident_peak_mib": at_most(RESIDENT_BAR_MIB, arms["vms"]["resident_peak_mib"]),
            "asked_ratio": at_least(1.0, arms["vms"]["asked_ratio"]),
            "tick_s": reported(arms["vms"]["tick_s"]),
            "cpu_ratio_each_second": reported(arms["second"]["cpu_ratio"]),
            "asked_ratio_each_second": at_least(1.0, arms["second"]["asked_ratio"]),
            "cpu_ratio_of_vms_each_second": reported([with_vms - without for with_vms, without in pairs]),
        },
        vms=count,
    )


def _measure(count: int, seconds: float, budget: str) -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        if count:
            stack.enter_context(_crowd(folder, count))
        process = stack.enter_context(_agent(folder, discover=count > 0, budget=budget))
        time.sleep(WARM_S)
        ticks = _ticks(folder)
        began_s, cpu_s = time.monotonic(), _cpu_s(process.pid)
        time.sleep(seconds)
        used_s, passed_s = _cpu_s(process.pid) - cpu_s, time.monotonic() - began_s
        ticks = _ticks(folder) - ticks
        asked = [
            one for one in _vms(folder) if one["name"].startswith("vm-") and one["uuid"].startswith(uuid_of(0)[:24])
        ]
        fresh = [one for one in asked if one["state"] == "running" and one["guest"] and one["age_s"] < 3.0]
        peak_line = next(
            line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
        )
        return {
            "cpu_ratio": used_s / passed_s,
            "tick_s": passed_s / max(ticks, 1),
            "resident_peak_mib": int(peak_line.split()[1]) * 1024 / MIB,
            "asked_ratio": len(fresh) / count if count else 1.0,
            "processes": float(sum(name.isdigit() for name in os.listdir("/proc"))),
        }


@contextmanager
def _agent(folder: Path, *, discover: bool, budget: str) -> Generator[subprocess.Popen[bytes]]:
    """Run the agent; without VMs of ours it leaves those of others alone, too."""
    config = folder / "memsculpt.toml"
    config.write_text(
        f'[agent]\nsocket = "{folder}/agent.sock"\nstate = "{folder}/state"\nbudget = "{budget}"\n'
        f"[vms]\ndiscover = {'true' if discover else 'false'}\n"
    )
    command = [sys.executable, "-m", "memsculpt", "run", "--observe", "--no-listen", "--config", str(config)]
    log = folder / "agent.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        poll(lambda: (folder / "agent.sock").exists() or process.poll() is not None, what="the agent", timeout_s=60.0)
        yield process
        if process.poll() is not None:
            raise LabUnavailable("the agent ended: " + log.read_text()[-500:])
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def _crowd(folder: Path, count: int) -> Generator[None]:
    """Run what looks like `count` QEMUs, and one process that serves their monitors; all are ended on the way out."""
    running: list[subprocess.Popen[bytes]] = []
    with known_pages.built("paused") as program:
        qemu = program.with_name("qemu-system-x86_64")
        qemu.hardlink_to(program)
        try:
            for number in range(1, count + 1):
                command = [str(qemu), "-name", f"guest=vm-{number},debug-threads=on", "-uuid", uuid_of(number)]
                for place in monitors_of(folder, number):
                    command += ["-qmp", f"unix:{place},server=on,wait=off"]
                threads = str(folder / f"{number}.threads")
                running.append(subprocess.Popen(command, env={**os.environ, "THREADS_FILE": threads}))
            written = [folder / f"{number}.threads" for number in range(1, count + 1)]
            poll(
                lambda: all(one.exists() and one.stat().st_size for one in written), what="the threads", timeout_s=60.0
            )
            peers = subprocess.Popen(
                [sys.executable, "-m", "memsculpt_bench.qmp_peers", str(folder), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            running.append(peers)
            if peers.stdout is None or peers.stdout.readline() != b"ready\n":
                raise LabUnavailable("the monitors did not come up")
            yield
        finally:
            for one in running:
                one.kill()
            for one in running:
                one.wait()
                for stream in (one.stdin, one.stdout):
                    if stream is not None:
                        stream.close()


def _vms(folder: Path) -> list[dict[str, Any]]:
    return _told(folder, "vms")["vms"]


def _ticks(folder: Path) -> int:
    return _told(folder, "status")["agent"]["tick_count"]


def _told(folder: Path, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "memsculpt", what, "--json", "--socket", f"{folder}/agent.sock"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _cpu_s(pid: int) -> float:
    """Return the processor time of all threads, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _nothing(_: str) -> None:
    pass
