# SPDX-License-Identifier: Apache-2.0
"""Forecasters to be compared with: simple ones, and those that others recommend memory by. Pure.

Each takes a history and returns quantiles, as `backtest.forecast` does: `path` of shape (levels, steps), `peak` of
shape (levels,), or of a recommender one value for all.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.measures import PEAK_STEPS

Forecaster: TypeAlias = Callable[..., Mapping[str, Any]]

DAY_S = 86400
WEEK_DAYS = 7
# Of the Vertical Pod Autoscaler: a decaying histogram (half-life of a day), its percentile, and a margin.
DECAY_HALF_LIFE_S = 86400.0
MARGIN = 1.15


def last_value(history: Float64, horizon: int, levels: tuple[float, ...], *, interval_s: float, **_: Any) -> Any:
    """Expect the last value, and changes as they were in the last week."""
    recent = history[-(WEEK_DAYS * int(DAY_S / interval_s) + horizon) :]
    if len(recent) <= horizon:
        return _flat(history, horizon, levels)
    futures = sliding_window_view(recent[1:], horizon)
    changes = futures - recent[: len(futures), np.newaxis]
    path = history[-1] + np.quantile(changes, levels, axis=0)
    path[0] = history[-1]
    return {"path": path, "peak": history[-1] + np.quantile(changes[:, :PEAK_STEPS].max(axis=1), levels)}


def seasonal_naive(history: Float64, horizon: int, levels: tuple[float, ...], *, interval_s: float, **_: Any) -> Any:
    """Expect what was at this time yesterday, with the errors that this made in the last week."""
    day = int(DAY_S / interval_s)
    if len(history) < 2 * day or day < horizon:
        return last_value(history, horizon, levels, interval_s=interval_s)
    expected = history[-day:][:horizon]
    recent = history[-(WEEK_DAYS + 1) * day :]
    errors = recent[day:] - recent[:-day]
    path = expected + np.quantile(errors, levels)[:, np.newaxis]
    path[0] = expected
    peaks = sliding_window_view(recent, PEAK_STEPS).max(axis=1)
    return {
        "path": path,
        "peak": expected[:PEAK_STEPS].max() + np.quantile(peaks[day:] - peaks[:-day], levels),
    }


def moving_maximum(history: Float64, horizon: int, levels: tuple[float, ...], *, interval_s: float, **_: Any) -> Any:
    """Recommend the most of the last day."""
    return _recommended(float(history[-int(DAY_S / interval_s) :].max()), horizon, levels)


def decaying_histogram(
    history: Float64, horizon: int, levels: tuple[float, ...], *, interval_s: float, **_: Any
) -> Any:
    """Recommend the 95th percentile of a decaying histogram and 15 % (Autopilot, Rzadca et al., EuroSys 2020)."""
    recent = history[-8 * int(DAY_S / interval_s) :]
    age_s: Float64 = np.arange(len(recent), dtype=np.float64)[::-1] * interval_s
    return _recommended(_weighted_quantile(recent, age_s, 0.95) * MARGIN, horizon, levels)


def daily_peaks(history: Float64, horizon: int, levels: tuple[float, ...], *, interval_s: float, **_: Any) -> Any:
    """Recommend the 90th percentile of a decaying histogram of daily peaks and 15 % (Kubernetes' VPA)."""
    day = int(DAY_S / interval_s)
    days = min(8, len(history) // day)
    if not days:
        return _recommended(float(history.max()) * MARGIN, horizon, levels)
    peaks = history[-days * day :].reshape(days, day).max(axis=1)
    age_s: Float64 = np.arange(days, dtype=np.float64)[::-1] * DAY_S
    return _recommended(_weighted_quantile(peaks, age_s, 0.9) * MARGIN, horizon, levels)


BASELINES: dict[str, Forecaster] = {
    "last value": last_value,
    "seasonal naive": seasonal_naive,
    "moving maximum": moving_maximum,
    "decaying histogram p95 + 15 %": decaying_histogram,
    "VPA (daily peaks)": daily_peaks,
}


def _weighted_quantile(values: Float64, age_s: Float64, level: float) -> float:
    weights = 0.5 ** (age_s / DECAY_HALF_LIFE_S)
    order = np.argsort(values)
    sums: Float64 = np.cumsum(weights[order])
    place = int((sums < level * sums[-1]).sum())
    return float(values[order][min(place, len(values) - 1)])


def _recommended(value: float, horizon: int, levels: tuple[float, ...]) -> dict[str, Any]:
    """Return one value for everything; a recommender has no median, so its spread begins at nothing."""
    return {
        "path": np.full((len(levels), horizon), value),
        "peak": np.array([0.0, *[value] * (len(levels) - 1)]),
        "recommends": True,
    }


def _flat(history: Float64, horizon: int, levels: tuple[float, ...]) -> dict[str, Any]:
    return {"path": np.full((len(levels), horizon), history[-1]), "peak": np.full(len(levels), history.max())}
