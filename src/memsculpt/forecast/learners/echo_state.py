# SPDX-License-Identifier: Apache-2.0
"""An echo-state network: a fixed recurrent network of which only the output is learnt, online.

Echo states: Jaeger, 2001. The network is a ring in which each unit feeds the next, with input signs from the digits of
pi: nothing in it is drawn at random, and it forecasts as well as random ones do (Rodan and Tino, "Minimum Complexity
Echo State Network", 2011). Half of the units leak slowly, so that it has a memory of seconds and one of a minute. The
output, one for each horizon, is learnt on how much the peak rose above the need (recursive least squares).
"""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Float32, Float64, Int64
from memsculpt.forecast.learners import least_squares
from memsculpt.forecast.protocol import Kept, Series, Shape

UNITS = 16
RING_WEIGHT = 0.9
INPUT_WEIGHT = 0.5
LEAKS = np.where(np.arange(UNITS) % 2 == 0, 0.5, 0.06).astype(np.float32)
FORGETTING = 0.998
BOUND = 6.0
INPUTS = 6
_PI = "3141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117067982148086513"
SIGNS = (
    np.array([1.0 if int(digit) >= 5 else -1.0 for digit in _PI[: UNITS * INPUTS]], np.float32).reshape(INPUTS, UNITS)
    * INPUT_WEIGHT
)
WIDTH = UNITS + INPUTS + 1


class EchoState:
    """The rise that a recurrent network's state has been followed by."""

    name = "echo-state network"
    note_width = 2 * WIDTH

    def shapes(self, horizons: int) -> Mapping[str, Shape]:
        """Keep the units' state, the inputs, how much their truth will count, and coefficients by horizon."""
        return {
            "state": Shape((UNITS,)),
            "inputs": Shape((INPUTS,)),
            "gain": Shape((WIDTH,)),
            "inverse": Shape((WIDTH, WIDTH), start=least_squares.begin(WIDTH), dtype=np.float64),
            "coefficients": Shape((horizons, WIDTH)),
        }

    def advance(self, own: Kept, at: Int64, series: Series) -> None:
        """Let the network hear the newest point."""
        inputs = _inputs(series)
        state = own["state"][at]
        heard = np.tanh(inputs @ SIGNS + RING_WEIGHT * np.roll(state, 1, axis=1))
        own["state"][at] = (1.0 - LEAKS) * state + LEAKS * heard
        own["inputs"][at] = inputs
        own["gain"][at], own["inverse"][at] = least_squares.gain(own["inverse"][at], _seen(own, at), FORGETTING)

    def expect(self, own: Kept, at: Int64, series: Series, horizons_s: tuple[float, ...], levels: Float64) -> Float64:
        """Return need and expected rise until each horizon, shape (n, n_horizons, 1)."""
        del levels, horizons_s
        risen = np.einsum("nhw,nw->nh", own["coefficients"][at], _seen(own, at))
        # A peak until a longer horizon is no lower.
        expected = series.need_bytes[:, np.newaxis] + np.clip(risen, -BOUND, BOUND) * series.rise_bytes
        most = 2.0 * series.ring_bytes.max(axis=1)
        expected = np.clip(np.maximum.accumulate(expected, axis=1), 0.0, most[:, np.newaxis])
        return expected[:, :, np.newaxis]

    def note(self, own: Kept, at: Int64) -> Float32:
        """Return what the output sees, and how much its truth will count, shape (n, 2 * WIDTH)."""
        return np.concatenate((_seen(own, at), own["gain"][at]), axis=1)

    def settle(self, own: Kept, at: Int64, horizon: int, noted: Float32, risen: Float32) -> None:
        """Learn what came after what was noted; `risen` is in usual rises, shape (n,)."""
        own["coefficients"][at, horizon] = least_squares.learn(
            own["coefficients"][at, horizon], noted[:, WIDTH:], noted[:, :WIDTH], np.clip(risen, -BOUND, BOUND)
        )


def _seen(own: Kept, at: Int64) -> Float32:
    """Return state, inputs and a constant, shape (n, WIDTH)."""
    return np.concatenate((own["state"][at], own["inputs"][at], np.full((len(at), 1), 0.3, np.float32)), axis=1)


def _inputs(series: Series) -> Float32:
    """Return the change, the distance from the slow mean, and what drives it, shape (n, INPUTS)."""
    change = series.ring_bytes[:, -1] - series.ring_bytes[:, -1 - max(1, round(series.step_s / series.grid_s))]
    change = np.clip(change / series.change_bytes, -BOUND, BOUND) / 3.0
    away = np.clip((series.need_bytes - series.mean_bytes) / (series.away_ratio * series.change_bytes), -BOUND, BOUND)
    grows = np.clip(series.growth_bytes_per_s * series.grid_s / series.change_bytes, 0.0, BOUND) / 3.0
    return np.column_stack((change, away / 3.0, grows, series.drivers)).astype(np.float32)
