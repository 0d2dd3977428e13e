# SPDX-License-Identifier: Apache-2.0
"""Damped exponential smoothing: level and trend, the trend fading with the horizon.

Holt's method with Gardner and McKenzie's damping (1985); fixed parameters, because a fit per workload and
tick belongs to the worker of the larger engine. Computed from the ring in closed form, so it has no state.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.forecast.protocol import Series

LEVEL = 0.5
TREND = 0.2
DAMPING = 0.9
POINTS = 40  # what came before weighs less than one part in a million


class Damped:
    """Level plus the damped sum of the trend, at its highest up to each horizon."""

    name = "damped smoothing"

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the highest of the smoothed path until each horizon, shape (n, n_horizons)."""
        window = series.ring_bytes[:, -POINTS:]
        level, trend = window[:, 0].copy(), np.zeros(len(window))
        for column in range(1, window.shape[1]):
            before = level
            level = LEVEL * window[:, column] + (1.0 - LEVEL) * (level + DAMPING * trend)
            trend = TREND * (level - before) + (1.0 - TREND) * DAMPING * trend
        steps = np.array(horizons_s) / series.grid_s
        grown = DAMPING * (1.0 - DAMPING**steps) / (1.0 - DAMPING)
        path = level[:, np.newaxis] + np.maximum(trend, 0.0)[:, np.newaxis] * grown
        return np.maximum(path, 0.0)

    def is_confident(self, series: Series) -> Bool:
        """Never more than the others."""
        return np.zeros(len(series.need_bytes), np.bool_)
