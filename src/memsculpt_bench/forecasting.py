# SPDX-License-Identifier: Apache-2.0
"""bench forecasting: what the seconds' engine costs for 1,000 workloads, and whether its quantiles come true.

Arms:

    engine       a step for 1,000 workloads of which every one moves: processor time, the usual and the slowest step
    agent        the agent itself beside 1,000 programs of different names whose memory changes every second, with
                 profiles kept: resident memory at most, processor time
    calibration  series of six kinds whose regime changes half way (level, scatter and kind), each with several seeds:
                 how often the 0.9 quantile of the peak over 3 s held, workload by workload, before the change, in the
                 two minutes after it, and later; pinball loss, and that of the last value with the same tracking
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, ForecastSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast import Forecaster, conformal, mixture, step
from memsculpt_bench.contract import at_least, at_most, result
from memsculpt_bench.lab import LabUnavailable, poll

COUNT = 1000
STEP_BAR_MS = 50.0
RESIDENT_BAR_BYTES = 96 * MIB
HELD_LEAST, HELD_MOST = 0.86, 0.96
HELD_AFTER_LEAST = 0.85  # of all workloads together, in the two minutes after a change
LOSS_BAR = 0.9  # ours by that of the last value
AGENT_S, QUICK_AGENT_S = 180.0, 40.0
SETTINGS = ForecastSettings()
LEVELS = np.array(SETTINGS.levels)
AT_90 = SETTINGS.levels.index(0.9)
HORIZON = int(SETTINGS.act_horizon_s)
TICKS, CHANGE_AT, WARM = 1400, 700, 150
AFTER = slice(CHANGE_AT, CHANGE_AT + 120)

Say = Callable[[str], None]
RESTLESS = Path(__file__).with_name("tenants") / "restless.c"


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Measure the three arms; return the object that `bench forecasting --json` prints."""
    tell = say or _nothing
    arms: dict[str, dict[str, list[float]]] = {"engine": {}, "agent": {}, "calibration": {}}
    for number in range(rounds):
        found = {
            "engine": _engine(40 if quick else 150, seed=number),
            "agent": _agent(QUICK_AGENT_S if quick else AGENT_S),
            "calibration": _calibration(seed=number),
        }
        for arm, figures in found.items():
            for name, value in figures.items():
                arms[arm].setdefault(name, []).append(value)
        tell(f"round {number + 1} of {rounds}: " + ", ".join(_told(found)))
    calibration = arms["calibration"]
    figures = {
        "step_cpu_ms_1000": at_most(STEP_BAR_MS, arms["engine"]["step_ms"]),
        "slowest_step_cpu_ms_1000": at_most(STEP_BAR_MS, arms["engine"]["slowest_ms"]),
        "agent_resident_bytes_1000": at_most(RESIDENT_BAR_BYTES, arms["agent"]["resident_peak_bytes"]),
        "held_lowest_workload": at_least(HELD_LEAST, calibration["lowest"]),
        "held_highest_workload": at_most(HELD_MOST, calibration["highest"]),
        "held_after_change": at_least(HELD_AFTER_LEAST, calibration["after"]),
        "loss_over_last_value": at_most(LOSS_BAR, calibration["loss_ratio"]),
    }
    return result("forecasting", rounds, arms, figures, workloads=COUNT)


def _told(found: dict[str, dict[str, float]]) -> list[str]:
    return [f"{arm} {name} {value:.4g}" for arm, figures in found.items() for name, value in figures.items()]


def _nothing(_text: str) -> None:
    return


# --- engine ----------------------------------------------------------------------------------------------------------


