# SPDX-License-Identifier: Apache-2.0
"""bench store: how many bytes a sample takes, what keeping costs each tick, how fast a week of history is read.

First this machine is recorded: the agent's own observe, profile and forecast loop looks at everything that runs here,
and at tenants that the bench starts beside it (idle, batch, growing, bursts, serving), second by second. From that a
week of 100 workloads is made: each follows stretches of one recorded workload, taken at random, its sizes scaled by a
factor of its own and by the hour of the day and the day of the week, its rates scaled anew for each stretch and
jittered, so that no stretch is met twice byte by byte. Samples that were not known in the recording are not known then,
and are not counted.

Arms:

    strict     every second of the week is kept, with all coarser resolutions: bytes of the file by known samples fed
    usual      the same after thinning as configured by default: what a machine really holds
    tick       the recorder fed tick by tick for four hours: processor time of a tick, with all flushes and chunks
    history    a week of 5-minute samples of 1,000 workloads, read one by one
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt import profile
from memsculpt.agent import Agent
from memsculpt.domain.arrays import Float64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.profile import Profiles
from memsculpt.domain.series import METRICS, SAMPLED, Series
from memsculpt.domain.settings import PartitionSettings, ProfileSettings, Settings
from memsculpt.domain.workload import Match, WorkloadId
from memsculpt.host import open_host
from memsculpt.profile import codec
from memsculpt.profile.series import sample
from memsculpt.profile.store import Block, Store
from memsculpt_bench.contract import at_most, result

BYTES_BAR = 1.5
TICK_BAR_MS = 2.0  # of 1,000: a fifth of the agent's one percent
READ_BAR_MS = 5.0  # for each workload
WORKLOADS = 100
DAYS = 7
HISTORY_WORKLOADS = 1000
HOUR_S, DAY_S = 3600, 86_400
BEGIN_S = 1_800_000_000 // (7 * DAY_S) * 7 * DAY_S
KNOWN_LEAST_S = 30  # a recorded workload that was there for less is left out
IS_SIZE = np.array([one.bits >= 9 for one in METRICS[:SAMPLED]])

TENANT = Path(__file__).with_name("tenants") / "habits.py"
HABITS = ("idle", "batch", "growing", "cache", "bursts", "files", "serving")

Say = Callable[[str], None]


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Record, build, measure; return the object that `bench store --json` prints."""
    tell = say or _nothing
    record_s = 60.0 if quick else 300.0
    tell(f"recording this machine for {record_s:.0f} s")
    recorded = record(record_s)
    days, workloads = (1, 20) if quick else (DAYS, WORKLOADS)
    arms: dict[str, dict[str, list[float]]] = {
        "strict": {"bytes_per_sample": [], "file_bytes": []},
        "usual": {"bytes_per_sample": [], "file_bytes": []},
        "tick": {"tick_cpu_ms": [], "slowest_tick_ms": []},
        "history": {"read_ms": []},
    }
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="memsculpt-bench-store-") as folder:
            strict, usual = _fill(Path(folder) / "week", recorded, workloads, days, seed=number)
            arms["strict"]["bytes_per_sample"].append(strict[0])
            arms["strict"]["file_bytes"].append(strict[1])
            arms["usual"]["bytes_per_sample"].append(usual[0])
            arms["usual"]["file_bytes"].append(usual[1])
            tick_ms, slowest_ms = _ticks(Path(folder) / "ticks", recorded, quick=quick, seed=number)
            arms["tick"]["tick_cpu_ms"].append(tick_ms)
            arms["tick"]["slowest_tick_ms"].append(slowest_ms)
            arms["history"]["read_ms"].append(_history(Path(folder) / "many", recorded, quick=quick, seed=number))
        tell(
            f"round {number + 1} of {rounds}: {strict[0]:.3f} bytes a sample, {tick_ms:.2f} ms a tick, "
            f"{arms['history']['read_ms'][-1]:.2f} ms to read a workload's week"
        )
    figures = {
        "bytes_per_sample": at_most(BYTES_BAR, arms["strict"]["bytes_per_sample"]),
        "tick_cpu_ms": at_most(TICK_BAR_MS, arms["tick"]["tick_cpu_ms"]),
        "history_read_ms": at_most(READ_BAR_MS, arms["history"]["read_ms"]),
    }
    names = list(recorded)
    return result(
        "store",
        rounds,
        arms,
        figures,
        recording={
            "seconds": record_s,
            "workloads": len(names),
            "known_samples": int(sum(np.isfinite(one).sum() for one in recorded.values())),
            "bytes_per_sample": _plain_bytes_per_sample(recorded),
        },
        week={"workloads": workloads, "days": days, "metrics": SAMPLED},
    )


