# SPDX-License-Identifier: Apache-2.0
"""Seasonal naive: what came one period ago comes again. The period is found, never assumed.

Two kinds of rhythm are told apart. Workloads that *pause* (analytic jobs, timers) are known by the times
at which their phases began: the next begins a period after the last one, and until then nothing is needed,
however long the last phase took. For the others the period is the strongest one in the ring's
autocorrelation, and the peak is looked up one period back, with a margin on both sides for jitter.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.forecast.protocol import Series

# Gaps that differ by more than this share of the period are no rhythm.
REGULAR_RATIO = 0.25
# An early phase costs more than room held in vain for a moment: expect it this much before its time.
EARLY_S = 0.6
LATE_S = 1.5
GAPS_USED = 5


class SeasonalNaive:
    """The peak of one period ago."""

    name = "seasonal naive"

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the peak that the rhythm predicts, the present need where there is none."""
        now = np.repeat(series.need_bytes[:, np.newaxis], len(horizons_s), axis=1)
        period_s, jitter_s = rhythm(series)
        has_phases = np.isfinite(period_s)
        result = now.copy()
        if has_phases.any():  # on most hosts nothing pauses, and this is a third of what the expert takes
            result = np.where(has_phases[:, np.newaxis], _by_phases(series, horizons_s, period_s, jitter_s), now)
        by_ring = np.isfinite(series.season_s) & ~has_phases
        if by_ring.any():
            result[by_ring] = _by_ring(series, horizons_s, by_ring)
        return np.maximum(result, now)

    def is_confident(self, series: Series) -> Bool:
        """Where a rhythm was found."""
        period_s, _ = rhythm(series)
        return np.isfinite(period_s) | np.isfinite(series.season_s)


def rhythm(series: Series) -> tuple[Float64, Float64]:
    """Return the period of each workload's phases and its jitter, seconds, shape (n,); nan for no rhythm.

    The period is the median of the last gaps, so that one late phase does not move it; two phases are
    taken for a rhythm until a third says otherwise.
    """
    if not np.isfinite(series.onset_s[:, -2:]).all(axis=1).any():  # a gap has two ends
        return np.full(len(series.onset_s), np.nan), np.zeros(len(series.onset_s))
    gaps = np.diff(series.onset_s, axis=1)[:, -GAPS_USED:]
    period = _median_of_known(gaps)
    jitter = _median_of_known(np.abs(gaps - period[:, np.newaxis]))
    is_regular = jitter <= REGULAR_RATIO * period
    # A rhythm that has failed to come twice is over.
    last = series.onset_s[:, -1]
    is_regular &= series.now_s - last <= 3.0 * period
    return np.where(is_regular, period, np.nan), np.where(np.isfinite(jitter), jitter, 0.0)


def _median_of_known(values: Float64) -> Float64:
    """Return each row's median without its nan; numpy's own nanmedian costs a millisecond and numpy.ma."""
    count = np.isfinite(values).sum(axis=1)
    in_order = np.sort(values, axis=1)  # nan last
    rows = np.arange(len(values))
    low = in_order[rows, np.maximum(count - 1, 0) // 2]
    high = in_order[rows, np.maximum(count, 1) // 2 if values.shape[1] > 1 else np.zeros_like(count)]
    return np.where(count > 0, (low + np.where(count % 2 == 0, high, low)) / 2.0, np.nan)


def _by_phases(series: Series, horizons_s: tuple[float, ...], period_s: Float64, jitter_s: Float64) -> Float64:
    peak = series.phase_peaks_bytes[:, -3:].max(
        axis=1, initial=0.0, where=np.isfinite(series.phase_peaks_bytes[:, -3:])
    )
    last_s = series.onset_s[:, -1]
    early_s = np.minimum(EARLY_S + jitter_s, 0.2 * period_s)
    late_s = np.minimum(LATE_S + 2.0 * jitter_s, 0.3 * period_s)
    # The first multiple of the period whose lateness has not yet passed.
    ahead = np.maximum(np.ceil((series.now_s - last_s - late_s) / period_s), 1.0)
    next_s = last_s + ahead * period_s
    until_s = series.now_s + np.array(horizons_s)
    comes = until_s >= (next_s - early_s)[:, np.newaxis]
    expected = np.where(comes, peak[:, np.newaxis], 0.0)
    # A phase that has just begun (a data set coming back from swap) will need what the last ones did.
    in_phase = series.is_active & (series.now_s - last_s < 2.0)
    return np.where(in_phase[:, np.newaxis], np.maximum(expected, peak[:, np.newaxis]), expected)


def _by_ring(series: Series, horizons_s: tuple[float, ...], rows: Bool) -> Float64:
    ring, grid_s = series.ring_bytes[rows], series.grid_s
    length = ring.shape[1]
    result = np.empty((len(ring), len(horizons_s)))
    back = np.round(series.season_s[rows] / grid_s).astype(np.int64)
    margin = np.maximum(1, back // 20)
    for column, horizon_s in enumerate(horizons_s):
        ahead = min(int(np.ceil(horizon_s / grid_s)), length)
        offsets = np.arange(-int(margin.max()), ahead + int(margin.max()) + 1)
        # A horizon longer than the period sees all of it.
        place = length - 1 - back[:, np.newaxis] + offsets
        inside = (offsets >= -margin[:, np.newaxis]) & (offsets <= ahead + margin[:, np.newaxis])
        inside &= (place >= 0) & (place < length)
        looked = np.take_along_axis(ring, np.clip(place, 0, length - 1), axis=1)
        result[:, column] = np.where(inside, looked, 0.0).max(axis=1)
    return result
