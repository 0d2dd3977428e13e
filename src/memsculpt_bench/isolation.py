# SPDX-License-Identifier: Apache-2.0
"""bench isolation: a cache beside two analytic jobs, in less memory than the three hold together.

A real redis-server with a guarantee serves a closed-loop client with skewed keys. Two jobs each build
a data set, work over it for a fixed amount of work, and keep it untouched until their next phase, out
of phase with each other. The lab's limit cannot hold all three, but holds what is in use at any one
moment. Redis and its client share one core, the jobs the other. Arms, interleaved within a round:

    roomy      no limit: what can be reached at best
    kernel     the limit, no management
    static     the limit, and the best fixed split among the tenants, found by trying
    reactive   the limit, and Senpai's rule on PSI for each tenant (better of two starts, by trying)
    memsculpt  the limit, and the agent in apply mode, from an empty profile
    all        the same with `sculpt = "all"`: phases inside of processes are learnt, and hot blocks gathered

A round's figures leave out the first two periods, which are reported apart.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Self

from memsculpt_bench import tenants as tenants_package
from memsculpt_bench.lab import Lab, LabUnavailable, file_swap, open_lab, poll, zram_swap, zram_used_bytes
from memsculpt_bench.senpai import Senpai, SenpaiRule

MIB = 1 << 20
TENANTS = ("redis", "job-a", "job-b")
JOBS = ("job-a", "job-b")
CACHE_CPU, JOBS_CPU = {0}, {1}
PROGRAMS = Path(tenants_package.__file__).parent
EARLY_PERIODS = 2
OVERTIME_S = 30.0  # for jobs that are late; what has not ended by then is ended, and its phases are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run, in every arm alike."""

    limit_bytes: int = 1150 * MIB
    keys: int = 395_000  # about 525 MiB in Redis
    job_bytes: int = 450 * MIB
    touches: int = 40_000_000  # a phase of about a second when there is room
    period_s: float = 10.0
    periods: int = 6
    swap: str = "zram"
    swap_bytes: int = 2048 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of managing the lab."""

    name: str
    limited: bool = True
    split_bytes: Mapping[str, int] | None = None  # static: a limit per tenant
    senpai_start_at_usage: bool | None = None  # reactive
    agent: bool = False
    sculpt: str = "cold"  # the agent's


ROOMY = Arm(name="roomy", limited=False)
KERNEL = Arm(name="kernel")
MEMSCULPT = Arm(name="memsculpt", agent=True)
ALL = Arm(name="all", agent=True, sculpt="all")


def check_machine() -> None:
    """Raise LabUnavailable, naming what is missing, before anything is made."""
    for program, package in (("redis-server", "redis-server"), ("mkswap", "util-linux")):
        if shutil.which(program) is None:
            raise LabUnavailable(f"{program} is not installed (Debian package {package})")
    if len(os.sched_getaffinity(0)) < 2:
        raise LabUnavailable("the arms need two processors: one for Redis, one for the jobs")


def run_arm(arm: Arm, scenario: Scenario, seed: int) -> dict[str, Any]:
    """Run one arm once and return its raw measurements."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        if scenario.swap == "zram":
            device = stack.enter_context(zram_swap(scenario.swap_bytes))
        else:
            stack.enter_context(file_swap(scenario.swap_bytes, folder))
            device = None
        lab = stack.enter_context(open_lab(TENANTS))
        return _run_in(lab, arm, scenario, seed, folder, device, stack)