def record(record_s: float) -> dict[WorkloadId, Float64]:
    """Record this machine: samples by workload, shape (n_seconds, SAMPLED), NaN where not known."""
    with tempfile.TemporaryDirectory(prefix="memsculpt-bench-tenants-") as folder, _tenants(Path(folder)) as exes:
        settings = Settings(
            partitions=tuple(PartitionSettings(name=exe.name, match=Match(exe=str(exe))) for exe in exes)
        )
        host = open_host(settings)
        try:
            host.watch(settings.partitions)
            tap = _Tap(horizon_s=settings.forecast.act_horizon_s)
            agent = Agent(host=host, settings=settings, recorder=tap, looks_beside=True)
            agent.run(threading.Event(), record_s)
            agent.close()
        finally:
            host.close()
    return tap.series()


class _Tap(profile.Recorder):
    """Takes the place of the recorder in the agent, and keeps what it was given."""

    def __init__(self, *, horizon_s: float) -> None:
        self._horizon_s = horizon_s
        self._ticks: list[tuple[tuple[WorkloadId, ...], Float64]] = []

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def observe(
        self,
        observation: Observation,
        profiles: Profiles,
        heat: WorkloadHeat | None,
        forecasts: Forecasts,
        *,
        horizon_s: float,
    ) -> None:
        rows = sample(observation, profiles, heat, forecasts, horizon_s=horizon_s)
        self._ticks.append((observation.workloads.ids, rows))

    def series(self) -> dict[WorkloadId, Float64]:
        """Return what each workload was seen to do, by name; those that were hardly there left out."""
        found: dict[WorkloadId, Float64] = {}
        for tick, (ids, rows) in enumerate(self._ticks):
            for identity, row in zip(ids, rows, strict=True):
                if identity not in found:
                    found[identity] = np.full((len(self._ticks), SAMPLED), np.nan)
                found[identity][tick] = row
        return {one: table for one, table in sorted(found.items()) if _known_s(table) >= KNOWN_LEAST_S}


def _known_s(table: Float64) -> int:
    return int(np.isfinite(table[:, 0]).sum())


@contextmanager
def _tenants(folder: Path) -> Generator[list[Path]]:
    """Start a program of each habit, each a program file of its own, so that each is a workload of its own."""
    python = Path(os.path.realpath(sys.executable))
    home = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    exes: list[Path] = []
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number, habit in enumerate(HABITS):
            exe = folder / f"tenant-{habit}"
            exe.write_bytes(python.read_bytes())
            exe.chmod(0o755)
            exes.append(exe)
            children.append(
                subprocess.Popen(
                    [exe, "-S", TENANT, habit, str(number)],
                    cwd=folder,
                    env={**os.environ, "PYTHONHOME": home},
                    stdin=subprocess.DEVNULL,
                )
            )
        yield exes
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


