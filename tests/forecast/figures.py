# SPDX-License-Identifier: Apache-2.0
"""Print the figures of docs/methods/forecasting.md: `python -m tests.forecast.figures`. Nothing is asserted here.

With --vms and --containers (tables as `memsculpt backtest` takes them) recorded series are fed as seconds.
"""

import argparse
import platform
import time

import numpy as np

from memsculpt.domain.settings import MIB
from memsculpt.forecast import Forecaster, step
from memsculpt.forecast.mixture import pinball
from tests.forecast.test_engine import JUDGED_FROM, OF_EACH, SERIES, TICKS, long_run
from tests.forecast.test_rhythm import NEED, expected, jittered, judged
from tests.forecast.world import AT_90, AT_99, LEVELS, SETTINGS, phases, profiles, run


def print_coverage() -> None:
    need, quantiles = long_run()
    peak = np.array([need[tick + 1 : tick + 4].max(axis=0) for tick in range(JUDGED_FROM, TICKS - 3)])
    held = (peak[:, :, np.newaxis] <= quantiles[JUDGED_FROM : TICKS - 3]).mean(axis=0)
    print(f"coverage over 3 s, {TICKS - 3 - JUDGED_FROM} ticks, {OF_EACH} series each; levels {LEVELS}")
    for row, kind in enumerate(SERIES):
        print(f"  {kind:20}", held[row * OF_EACH : (row + 1) * OF_EACH].mean(axis=0).round(3))


def print_rhythms() -> None:
    print("0.9 quantile over 3 s as a share of the need; least near a phase, share of ticks below 25 % away from it")
    for period_s, duration_s in ((7.3, 1.2), (10.0, 1.1), (16.0, 3.0), (30.0, 3.0)):
        near, away = [], []
        for seed in range(4):
            onsets = jittered(period_s, phases_count=22, seed=seed)
            moments = phases(onsets, duration_s, until_s=20 * period_s)
            made = expected(moments)
            near += judged(moments, made, from_s=onsets[2])[0]
            away += judged(moments, made, from_s=onsets[4])[1]
        share = np.mean(np.array(away) < 0.25 * NEED)
        print(f"  period {period_s:4} s  near {min(near) / NEED:.2f}  away {share:.2f} of {len(away)} ticks")


def print_costs() -> None:
    chance = np.random.default_rng(1)
    print(f"one step, median of 40 and range; {platform.python_version()}, numpy {np.__version__}")
    for count in (10, 100, 1000):
        forecaster, taken_ms = Forecaster(), []
        for tick in range(45):
            seen = profiles(tick + 0.4, chance.uniform(1, 100, count))
            before_s = time.perf_counter()
            forecaster, _ = step(forecaster, seen, SETTINGS)
            taken_ms.append(1e3 * (time.perf_counter() - before_s))
        taken_ms = taken_ms[5:]
        print(f"  {count:5} workloads  {np.median(taken_ms):.2f} ms, {min(taken_ms):.2f} to {max(taken_ms):.2f}")


def recorded(path: str, value: str, scale: float, ticks: int, skip: int, every: int) -> np.ndarray:
    """Needs in MiB, shape (ticks, series): every so many of the series that vary; gaps hold the last value."""
    from pyarrow import parquet

    table = parquet.read_table(path, columns=["series_id", "step", value]).to_pydict()
    ids, values = np.array(table["series_id"]), np.array(table[value], np.float64)
    found = []
    for one in dict.fromkeys(table["series_id"]):
        need = scale * values[ids == one][skip : skip + ticks]
        if len(need) < ticks or np.isnan(need[0]) or np.isnan(need).mean() > 0.2:
            continue
        last = np.maximum.accumulate(np.where(np.isnan(need), 0, np.arange(ticks)))
        need = need[last]
        if need.std() > 0.01 * need.mean():
            found.append(need)
    return np.array(found[1::every]).T


def print_recorded(name: str, need: np.ndarray) -> None:
    growth = np.maximum(np.diff(need, axis=0, prepend=need[:1]), 0.0)
    made = run(profiles(0.4 + tick, need[tick], growth=growth[tick]) for tick in range(len(need)))
    print(f"{name}: {need.shape[1]} series, {len(need)} ticks; ticks before 300 are not judged")
    for column, horizon in enumerate(int(one) for one in SETTINGS.horizons_s):
        peak = np.lib.stride_tricks.sliding_window_view(need[1:], horizon, axis=0).max(axis=-1)[300:]
        said = np.array([one.quantiles_bytes[:, column] / MIB for one in made])[300 : 300 + len(peak)]
        usual = np.abs(peak - need[300 : 300 + len(peak)]).mean(axis=0) + 1e-3 * need.mean(axis=0)
        loss = pinball(said, peak, np.array(LEVELS)).mean(axis=(0, 2)) / usual
        held = (peak[:, :, np.newaxis] <= said).mean(axis=0)
        low, high = np.quantile(held[:, AT_90], (0.05, 0.95))
        print(
            f"  {horizon:3} s  loss {loss.mean():.4f}  held at 0.9: {held[:, AT_90].mean():.3f} "
            f"({low:.3f} to {high:.3f})  at 0.99: {held[:, AT_99].mean():.4f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--vms")
    parser.add_argument("--containers")
    asked = parser.parse_args()
    if asked.vms:
        print_recorded("virtual machines", recorded(asked.vms, "mem_used_mib", 1.0, 2200, 6000, 4))
    if asked.containers:
        print_recorded("containers", recorded(asked.containers, "mem_util", 1000.0, 1400, 0, 2))
    if not (asked.vms or asked.containers):
        print_coverage()
        print_rhythms()
        print_costs()
