# SPDX-License-Identifier: Apache-2.0
"""bench cold: how much of a program's memory can be taken before it notices.

Parts: "redis", a server full of keys that a client asks for by a Zipf law; "numpy", a service over a table in
partitions after a warm-up over all of it; "uniform", a program that reads all of its memory at random, from which
nothing can be taken. Arms of each part, alike but for who manages their memory:

    roomy      nobody
    reactive   Senpai's rule on PSI (senpai.py), adapting for as long as memsculpt does
    memsculpt  its pages are looked at, and ColdZone sends out what is cold, again and again
    kernel     nobody, under a limit that leaves it as much as memsculpt held

Reactive and memsculpt adapt side by side, each with a processor of its own. Then everything is measured in short turns
in which one arm runs and nothing else: requests in a second, and the 99th percentile of their durations. What looking
costs is not in these turns; it is told beside (`look_cost_ratio`).
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.arrays import Int64
from memsculpt.domain.pool import ColdZone
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.workload import CgroupPath, Match
from memsculpt.host import open_host
from memsculpt_bench.contract import Figure, at_least, at_most, result
from memsculpt_bench.known_pages import built
from memsculpt_bench.lab import Lab, LabUnavailable, open_lab, poll, zram_swap, zram_used_bytes
from memsculpt_bench.senpai import Senpai, SenpaiRule

MIB = 1 << 20
PARTS = ("redis", "numpy", "uniform")
ARMS = ("roomy", "reactive", "memsculpt", "kernel")
TIMED = Path(__file__).with_name("tenants") / "timed.py"
RING = 1 << 18
HISTOGRAM_ROWS = 64 * 32
READS_AN_OPERATION = 64
SWAP_BYTES = 4 << 30
# A look each so many seconds: the agent's is ten; here less, so that a round is over in minutes.
LOOK_S = 5.0
ASK_BYTES = 64 * MIB
TURN_S, TURNS = 1.0, 12
SKEW = 1.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large and how long."""

    redis_keys: int = 400_000
    numpy_bytes: int = 512 * MIB
    uniform_bytes: int = 512 * MIB
    adapt_s: float = 180.0


