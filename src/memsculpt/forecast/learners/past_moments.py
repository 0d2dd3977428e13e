# SPDX-License-Identifier: Apache-2.0
"""Nearest past moments: what followed when the workload last looked as it does now.

Conditional quantiles by nearest neighbours (Stone, "Consistent nonparametric regression", 1977): of the moments kept,
those nearest to now in distance from the slow mean, last change, recent high and processor use, and the quantiles of
how much the peak then rose. The one expert that says quantiles by itself, of whatever shape they are.
"""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Float32, Float64, Int64
from memsculpt.forecast.protocol import Kept, Series, Shape

MOMENTS = 96
# One tick in so many is kept: 96 moments are six minutes of seconds. Irrational, so that no rhythm falls between them.
KEPT_RATIO = 2.0 - np.sqrt(3.0)
NEAREST = 14
FEATURES = 4
RECENT = 12
FAR = np.float32(1e9)
RISEN_MOST = 50.0  # in usual rises


class PastMoments:
    """Quantiles of the rise after the moments most like now."""

    name = "past moments"
    note_width = 1

    def shapes(self, horizons: int) -> Mapping[str, Shape]:
        """Keep a ring of moments, what followed each, and how many ticks were seen and moments kept so far."""
        return {
            "features": Shape((MOMENTS, FEATURES)),
            "risen": Shape((MOMENTS, horizons), start=np.full((MOMENTS, horizons), np.nan, np.float32)),
            "now": Shape((FEATURES,)),
            "clock": Shape((), dtype=np.float64),
            "count": Shape((), dtype=np.float64),
        }

    def advance(self, own: Kept, at: Int64, series: Series) -> None:
        """Describe this moment, and put it into the ring if it is time for one."""
        now = _features(series)
        own["now"][at] = now
        own["clock"][at] += 1.0
        is_due = own["clock"][at] * KEPT_RATIO % 1.0 < KEPT_RATIO
        rows = at[is_due]
        place = _place(own["count"][rows])
        own["count"][rows] += 1.0
        own["features"][rows, place] = now[is_due]
        own["risen"][rows, place] = np.nan

    def expect(self, own: Kept, at: Int64, series: Series, horizons_s: tuple[float, ...], levels: Float64) -> Float64:
        """Return quantiles of need and rise, shape (n, n_horizons, n_levels); the present need before there are any."""
        kept, risen = own["features"][at], own["risen"][at]
        distance = np.abs(kept - own["now"][at][:, np.newaxis, :]).sum(axis=2)
        distance[np.isnan(risen).any(axis=2)] = FAR
        nearest = np.argpartition(distance, NEAREST, axis=1)[:, :NEAREST]
        found = np.take_along_axis(risen, nearest[:, :, np.newaxis], axis=1)
        is_enough = np.take_along_axis(distance, nearest, axis=1).max(axis=1) < FAR
        found = np.sort(np.where(is_enough[:, np.newaxis, np.newaxis], found, 0.0), axis=1)
        # As the order statistics of NEAREST draws estimate them (Hyndman and Fan's type 6, bounded by the extremes).
        place = np.clip(levels * (NEAREST + 1) - 1.0, 0.0, NEAREST - 1.0)
        low = place.astype(np.int64)
        high = np.minimum(low + 1, NEAREST - 1)
        share = (place - low)[np.newaxis, :, np.newaxis]
        said = (found[:, low] * (1.0 - share) + found[:, high] * share).transpose(0, 2, 1)
        said = np.maximum.accumulate(said * series.rise_bytes[:, :, np.newaxis], axis=1)
        return np.maximum(series.need_bytes[:, np.newaxis, np.newaxis] + said, 0.0)

    def note(self, own: Kept, at: Int64) -> Float32:
        """Return which moment is the newest, shape (n, 1): its number modulo the ring's size squared."""
        return (own["count"][at] % MOMENTS**2).astype(np.float32)[:, np.newaxis]

    def settle(self, own: Kept, at: Int64, horizon: int, noted: Float32, risen: Float32) -> None:
        """Write what followed beside its moment, if that is still in the ring.

        Of several forecasts since the moment the first is the one that tells what followed it.
        """
        number = noted[:, 0].astype(np.float64)
        place = _place(number - 1.0)
        age = (own["count"][at] - number) % MOMENTS**2
        is_kept = (own["count"][at] > 0.0) & (age < MOMENTS) & np.isnan(own["risen"][at, place, horizon])
        own["risen"][at[is_kept], place[is_kept], horizon] = np.clip(risen[is_kept], -RISEN_MOST, RISEN_MOST)


def _place(number: Float64) -> Int64:
    return np.asarray(number % MOMENTS, np.int64)


def _features(series: Series) -> Float32:
    stride = max(1, round(series.step_s / series.grid_s))
    ring, need = series.ring_bytes, series.need_bytes
    spread = series.away_ratio * series.change_bytes
    away = (need - series.mean_bytes) / spread
    change = (need - ring[:, -1 - stride]) / spread
    high = (ring[:, -RECENT * stride :].max(axis=1) - need) / spread
    found = np.column_stack((away, change, high, 2.0 * series.drivers[:, 0]))
    return np.clip(found, -8.0, 8.0).astype(np.float32)
