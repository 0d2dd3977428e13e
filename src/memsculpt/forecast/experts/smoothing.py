# SPDX-License-Identifier: Apache-2.0
"""Exponential smoothing: the level alone, level and trend, and level with a trend that fades.

Simple smoothing (Brown, 1956), Holt's linear trend (1957) and Gardner and McKenzie's damped trend (1985), with fixed
parameters: the mixture picks among the three. With fixed parameters level and trend are linear in the past, so that
both are one product of the ring with weights that are computed once.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.forecast.protocol import Series

POINTS = 40  # with a level weight of 0.3 what came before weighs less than a millionth


class Smoothing:
    """The smoothed level and what is left of its trend, at its highest up to each horizon."""

    def __init__(self, name: str, *, level: float, trend: float = 0.0, damping: float = 1.0) -> None:
        """`level` and `trend` are the weights of what is new, `damping` what a step leaves of the trend."""
        self.name = name
        self._damping = damping
        self._weights = _weights(level, trend, damping)

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the highest of the smoothed path until each horizon, shape (n, n_horizons)."""
        window = series.ring_bytes[:, -POINTS:]
        level, trend = (window @ self._weights[-window.shape[1] :]).T
        steps = np.array(horizons_s) / series.grid_s
        damping = self._damping
        grown = steps if damping == 1.0 else damping * (1.0 - damping**steps) / (1.0 - damping)
        # A falling need has its peak now, at the level.
        path = level[:, np.newaxis] + np.maximum(trend, 0.0)[:, np.newaxis] * grown
        return np.maximum(path, 0.0)

    def is_confident(self, series: Series) -> Bool:
        """Never more than the others."""
        return np.zeros(len(series.need_bytes), np.bool_)


def _weights(level: float, trend: float, damping: float) -> Float64:
    """Return what each of the last POINTS points counts for level and trend, shape (POINTS, 2).

    Found by smoothing unit impulses; the series before the window is taken to have stood still.
    """
    impulses = np.eye(POINTS)
    levels, trends = impulses[:, 0].copy(), np.zeros(POINTS)
    for column in range(1, POINTS):
        before = levels
        levels = level * impulses[:, column] + (1.0 - level) * (levels + damping * trends)
        trends = trend * (levels - before) + (1.0 - trend) * damping * trends
    return np.stack((levels, trends), axis=1)