@dataclass(slots=True)
class Program:
    """One arm's processes, and the counters that they share with us."""

    arm: str
    processes: list["subprocess.Popen[str]"]
    told: mmap.mmap
    is_histogram: bool

    def signal(self, what: signal.Signals) -> None:
        """Stop or continue everything."""
        for process in self.processes:
            process.send_signal(what)

    def count(self) -> int:
        """Return how many requests were answered so far."""
        words = np.frombuffer(self.told, np.int64)
        return int(words[:HISTOGRAM_ROWS].sum() if self.is_histogram else words[0])

    def durations(self, before: int, after: int) -> Int64:
        """Return the durations of the requests between two counts, in ns, as far as they are kept."""
        words = np.frombuffer(self.told, np.int64)
        return words[1 + np.arange(max(before, after - RING), after) % RING]

    def pin(self, cpus: set[int]) -> None:
        """Let everything run on these processors."""
        for process in self.processes:
            os.sched_setaffinity(process.pid, cpus)

    def turn(self, turn_s: float) -> tuple[float, float]:
        """Run alone for a while; return requests in a second and the 99th percentile in us, NaN where not kept."""
        self.signal(signal.SIGCONT)
        try:
            time.sleep(turn_s / 10)  # the request that met the stop is not counted
            before, begin_s = self.count(), time.monotonic()
            time.sleep(turn_s)
            after, passed_s = self.count(), time.monotonic() - begin_s
        finally:
            self.signal(signal.SIGSTOP)
        p99_us = float("nan") if self.is_histogram else float(np.percentile(self.durations(before, after), 99)) / 1e3
        return (after - before) / passed_s, p99_us


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Run all parts; return the object that `bench cold --json` prints."""
    tell = say or _nothing
    if len(os.sched_getaffinity(0)) < 2:
        raise LabUnavailable("two arms adapt side by side: two processors are needed")
    if shutil.which("redis-server") is None:
        raise LabUnavailable("redis-server is missing: apt install redis-server")
    scale = Scale(adapt_s=110.0) if quick else Scale()
    arms: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for part in PARTS:
            _run_part(part, scale, arms)
            tell(f"round {number + 1} of {rounds}, {part}: {_told(arms, part)}")
    figures: dict[str, Figure] = {}
    for part in ("redis", "numpy"):
        rate, p99 = _ratios(arms, part, "rate"), _ratios(arms, part, "p99_us")
        unharmed = median(rate) >= 0.99 and median(p99) <= 1.05
        taken = arms[f"{part} memsculpt"]["taken_ratio"]
        more = [ours - theirs for ours, theirs in zip(taken, arms[f"{part} reactive"]["taken_ratio"], strict=True)]
        figures |= {
            f"{part}_taken": at_least(0.3, taken, also=unharmed),
            f"{part}_throughput_over_roomy": at_least(0.99, rate),
            f"{part}_p99_over_roomy": at_most(1.05, p99),
            f"{part}_taken_more_than_reactive": at_least(0.0, more),
        }
    figures["uniform_throughput_over_roomy"] = at_least(0.99, _ratios(arms, "uniform", "rate"))
    return result("cold", rounds, arms, figures, look_s=LOOK_S, adapt_s=scale.adapt_s, key_skew=SKEW)


def _run_part(part: str, scale: Scale, arms: dict[str, dict[str, list[float]]]) -> None:
    """Fill, adapt, measure one part of one round, and add what came to the columns of its arms."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        reader = stack.enter_context(built("reader"))
        zram = stack.enter_context(zram_swap(SWAP_BYTES))
        lab = stack.enter_context(open_lab((*ARMS, "clients")))
        programs = {arm: _start(lab, part, arm, folder, reader, scale) for arm in ARMS}
        facts = _adapt(lab, programs, scale.adapt_s)
        held = lab.read("memsculpt").used_bytes
        _squeeze(lab, "kernel", held, programs["kernel"])
        rates: Mapping[str, list[float]] = {arm: [] for arm in ARMS}
        p99: Mapping[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(TURNS):
            for arm in ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]:
                rate, quantile = programs[arm].turn(TURN_S)
                rates[arm].append(rate)
                p99[arm].append(quantile)
        roomy = lab.read("roomy").used_bytes
        kept_ratio = zram_used_bytes(zram) / max(1, sum(lab.read(arm).swapped_bytes for arm in ARMS))
        for arm in ARMS:
            seen = lab.read(arm)
            taken = 1.0 - seen.used_bytes / roomy
            column = {
                "rate": median(rates[arm]),
                **({} if programs[arm].is_histogram else {"p99_us": median(p99[arm])}),
                "held_bytes": float(seen.used_bytes),
                "taken_ratio": taken,
                # What the compressed copies take in memory is not charged to anybody; here it is.
                "taken_net_ratio": taken - kept_ratio * seen.swapped_bytes / roomy,
                "major_faults": float(seen.major_faults),
                "stall_s": seen.some_stall_s,
                **(facts if arm == "memsculpt" else {}),
            }
            columns = arms.setdefault(f"{part} {arm}", {})
            for name, value in column.items():
                columns.setdefault(name, []).append(value)


def _start(lab: Lab, part: str, arm: str, folder: Path, reader: Path, scale: Scale) -> Program:
    """Start one arm's program, wait until it serves, and stop it."""
    path = folder / f"{arm}.told"
    path.write_bytes(bytes(8 * max(RING + 1, HISTOGRAM_ROWS)))
    processes: list[subprocess.Popen[str]] = []
    if part == "redis":
        address = str(folder / f"{arm}.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no"]
        processes.append(lab.start(arm, [*command, "--dir", str(folder)], stdout=subprocess.DEVNULL))
        poll(lambda: Path(address).exists(), what="redis-server to listen")
        asking = ["redis", str(path), address, str(scale.redis_keys), str(SKEW)]
        serving = lab.start("clients", [sys.executable, str(TIMED), *asking], stdout=subprocess.PIPE)
    elif part == "numpy":
        asking = ["numpy", str(path), str(scale.numpy_bytes)]
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        serving = lab.start(arm, [sys.executable, str(TIMED), *asking], stdout=subprocess.PIPE, env=env)
    else:
        serving = lab.start(arm, [str(reader), str(scale.uniform_bytes), str(path)], stdout=subprocess.PIPE)
    processes.append(serving)
    if serving.stdout is None or serving.stdout.readline().strip() != "ready":
        raise LabUnavailable(f"the {part} of the arm {arm} did not start")
    with path.open("r+b") as file:
        told = mmap.mmap(file.fileno(), 0)
    made = Program(arm=arm, processes=processes, told=told, is_histogram=part == "uniform")
    made.signal(signal.SIGSTOP)
    return made