def _run_in(
    lab: Lab,
    arm: Arm,
    scenario: Scenario,
    seed: int,
    folder: Path,
    device: Path | None,
    stack: ExitStack,
) -> dict[str, Any]:
    address = _start_redis(lab, scenario, folder, seed)
    if arm.limited:
        lab.limit(scenario.limit_bytes)
    for tenant, size_bytes in (arm.split_bytes or {}).items():
        lab.limit(size_bytes, tenant)
    start_s = time.monotonic() + 3.0
    late_s = start_s + EARLY_PERIODS * scenario.period_s
    end_s = start_s + scenario.periods * scenario.period_s
    jobs = {tenant: start_job(lab, tenant, scenario, start_s, seed) for tenant in JOBS}
    config = agent_config(lab, scenario, folder, arm.sculpt)
    agent = stack.enter_context(Agent(config, folder)) if arm.agent else None
    senpais = [
        Senpai(
            lab=lab,
            tenant=tenant,
            rule=SenpaiRule(),
            max_bytes=scenario.limit_bytes,
            start_at_usage=arm.senpai_start_at_usage,
        )
        for tenant in TENANTS
        if arm.senpai_start_at_usage is not None
    ]
    client = _start_client(address, scenario, start_s, late_s, end_s, seed)
    samples_start_s = time.monotonic()
    samples, at_late = _watch(lab, jobs, senpais, device, late_s, end_s, agent)
    output, _ = client.communicate(timeout=60)
    at_end = {tenant: lab.read(tenant) for tenant in TENANTS}
    late_cpu_s = agent.cpu_s() - at_late["agent"] if agent else 0.0
    phases = {tenant: _phases_of(job) for tenant, job in jobs.items()}
    return {
        "arm": arm.name,
        "seed": seed,
        "redis": json.loads(output),
        "phases": phases,
        "late_phase_s": [phase["end_s"] - phase["start_s"] for job in JOBS for phase in phases[job][EARLY_PERIODS:]],
        "early_phase_s": [phase["end_s"] - phase["start_s"] for job in JOBS for phase in phases[job][:EARLY_PERIODS]],
        "missing_phases": sum(scenario.periods - len(phases[job]) for job in JOBS),
        "late_major_faults": {t: at_end[t].major_faults - at_late[t].major_faults for t in TENANTS},
        "early_major_faults": {t: at_late[t].major_faults for t in TENANTS},
        "late_stall_s": {t: at_end[t].some_stall_s - at_late[t].some_stall_s for t in TENANTS},
        "early_stall_s": {t: at_late[t].some_stall_s for t in TENANTS},
        "oom_kills": sum(reading.oom_kills for reading in at_end.values()),
        "held_bytes": mean(sample["lab"] + sample["swap"] for sample in samples if sample["at_s"] >= 0),
        "samples": samples,
        "samples_start_s": samples_start_s,
        "start_s": start_s,
        "agent": {**agent.measure(), "late_cpu_s": late_cpu_s} if agent else None,
    }


def _start_redis(lab: Lab, scenario: Scenario, folder: Path, seed: int) -> str:
    address = str(folder / "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no"]
    lab.start("redis", [*command, "--dir", str(folder)], cpus=CACHE_CPU, stdout=subprocess.DEVNULL)
    poll(lambda: os.path.exists(address), what="redis-server to listen")
    client = [sys.executable, str(PROGRAMS / "cache_client.py"), "--socket", address]
    subprocess.run([*client, "--keys", str(scenario.keys), "--seed", str(seed), "--fill"], check=True)
    return address


def start_job(lab: Lab, tenant: str, scenario: Scenario, start_s: float, seed: int) -> "subprocess.Popen[str]":
    """Start one analytic job on its schedule."""
    offset_s = JOBS.index(tenant) * scenario.period_s / len(JOBS)
    command = [sys.executable, str(PROGRAMS / "job.py")]
    options = {
        "--bytes": scenario.job_bytes,
        "--start-at-s": start_s + offset_s,
        "--period-s": scenario.period_s,
        "--phases": scenario.periods,
        "--touches": scenario.touches,
        "--seed": seed * 1000 + JOBS.index(tenant) * 100,
    }
    words = [str(word) for option in options.items() for word in option]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return lab.start(tenant, [*command, *words], cpus=JOBS_CPU, stdout=subprocess.PIPE, env=environment)


def _start_client(
    address: str, scenario: Scenario, start_s: float, late_s: float, end_s: float, seed: int
) -> "subprocess.Popen[str]":
    command = [sys.executable, str(PROGRAMS / "cache_client.py"), "--socket", address]
    command += ["--keys", str(scenario.keys), "--seed", str(seed + 1), "--until-s", str(end_s)]
    command += ["--window", "early", str(start_s), str(late_s), "--window", "late", str(late_s), str(end_s)]
    cpu = ",".join(str(cpu) for cpu in CACHE_CPU)
    return subprocess.Popen(["taskset", "-c", cpu, *command], stdout=subprocess.PIPE, text=True)


