# SPDX-License-Identifier: Apache-2.0
"""Forecasts from moments of a recorded series, each from what was known then. Pure but for its clock.

The moments lie in the last part of a series. A forecaster sees at most the 28 days before, and nothing after.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.history import MOST_POINTS
from memsculpt.forecast.measures import LEVELS, PEAK_STEPS, STEPS, Windows, origins
from memsculpt.forecast.recorded import RecordedSeries

Forecaster: TypeAlias = Callable[..., Mapping[str, Any]]

WEEK_POINTS = 2016
LONG_POINTS = 5760  # 20 days of 5 minutes; in a series that long the last 30 % are forecast, else the last half


def roll(
    number: int,
    one: RecordedSeries,
    forecasters: Mapping[str, Forecaster],
    *,
    interval_s: float,
    count: int,
    clock: Callable[[], float],
) -> dict[str, Windows]:
    """Return, by forecaster, up to `count` windows of a series; none where too little of it is known."""
    length = len(one.values)
    moments = origins(one.is_known, int(length * (0.7 if length >= LONG_POINTS else 0.5)), count).tolist()
    if not moments:
        return {}
    told: dict[str, list[tuple[Float64, Float64, float]]] = {name: [] for name in forecasters}
    for at in moments:
        begin = max(0, at + 1 - MOST_POINTS)
        capacity = float(one.capacity[at])
        for name, forecaster in forecasters.items():
            history = one.values[begin : at + 1].copy()
            covariates = {key: column[begin : at + 1].copy() for key, column in one.covariates.items()}
            began_s = clock()
            found = forecaster(
                history,
                STEPS,
                LEVELS,
                interval_s=interval_s,
                capacity=capacity,
                covariates=covariates,
                steps=one.steps[begin : at + 1],
            )
            took_s = clock() - began_s
            path = np.clip(np.asarray(found["path"], np.float64), 0.0, capacity)
            told[name].append((path, np.asarray(found["peak"], np.float64), took_s))
    scales = [np.abs(np.diff(one.values[max(0, at + 1 - WEEK_POINTS) : at + 1])).mean() for at in moments]
    return {
        name: Windows(
            series=np.full(len(moments), number, np.int64),
            truth=np.array([one.values[at + 1 : at + 1 + STEPS] for at in moments]),
            path=np.array([path for path, _, _ in rows]),
            peak=np.array([peak for _, peak, _ in rows]),
            capacity=one.capacity[moments].copy(),
            scale=np.array(scales),
            duration_s=np.array([took_s for _, _, took_s in rows]),
        )
        for name, rows in told.items()
    }


__all__ = ["PEAK_STEPS", "Forecaster", "roll"]