def _adapt(lab: Lab, programs: Mapping[str, Program], adapt_s: float) -> dict[str, float]:
    """Let reactive and memsculpt adapt side by side; return what memsculpt's work cost."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    partitions = (PartitionSettings(name="ours", match=Match(cgroup=CgroupPath(f"{lab.name}/memsculpt"))),)
    settings = Settings(mode=Mode.APPLY, partitions=partitions)
    used = lab.read("reactive").used_bytes
    rule = Senpai(lab=lab, tenant="reactive", rule=SenpaiRule(), max_bytes=2 * used, start_at_usage=True)
    sides = {"reactive": {first}, "memsculpt": {second}}
    for arm, cpus in sides.items():
        programs[arm].pin(cpus)
        programs[arm].signal(signal.SIGCONT)
    host = open_host(settings)
    try:
        host.watch(partitions)
        sculpting = Sculpting(host, settings)
        rule.start()
        begin_s = time.monotonic()
        look_at_s, cpu_s = begin_s, 0.0
        while (now_s := time.monotonic()) < begin_s + adapt_s:
            rule.tick()
            began_cpu_s = time.thread_time()
            observation = host.observe()
            if now_s >= look_at_s:
                look_at_s += LOOK_S
                sculpting.look(observation)
            sculpting.settle(observation, may_act=True)
            for one in sculpting.pools():
                sculpting.sculpt(one.pool, ColdZone(size_bytes=ASK_BYTES), observation, may_act=True)
            cpu_s += time.thread_time() - began_cpu_s
            time.sleep(max(0.0, now_s + 1.0 - time.monotonic()))
        stats = max(sculpting.pools(), key=lambda one: one.paged_out_bytes)
        passed_s = time.monotonic() - begin_s
        resident_pages = lab.read("memsculpt").used_bytes / 4096
        facts = {
            "agent_cpu_ratio": cpu_s / passed_s,
            "look_cost_ratio": resident_pages * host.touch_cost_s() / 10.0,  # at the agent's interval
            "paged_out_bytes": float(stats.paged_out_bytes),
            "undone_bytes": float(stats.undone_bytes),
        }
    finally:
        host.close()
        for arm in sides:
            programs[arm].signal(signal.SIGSTOP)
            programs[arm].pin(os.sched_getaffinity(0))
    return facts


def _squeeze(lab: Lab, tenant: str, size_bytes: int, program: Program) -> None:
    """Give a tenant a limit, as far as the kernel can reach it, and let it settle there."""
    program.signal(signal.SIGCONT)
    now = lab.read(tenant).used_bytes
    while now > size_bytes:
        now = max(size_bytes, now - 16 * MIB)
        try:
            lab.limit(now, tenant)
        except OSError:  # EBUSY: what is in use does not go lower; the last limit holds
            break
    time.sleep(5.0)
    program.signal(signal.SIGSTOP)


def _ratios(arms: Mapping[str, Mapping[str, list[float]]], part: str, column: str) -> list[float]:
    pairs = zip(arms[f"{part} memsculpt"][column], arms[f"{part} roomy"][column], strict=True)
    return [ours / theirs for ours, theirs in pairs]


def _told(arms: Mapping[str, Mapping[str, list[float]]], part: str) -> str:
    told: list[str] = []
    for arm in ARMS:
        columns = arms[f"{part} {arm}"]
        p99 = f", p99 {columns['p99_us'][-1]:.0f} us" if "p99_us" in columns else ""
        told.append(f"{arm} {columns['rate'][-1] / 1e3:.1f} k/s{p99}, taken {columns['taken_ratio'][-1]:.0%}")
    return "; ".join(told)


def _nothing(_line: str) -> None:
    return