class _Maker:
    """Makes hours of one workload from a recorded one."""

    def __init__(self, source: Float64, seed: tuple[int, ...]) -> None:
        self._chance = np.random.default_rng(seed)
        self._source = source[np.isfinite(source[:, 0])]
        self._scale = float(np.exp(self._chance.normal(0.0, 0.7)))
        self._phase_s = float(self._chance.uniform(0, DAY_S))

    def hour(self, start_s: int) -> Float64:
        """Return an hour, shape (3600, SAMPLED)."""
        pieces: list[Float64] = []
        count = 0
        while count < HOUR_S:
            length = int(self._chance.integers(20, max(21, len(self._source))))
            at = int(self._chance.integers(0, max(1, len(self._source) - length + 1)))
            piece = self._source[at : at + length].copy()
            factors = np.where(IS_SIZE, 1.0, self._chance.uniform(0.5, 2.0, SAMPLED))
            pieces.append(piece * factors)
            count += len(piece)
        hour = np.concatenate(pieces)[:HOUR_S]
        hour[:, ~IS_SIZE] *= np.exp(self._chance.normal(0.0, 0.05, (HOUR_S, int((~IS_SIZE).sum()))))
        at_s = start_s + np.arange(HOUR_S)
        rhythm = 1.0 + 0.3 * np.sin(2 * np.pi * (at_s + self._phase_s) / DAY_S) + 0.1 * (at_s // DAY_S % 7 < 5)
        hour[:, IS_SIZE] *= self._scale * rhythm[:, np.newaxis]
        return hour


def _fill(
    folder: Path, recorded: dict[WorkloadId, Float64], workloads: int, days: int, *, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Feed a store, an hour at a time; return (bytes per sample, bytes) with all seconds kept, and as usual."""
    ids = tuple(WorkloadId(f"workload-{number:03}") for number in range(workloads))
    sources = list(recorded.values())
    makers = [_Maker(sources[number % len(sources)], (seed, number)) for number in range(workloads)]
    store = Store.open_to_write(folder, now_s=BEGIN_S)
    known = 0
    try:
        for hour in range(days * 24):
            start_s = BEGIN_S + hour * HOUR_S
            for first in range(0, workloads, 20):  # so that an hour of all of them need not fit in memory
                values = np.stack([maker.hour(start_s) for maker in makers[first : first + 20]])
                known += int(np.isfinite(values).sum())
                block = Block(
                    resolution_s=1, start_s=start_s, ids=ids[first : first + 20], codes=codec.quantise(values)
                )
                store.append([block])
            for each in store.unsealed(start_s + HOUR_S):
                store.seal(*each)
        strict = float(store.size_bytes())
        settings = ProfileSettings()
        store.thin(BEGIN_S + days * DAY_S, settings.keep_by_resolution(), settings.size_max_bytes)
        usual = float(store.size_bytes())
    finally:
        store.close()
    return (strict / known, strict), (usual / known, usual)


def _ticks(folder: Path, recorded: dict[WorkloadId, Float64], *, quick: bool, seed: int) -> tuple[float, float]:
    """Feed a recorder tick by tick; return mean and worst processor time of a tick in ms."""
    ids = tuple(WorkloadId(f"workload-{number:03}") for number in range(WORKLOADS))
    sources = list(recorded.values())
    makers = [_Maker(sources[number % len(sources)], (seed, number)) for number in range(WORKLOADS)]
    is_named = np.arange(WORKLOADS) < 10
    clock = [float(BEGIN_S)]
    recorder = profile.Recorder(str(folder), ProfileSettings(), clock_s=lambda: clock[0])
    taken_s: list[float] = []
    for hour in range(2 if quick else 4):
        values = np.stack([maker.hour(BEGIN_S + hour * HOUR_S) for maker in makers], axis=1)
        for number in range(HOUR_S):
            rows: Float64 = values[number]
            begin_s = time.process_time()
            recorder.record(ids, rows, is_named=is_named, now_s=clock[0])
            taken_s.append(time.process_time() - begin_s)
            clock[0] += 1.0
    recorder.close()
    return 1e3 * sum(taken_s) / len(taken_s), 1e3 * max(taken_s)


def _history(folder: Path, recorded: dict[WorkloadId, Float64], *, quick: bool, seed: int) -> float:
    """Read a week of 5-minute samples of many workloads; return the wall time for each in ms."""
    count = 100 if quick else HISTORY_WORKLOADS
    ids = tuple(WorkloadId(f"workload-{number:04}") for number in range(count))
    sources = list(recorded.values())
    samples = DAYS * DAY_S // 300
    store = Store.open_to_write(folder, now_s=BEGIN_S)
    try:
        store.insert(
            _week(one, sources[number % len(sources)], samples, (seed, number)) for number, one in enumerate(ids)
        )
        begin_s = time.perf_counter()
        for one in ids:
            found = store.last(one, 300, samples)
            if len(found.values) != samples:
                raise ValueError(f"{one}: {len(found.values)} of {samples} samples were read")
        return 1e3 * (time.perf_counter() - begin_s) / count
    finally:
        store.close()


def _week(identity: WorkloadId, source: Float64, samples: int, seed: tuple[int, ...]) -> Series:
    maker = _Maker(source, seed)
    hours = [maker.hour(BEGIN_S + number * HOUR_S) for number in range(-(-samples // HOUR_S))]
    values = np.concatenate(hours)[:samples]
    whole = np.concatenate([values, values[:, :1]], axis=1)
    is_valid = np.isfinite(whole)
    return Series(
        workload=identity,
        resolution_s=300,
        start_s=BEGIN_S,
        values=np.where(is_valid, whole, 0.0),
        is_valid=is_valid,
    )


def _plain_bytes_per_sample(recorded: dict[WorkloadId, Float64]) -> float:
    """Return what the recording itself takes, without anything made from it."""
    size = sum(len(codec.encode(codec.quantise(one), place=b"")) for one in recorded.values())
    return size / sum(int(np.isfinite(one).sum()) for one in recorded.values())


def _nothing(_line: str) -> None:
    return