def _engine(steps: int, *, seed: int) -> dict[str, float]:
    chance = np.random.default_rng(seed)
    walks = 200.0 + np.cumsum(3.0 * chance.standard_normal((steps, COUNT)), axis=0)
    forecaster = Forecaster()
    taken_ms: list[float] = []
    for tick, need in enumerate(np.maximum(walks, 1.0)):
        seen = _profiles(tick, need)
        before_s = time.process_time()
        forecaster, _ = step(forecaster, seen, SETTINGS)
        taken_ms.append(1e3 * (time.process_time() - before_s))
    settled = taken_ms[len(taken_ms) // 2 :]
    return {"step_ms": float(np.median(settled)), "slowest_ms": max(settled)}


def _profiles(tick: int, need_mib: Float64, growth_mib: Float64 | None = None) -> Profiles:
    count = len(need_mib)
    nothing, none, no = np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    return Profiles(
        time_s=tick + 0.4,
        elapsed_s=1.0,
        ids=tuple(WorkloadId(f"workload-{row:05}") for row in range(count)),
        needed_bytes=np.round(need_mib * MIB).astype(np.int64),
        cold_bytes=none.copy(),
        reclaimable_bytes=none.copy(),
        working_set_bytes=none.copy(),
        growth_bytes_per_s=nothing.copy() if growth_mib is None else growth_mib * MIB,
        release_bytes_per_s=nothing.copy(),
        minor_faults_per_s=nothing.copy(),
        major_faults_per_s=nothing.copy(),
        refaults_per_s=nothing.copy(),
        cpu_ratio=np.full(count, 0.5),
        io_bytes_per_s=nothing.copy(),
        some_stall_ratio=nothing.copy(),
        full_stall_ratio=nothing.copy(),
        idle_s=nothing.copy(),
        age_s=np.full(count, float(tick)),
        is_starting=no.copy(),
        was_restarted=no.copy(),
        was_oom_killed=no.copy(),
        hit_limit=no.copy(),
        process_idle_s=np.zeros(0),
    )


# --- agent -----------------------------------------------------------------------------------------------------------


def _agent(duration_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="memsculpt-bench-forecasting-") as folder, _crowd(Path(folder)):
        config = Path(folder) / "memsculpt.toml"
        config.write_text(f'[agent]\nsocket = "{folder}/agent.sock"\nstate = "{folder}/state"\n')
        command = [sys.executable, "-m", "memsculpt", "run", "--observe", "--no-listen", "--config", str(config)]
        with (Path(folder) / "agent.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            poll(lambda: (Path(folder) / "agent.sock").exists() or process.poll() is not None, what="the agent")
            began_s, cpu_s = time.monotonic(), _cpu_s(process.pid)
            poll(
                lambda: time.monotonic() - began_s >= duration_s or process.poll() is not None,
                what="the agent to see its crowd for a while",
                timeout_s=duration_s + 20.0,
            )
            if process.poll() is not None:
                raise LabUnavailable("the agent ended: " + (Path(folder) / "agent.log").read_text()[-500:])
            peak, now = _status_bytes(process.pid, "VmHWM"), _status_bytes(process.pid, "VmRSS")
            used_ratio = (_cpu_s(process.pid) - cpu_s) / (time.monotonic() - began_s)
        finally:
            process.terminate()
            process.wait(timeout=30)
    return {"resident_peak_bytes": peak, "resident_bytes": now, "cpu_ratio": used_ratio}


@contextmanager
def _crowd(folder: Path) -> Generator[None]:
    """Run COUNT programs of different names, each a workload of its own; all are ended on the way out."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise LabUnavailable("the crowd is written in C: apt install gcc")
    program = folder / "restless"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(program), str(RESTLESS)], check=True)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(COUNT):
            name = folder / f"restless-{number:04}"
            name.hardlink_to(program)
            running.append(subprocess.Popen([str(name), str(number)]))
        yield
    finally:
        for one in running:
            one.kill()
        for one in running:
            one.wait()


def _status_bytes(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


# --- calibration -----------------------------------------------------------------------------------------------------


def series(seed: int, each: int = 6) -> Float64:
    """Return needs in MiB, shape (TICKS, kinds * each): another regime from CHANGE_AT on."""
    chance = np.random.default_rng(seed)
    columns = [make(chance) for make in _KINDS for _ in range(each)]
    return np.maximum(np.array(columns).T, 1.0)


def _noise(chance: np.random.Generator) -> Float64:
    return _joined(150.0 + 4.0 * chance.standard_normal(TICKS), 420.0 + 25.0 * chance.standard_normal(TICKS))


def _walk(chance: np.random.Generator) -> Float64:
    steps = chance.standard_normal(TICKS) * np.where(np.arange(TICKS) < CHANGE_AT, 1.0, 6.0)
    return np.abs(600.0 + np.cumsum(steps))


def _swing(chance: np.random.Generator) -> Float64:
    at, noise = np.arange(TICKS), chance.standard_normal(TICKS)
    first = 300.0 + 80.0 * np.sin(2.0 * np.pi * at / 23.0) + 4.0 * noise
    return _joined(first, 300.0 + 40.0 * np.sin(2.0 * np.pi * at / 57.0) + 8.0 * noise)


def _returning(chance: np.random.Generator) -> Float64:
    found = np.empty(TICKS)
    away = 0.0
    for tick in range(TICKS):
        pull, scatter = (0.8, 6.0) if tick < CHANGE_AT else (0.3, 15.0)
        away = pull * away + scatter * chance.standard_normal()
        found[tick] = 250.0 + away
    return found


def _bursts(chance: np.random.Generator) -> Float64:
    found = 100.0 + chance.standard_normal(TICKS)
    for at in np.flatnonzero(chance.random(TICKS) < np.where(np.arange(TICKS) < CHANGE_AT, 1 / 40, 1 / 20)):
        found[at : at + 5] += 150.0 if at < CHANGE_AT else 60.0
    return found


def _filling(chance: np.random.Generator) -> Float64:
    at, shift = np.arange(TICKS), int(chance.integers(45))
    first = 100.0 + 6.0 * ((at + shift) % 45) + chance.standard_normal(TICKS)
    return _joined(first, 100.0 + 2.5 * ((at + shift) % 80) + chance.standard_normal(TICKS))


def _joined(before: Float64, after: Float64) -> Float64:
    return np.where(np.arange(TICKS) < CHANGE_AT, before, after)


_KINDS = (_noise, _walk, _swing, _returning, _bursts, _filling)


def _calibration(*, seed: int) -> dict[str, float]:
    need = series(seed)
    growth = np.maximum(np.diff(need, axis=0, prepend=need[:1]), 0.0)
    forecaster = Forecaster()
    made: list[Float64] = []
    for tick in range(TICKS):
        forecaster, forecasts = step(forecaster, _profiles(tick, need[tick], growth[tick]), SETTINGS)
        made.append(forecasts.quantiles_bytes[:, 0] / MIB)
    ours, naive = np.array(made), _tracked_last_value(need)
    peak = np.lib.stride_tricks.sliding_window_view(need[1:], HORIZON, axis=0).max(axis=-1)
    held = peak <= ours[: len(peak), :, AT_90]
    steady = np.r_[held[WARM : CHANGE_AT - HORIZON], held[AFTER.stop :]].mean(axis=0)
    losses = [mixture.pinball(one[WARM : len(peak)], peak[WARM:], LEVELS).mean(axis=(0, 2)) for one in (ours, naive)]
    return {
        "lowest": float(steady.min()),
        "highest": float(steady.max()),
        "after": float(held[AFTER].mean()),
        "loss_ratio": float((losses[0] / losses[1]).mean()),
    }


def _tracked_last_value(need: Float64) -> Float64:
    """Return the last value with tracked offsets, shape (TICKS, n, levels), in MiB: what one expert alone would say."""
    count = need.shape[1]
    offsets = conformal.initial_offsets(need[0], LEVELS)
    scale, settled, pauses = 0.05 * need[0] + 1.0, np.zeros(count), np.zeros(count, np.bool_)
    found = np.empty((len(need), count, len(LEVELS)))
    for tick in range(len(need)):
        begun = tick - HORIZON
        if begun >= 0:
            truth = need[begun + 1 : tick + 1].max(axis=0)
            scale = conformal.learn_scale(scale, truth - need[begun], settled, pauses)
            offsets = conformal.learn_offsets(
                offsets, found[begun], truth, LEVELS, scale * conformal.step_ratio(settled, pauses)
            )
            settled += 1.0
        found[tick] = np.maximum.accumulate(need[tick][:, np.newaxis] + offsets, axis=1)
    return found
