# SPDX-License-Identifier: Apache-2.0
"""Print the figures of docs/methods/forecasting.md: `python -m tests.forecast.figures`. Nothing is asserted here."""

import platform
import time

import numpy as np

from memsculpt.forecast import Forecaster, step
from tests.forecast.test_engine import JUDGED_FROM, OF_EACH, SERIES, TICKS, long_run
from tests.forecast.test_rhythm import NEED, expected, jittered, judged
from tests.forecast.world import LEVELS, SETTINGS, phases, profiles


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


if __name__ == "__main__":
    print_coverage()
    print_rhythms()
    print_costs()
