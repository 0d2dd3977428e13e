# SPDX-License-Identifier: Apache-2.0
"""Drift: the need grows on as it has grown on average, and the workload goes on allocating as it does now.

The line from the first to the last point of a window (Hyndman and Athanasopoulos, Forecasting: Principles
and Practice, section 5.2), here for a peak: a falling need has its peak now. Building a data set is seen
at once by what is being allocated, before any line through the past shows it.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.forecast.protocol import Series

WINDOW_POINTS = 20


class Drift:
    """The present need plus growth times horizon."""

    name = "drift"

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return need + max(mean slope of the window, allocation now) x horizon, shape (n, n_horizons)."""
        window = series.ring_bytes[:, -WINDOW_POINTS:]
        points = np.clip(series.known_count, 2, window.shape[1]).astype(np.int64)
        first = np.take_along_axis(window, (window.shape[1] - points)[:, np.newaxis], axis=1)[:, 0]
        slope = (window[:, -1] - first) / ((points - 1) * series.grid_s)
        # A workload that wakes has its old need back at once: that step is no slope.
        is_smooth = np.abs(np.diff(window, axis=1)).max(axis=1) <= 0.3 * window.max(axis=1)
        slope = np.where(is_smooth & series.is_active, np.maximum(slope, 0.0), 0.0)
        # What is allocated now is trusted for a few seconds, not for a minute.
        ahead_s = np.array(horizons_s)
        burst = series.growth_bytes_per_s[:, np.newaxis] * np.minimum(ahead_s, 5.0)
        return series.need_bytes[:, np.newaxis] + np.maximum(slope[:, np.newaxis] * ahead_s, burst)

    def is_confident(self, series: Series) -> Bool:
        """While much is being allocated: no other expert sees that."""
        return series.growth_bytes_per_s > 0.02 * np.maximum(series.need_bytes, 1.0)
