# SPDX-License-Identifier: Apache-2.0
"""A workload's regular history, made whole: no gaps, within its bounds, long enough for every rule. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64

STEPS = 36
PEAK_STEPS = 12
LEVELS = (0.5, 0.9, 0.99)
DAY_S = 86_400.0

# A history that is shorter is filled up at its beginning with its first value, as the engine's rings are.
LEAST_POINTS = 160
MOST_POINTS = 8064  # 28 days of 5 minutes
MONTH, WEEK, DAY, QUARTER_DAY, HOUR = 8064, 2016, 288, 72, 12  # in points of 5 minutes; shorter grids: as many points
COVARIATES_MOST = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """A regular series up to now, and what was measured beside it; shape (n,), oldest first, n >= 1."""

    values: Float64
    covariates: Mapping[str, Float64]
    step: int  # number of the last point on the grid, for the time of day
    interval_s: float
    capacity: float


def cleaned(history: History) -> History:
    """Return the history without gaps, within [0, capacity], and of a length that every rule can work on.

    Gaps take the value before them, at the beginning the first known; a history without any value is 0 throughout. A
    capacity that is no number above 0 is taken to be the largest value.
    """
    values = np.asarray(history.values, np.float64)[-MOST_POINTS:]
    values = _filled(np.where(np.isfinite(values), np.maximum(values, 0.0), np.nan))
    capacity = history.capacity
    if not np.isfinite(capacity) or capacity <= 0.0:
        capacity = max(float(values.max()), 1e-9)
    count = len(values)
    missing = max(LEAST_POINTS - count, 0)
    covariates = {
        name: np.pad(_filled(np.where(np.isfinite(column), column, np.nan)), (missing, 0), mode="edge")
        for name, column in _aligned(history.covariates, count).items()
    }
    return History(
        values=np.minimum(np.pad(values, (missing, 0), mode="edge"), capacity),
        covariates=covariates,
        step=history.step,
        interval_s=history.interval_s,
        capacity=capacity,
    )


def _filled(values: Float64) -> Float64:
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(max(len(values), 1))
    place = np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)
    return values[known[place]]


def _aligned(covariates: Mapping[str, Float64], count: int) -> dict[str, Float64]:
    """Return columns of `count` points: the last ones, with nothing known before a shorter one begins."""
    found: dict[str, Float64] = {}
    for name, column in covariates.items():
        tail = np.asarray(column, np.float64)[-count:]
        found[name] = np.concatenate([np.full(count - len(tail), np.nan), tail])
    return found
