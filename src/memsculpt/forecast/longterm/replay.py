# SPDX-License-Identifier: Apache-2.0
"""How far to trust a forecast of this very workload: cheap forecasts of its past against what came. Pure.

For each of the last REPLAYED past moments, PEAK_STEPS apart and in the history's last quarter, the quantiles of the
peaks that followed the nearest moments known then are set beside the peak that came. Over them the logarithm of a
factor on the spread above the median is tracked: up by `STEP * 0.99` where the peak was above the 0.99 quantile so
stretched, down by `STEP * 0.01` where not (quantile tracking: Gibbs and Candes, "Adaptive Conformal Inference Under
Distribution Shift", 2021; Angelopoulos, Candes and Tibshirani, "Conformal PID Control for Time Series Prediction",
2023). The full forecast is stretched alike.

To it is added how large the scores were altogether (a peak's height above the median in spreads, as a mean with
COUNT_USUAL usual ones): a workload that never comes near its quantile is told from one that always nearly does, long
before there are misses to count.

Guarantee: of n replayed forecasts, so stretched, the share that was exceeded differs from 0.01 by exactly
`|tracked| / (STEP * n)`, whatever the series does, as long as no bound is met. It is one of the past and of the
cheap forecasts: that the full forecast errs when they do is measured (docs/methods/long-term.md), not proven. All of it
follows from the history alone; nothing is kept between calls.

Ranks are those within the whole history, so a replayed moment is compared by what is known now of what was high; peaks
that came after it are not used.
"""

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.history import PEAK_STEPS
from memsculpt.forecast.longterm.near import first_row, neighbours_count

REPLAYED = 40  # moments; at 5 minutes the last 40 hours
LATE = 4  # replayed is the last of so many parts of the history at most: a forecast from half of it is another one
THINNED = 4  # of the moments to compare with one in so many is taken: a quarter of the cost, the same quantiles
KNOWN_LEAST = 20  # moments to compare with, after thinning
LEVEL = 0.99
STEP = 0.1
LOG_MOST = 1.5
SCORE_MOST, SCORE_USUAL, COUNT_USUAL = 3.0, 0.15, 10
SCORES_SHARE = 0.1  # how much of the logarithm of the mean score, in usual ones, is followed
# The cheap form of the 0.99 quantile: of the nearest moments' 0.99 quantile and maximum, in logarithms.
MAXIMUM_SHARE = 0.4
LIFT, MEDIAN_LIFT, LEAST_SPREAD = 0.03, 0.01, 0.003


def replay(ranks: Float64, peaks_after: Float64, day: int) -> Float64:
    """Return, by past moment, oldest first: median, 0.99 quantile and maximum of the nearest peaks; the peak that came.

    `ranks` has a row for each point of the history, `peaks_after` the peak after each but the last PEAK_STEPS; `day`
    is a day's points, 0 where time of day is unknown. Shape (up to REPLAYED, 4); none where too little is known. 2 ms.
    """
    count, first = len(ranks), first_row(len(ranks))
    oldest = max(first + PEAK_STEPS + KNOWN_LEAST * THINNED, count - 1 - count // LATE)
    moments = np.arange(count - 1 - PEAK_STEPS, oldest, -PEAK_STEPS)[:REPLAYED][::-1]
    if not len(moments):
        return np.zeros((0, 4))
    rows = np.arange(first, count - PEAK_STEPS, THINNED)
    there, then = ranks[rows].astype(np.float32).T, ranks[moments].astype(np.float32)
    apart = np.zeros((len(moments), len(rows)), np.float32)
    for column in range(ranks.shape[1]):
        apart += np.abs(there[column] - then[:, column, np.newaxis])
    if day:
        turned = ((rows - moments[:, np.newaxis]) % day).astype(np.float32) / np.float32(day)
        apart += np.minimum(turned, 1.0 - turned)
    apart[rows > moments[:, np.newaxis] - PEAK_STEPS] = np.inf  # what followed them was not known yet
    known = np.searchsorted(rows, moments - PEAK_STEPS, side="right")
    near = np.array([max(neighbours_count(int(one) * THINNED) // THINNED, KNOWN_LEAST // 2) for one in known])
    most = int(near.max())
    nearest = np.argpartition(apart, most - 1, axis=1)[:, :most]
    peaks = peaks_after[rows[nearest]]
    if (near < most).any():  # older moments knew less, and have fewer neighbours
        order = np.argsort(np.take_along_axis(apart, nearest, axis=1), axis=1)
        peaks = np.take_along_axis(peaks, order, axis=1)
        peaks[np.arange(most) >= near[:, np.newaxis]] = np.inf
    peaks.sort(axis=1)
    places = np.round(np.array([0.5, LEVEL, 1.0]) * (near - 1)[:, np.newaxis]).astype(np.int64)
    return np.column_stack([np.take_along_axis(peaks, places, axis=1), peaks_after[moments]])


def log_stretch(replayed: Float64, softened: float, least: float) -> float:
    """Return the logarithm of the factor on the spread; 0 where nothing was replayed.

    Forecasts are compared as logarithms of ratios to `softened`, the median peak, which `least` is added to.
    """
    logs = np.log((np.maximum(replayed, 0.0) + least) / softened)
    median = logs[:, 0] + MEDIAN_LIFT
    top = (1.0 - MAXIMUM_SHARE) * logs[:, 1] + MAXIMUM_SHARE * logs[:, 2] + LIFT
    scores = (logs[:, 3] - median) / np.maximum(top - median, LEAST_SPREAD)
    return tracked(scores.tolist()) + SCORES_SHARE * height(scores)


def height(scores: Float64) -> float:
    """Return the logarithm of the mean score in usual ones; none of a score counts below 0 or above SCORE_MOST."""
    total = float(np.clip(scores, 0.0, SCORE_MOST).sum()) + COUNT_USUAL * SCORE_USUAL
    return float(np.log(total / (len(scores) + COUNT_USUAL) / SCORE_USUAL))


def tracked(scores: list[float]) -> float:
    """Return the tracked logarithm after these scores: how many spreads above the median each peak was."""
    factor = 0.0
    for score in scores:
        factor += STEP * (LEVEL if score > np.exp(factor) else LEVEL - 1.0)
        factor = min(max(factor, -LOG_MOST), LOG_MOST)
    return float(factor)
