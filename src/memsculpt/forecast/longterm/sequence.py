# SPDX-License-Identifier: Apache-2.0
"""A history's last points as a recurrent network reads them: the last hours finely, the last day and a half coarsely.

Like a moment's features (moment.py) they have no scale: logarithms of ratios to the median peak, and ranks within the
history. Each point also says what was a day and a week before it, and what followed there. Pure.
"""

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.forecast.longterm.history import COVARIATES_MOST, DAY, DAY_S, HOUR, PEAK_STEPS, QUARTER_DAY, History
from memsculpt.forecast.longterm.moment import Moment

Float32 = npt.NDArray[np.float32]

FINE_POINTS, COARSE_POINTS, COARSE_STEP = 60, 60, 6
POINTS = FINE_POINTS + COARSE_POINTS
CHANNELS = 18 + COVARIATES_MOST
BOUND = 6.0
RANKED_STEP = 4  # ranks are among every fourth point: sorting all of 8,064 takes longer than everything else here

# How many points ago, oldest first.
AGO: Int64 = np.concatenate(
    (FINE_POINTS + COARSE_STEP * np.arange(COARSE_POINTS)[::-1], np.arange(FINE_POINTS)[::-1])
).astype(np.int64)
_REACH = int(AGO[0]) + DAY + HOUR  # so many points also give the first of them its running figures


def sequence_of(history: History, moment: Moment) -> Float32:
    """Return what a recurrent network reads of a cleaned history, shape (POINTS, CHANNELS), oldest first. Some 2 ms.

    `moment` is of the same history. Points before its beginning look like its first.
    """
    values = history.values
    softened = moment.reference + moment.least
    recent = _last(values, _REACH)
    at = _REACH - 1 - AGO

    def ratio(sizes: Float64) -> Float64:
        return np.log((np.maximum(sizes, 0.0) + moment.least) / softened)

    day = max(round(DAY_S / history.interval_s), 1)
    yesterday, after_yesterday = _before(values, day, moment.reference)
    _, after_last_week = _before(values, 7 * day, moment.reference)
    now = recent[at]
    channels = [
        ratio(now),
        _rank(values, now),
        ratio(_mean(recent, HOUR)[at]),
        ratio(_highest(recent, HOUR)[at]),
        ratio(_mean(recent, QUARTER_DAY)[at]),
        ratio(_highest(recent, QUARTER_DAY)[at]),
        ratio(_highest(recent, DAY)[at]),
        ratio(yesterday),
        ratio(after_yesterday),
        ratio(after_last_week),
        np.arcsinh(np.diff(recent, prepend=recent[0])[at] / moment.scale),
        0.5 * np.arcsinh((now - recent[-1]) / moment.scale),
    ]
    beside = list(history.covariates.values())[:COVARIATES_MOST]
    channels += [_rank(column, _last(column, _REACH)[at]) for column in beside]
    channels += [np.zeros(POINTS)] * (COVARIATES_MOST - len(beside))
    steps = history.step - AGO
    for period in (day, 7 * day):
        turn = 2.0 * np.pi * (steps % period) / period
        channels += [np.sin(turn), np.cos(turn)]
    channels += [(AGO < FINE_POINTS).astype(np.float64), np.full(POINTS, 0.3 * np.log(softened / history.capacity))]
    return np.clip(np.stack(channels, axis=1), -BOUND, BOUND).astype(np.float32)


def _last(values: Float64, points: int) -> Float64:
    """Return the last so many points; before the first one it was as there."""
    return np.pad(values[-points:], (max(points - len(values), 0), 0), mode="edge")


def _mean(values: Float64, points: int) -> Float64:
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - points, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _highest(values: Float64, points: int) -> Float64:
    return sliding_window_view(np.pad(values, (points - 1, 0), mode="edge"), points).max(axis=1)


def _rank(values: Float64, sizes: Float64) -> Float64:
    """Return where the sizes lie among the values, from -1 to 1; the middle among equals."""
    ordered = np.sort(values[::RANKED_STEP])
    both = np.searchsorted(ordered, sizes, "left") + np.searchsorted(ordered, sizes, "right")
    return both / len(ordered) - 1.0


def _before(values: Float64, points: int, unknown: float) -> tuple[Float64, Float64]:
    """Return the value so many points before each point read, and the highest of the next hour there."""
    places = len(values) - 1 - AGO - points
    is_known, held = places >= 0, np.maximum(places, 0)
    following = np.minimum(held[:, np.newaxis] + np.arange(1, PEAK_STEPS + 1), len(values) - 1)
    return (
        np.where(is_known, values[held], unknown),
        np.where(is_known, values[following].max(axis=1), unknown),
    )