def _watch(
    lab: Lab,
    jobs: Mapping[str, "subprocess.Popen[str]"],
    senpais: list[Senpai],
    device: Path | None,
    late_s: float,
    end_s: float,
    agent: "Agent | None",
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Sample memory four times a second, tick the reactive rule, until the jobs are done or hopeless."""
    samples: list[dict[str, float]] = []
    at_late: dict[str, Any] = {}
    for senpai in senpais:
        senpai.start()
    next_senpai_s = time.monotonic() + 1.0
    begin_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        if now_s >= late_s and not at_late:
            at_late = {tenant: lab.read(tenant) for tenant in TENANTS}
            at_late["agent"] = agent.cpu_s() if agent else 0.0
        if now_s >= next_senpai_s:
            next_senpai_s += 1.0
            for senpai in senpais:
                senpai.tick()
        sample = {"at_s": now_s - begin_s, "lab": float(lab.used_bytes())}
        sample["swap"] = float(zram_used_bytes(device)) if device else 0.0
        for tenant in TENANTS:
            sample[tenant] = float(lab.read(tenant).used_bytes)
        samples.append(sample)
        done = all(job.poll() is not None for job in jobs.values())
        if (done and now_s >= end_s) or now_s > end_s + OVERTIME_S:
            return samples, at_late
        time.sleep(0.25)


def _phases_of(job: "subprocess.Popen[str]") -> list[dict[str, float]]:
    if job.poll() is None:
        job.kill()
    output, _ = job.communicate()
    return [json.loads(line) for line in output.splitlines() if line.endswith("}")]


class Agent:
    """The agent in apply mode on the lab, as a user would start it."""

    def __init__(self, config: str, folder: Path) -> None:
        """Start it with a configuration that has its socket in `folder`."""
        self.config = folder / "memsculpt.toml"
        self.config.write_text(config)
        self._log = folder / "agent.log"
        self._started_s = time.monotonic()
        command = [sys.executable, "-m", "memsculpt", "run", "--apply", "--no-listen", "--config", str(self.config)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        poll(lambda: (folder / "agent.sock").exists() or self._check_alive(), what="the agent to listen")

    def __enter__(self) -> Self:
        return self

    def _check_alive(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError("the agent ended: " + self._log.read_text()[-2000:])
        return False

    def cpu_s(self) -> float:
        """Return the processor time that the agent has used so far."""
        self._check_alive()
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self) -> dict[str, Any]:
        """Return what the agent itself has used so far: processor time and resident memory."""
        cpu_s = self.cpu_s()
        status = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM"))
        elapsed_s = time.monotonic() - self._started_s
        return {
            "cpu_s": cpu_s,
            "cpu_ratio": cpu_s / elapsed_s,
            "resident_peak_bytes": int(peak.split()[1]) * 1024,
            "log": self._log.read_text()[-4000:],
        }

    def kill(self) -> None:
        """End the agent as a crash would."""
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)


def agent_config(lab: Lab, scenario: Scenario, folder: Path, sculpt: str = "cold") -> str:
    """Return the configuration a user of this machine would write: a guarantee, two jobs, a capacity."""
    return f"""
[agent]
mode = "apply"
interval = "1s"
capacity = "{scenario.limit_bytes // MIB}MiB"
socket = "{folder}/agent.sock"
state = "{folder}/state"

[plan]
sculpt = "{sculpt}"

[[partition]]
name = "cache"
match = {{ cgroup = "{lab.name}/redis" }}
guarantee = "540MiB"
priority = 400

[[partition]]
name = "job-a"
match = {{ cgroup = "{lab.name}/job-a" }}

[[partition]]
name = "job-b"
match = {{ cgroup = "{lab.name}/job-b" }}
"""


def summary_of(result: Mapping[str, Any]) -> str:
    """Return one line of a round for the terminal."""
    late = result["redis"]["late"]
    phases = result["late_phase_s"]
    return (
        f"{result['arm']:<10} redis p50/p99/p99.9/max "
        f"{late['p50']:.0f}/{late['p99']:.0f}/{late['p999']:.0f}/{late['max']:.0f} us, "
        f"late phase {median(phases) if phases else float('nan'):.2f} s, "
        f"redis faults {result['late_major_faults']['redis']}, "
        f"stall {sum(result['late_stall_s'].values()):.2f} s, OOM kills {result['oom_kills']}"
        + (f", agent {result['agent']['cpu_s']:.1f} s cpu" if result["agent"] else "")
    )


def quick(scenario: Scenario) -> Scenario:
    """Return a scenario short enough for a demonstration."""
    return replace(scenario, periods=4)
