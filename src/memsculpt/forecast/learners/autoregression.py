# SPDX-License-Identifier: Apache-2.0
"""Autoregression of the changes, by recursive least squares: ARI(4, 1) with a pull to the slow mean and with drivers.

The next change is a linear function of the last four, of how far the need is from its slow mean (what makes the series
come back), and of how processor use and input and output have just changed. The path is the recursion run ahead with
drivers at rest, the forecast its highest point.
"""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Float32, Float64, Int64
from memsculpt.forecast.learners import least_squares
from memsculpt.forecast.protocol import Kept, Series, Shape

LAGS = 4
FORGETTING = 0.995
STEPS_MOST = 20  # further ahead the changes have died away
BOUND = 6.0  # in usual changes: one surprise should not set the coefficients


class Autoregression:
    """The highest point of an autoregressive path."""

    name = "autoregression"
    note_width = 0

    def shapes(self, horizons: int) -> Mapping[str, Shape]:
        """Keep coefficients, inverse correlation, and the inputs of which the next change is the truth."""
        del horizons
        width = LAGS + 4
        return {
            "coefficients": Shape((width,)),
            "inverse": Shape((width, width), start=least_squares.begin(width), dtype=np.float64),
            "inputs": Shape((width,)),
            "drivers": Shape((2,)),
        }

    def advance(self, own: Kept, at: Int64, series: Series) -> None:
        """Learn from the newest change, and note what the next one will follow on."""
        changes = _changes(series)
        before = own["inputs"][at]
        # An input of zeros teaches nothing: so it stays before the first tick.
        gains, own["inverse"][at] = least_squares.gain(own["inverse"][at], before, FORGETTING)
        own["coefficients"][at] = least_squares.learn(own["coefficients"][at], gains, before, changes[:, -1])
        drivers = series.drivers[:, :2].astype(np.float32)
        moved = drivers - own["drivers"][at]
        own["drivers"][at] = drivers
        own["inputs"][at] = np.concatenate((changes[:, ::-1], _away(series)[:, np.newaxis], moved, _ones(at)), axis=1)

    def expect(self, own: Kept, at: Int64, series: Series, horizons_s: tuple[float, ...], levels: Float64) -> Float64:
        """Return the path's peak until each horizon, shape (n, n_horizons, 1)."""
        del levels
        coefficients, inputs = own["coefficients"][at], own["inputs"][at].copy()
        steps = np.maximum(np.ceil(np.array(horizons_s) / series.step_s), 1).astype(int)
        ahead = min(int(steps.max()), STEPS_MOST)
        risen = np.zeros(len(at), np.float32)
        highest = np.zeros((len(at), ahead), np.float32)
        for step in range(ahead):
            change = _bounded(np.einsum("nw,nw->n", coefficients, inputs))
            risen = risen + change
            highest[:, step] = risen
            inputs[:, 1:LAGS] = inputs[:, : LAGS - 1]
            inputs[:, 0] = change
            inputs[:, LAGS] = _bounded(inputs[:, LAGS] - change / series.away_ratio)
            inputs[:, LAGS + 1 : LAGS + 3] = 0.0
        peaks = np.maximum.accumulate(highest, axis=1)[:, np.minimum(steps, ahead) - 1]
        expected = series.need_bytes[:, np.newaxis] + peaks * series.change_bytes[:, np.newaxis]
        return np.clip(expected, 0.0, _most(series))[:, :, np.newaxis]

    def note(self, own: Kept, at: Int64) -> Float32:
        """Nothing: the truth is the very next point."""
        del own
        return np.zeros((len(at), 0), np.float32)

    def settle(self, own: Kept, at: Int64, horizon: int, noted: Float32, risen: Float32) -> None:
        """Nothing: what comes over a horizon is not what it learns from."""
        del own, at, horizon, noted, risen


def _bounded(values: Float32 | Float64) -> Float32 | Float64:
    """Return np.clip(values, -BOUND, BOUND), which takes four times as long and is asked for forty times a tick."""
    return np.minimum(np.maximum(values, -BOUND), BOUND)


def _changes(series: Series) -> Float32:
    """Return the last LAGS changes, oldest first, in usual changes, shape (n, LAGS)."""
    stride = max(1, round(series.step_s / series.grid_s))
    back = series.ring_bytes.shape[1] - 1 - stride * np.arange(LAGS, -1, -1)
    points = series.ring_bytes[:, np.maximum(back, 0)]
    changes = np.diff(points, axis=1) / series.change_bytes[:, np.newaxis]
    return np.clip(changes, -BOUND, BOUND).astype(np.float32)


def _away(series: Series) -> Float32:
    away = (series.mean_bytes - series.need_bytes) / (series.away_ratio * series.change_bytes)
    return np.clip(away, -BOUND, BOUND).astype(np.float32)


def _ones(at: Int64) -> Float32:
    return np.full((len(at), 1), 0.3, np.float32)


def _most(series: Series) -> Float64:
    """Return the bound on what is expected: a recursion that has gone wrong must not ask for the whole machine."""
    return (2.0 * np.maximum(series.ring_bytes.max(axis=1), 1.0))[:, np.newaxis]
