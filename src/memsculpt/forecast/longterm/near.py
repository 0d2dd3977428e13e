# SPDX-License-Identifier: Apache-2.0
"""Past moments like now, by ranks within a workload's own history. Pure."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.forecast.longterm.history import COVARIATES_MOST, DAY, HOUR, PEAK_STEPS, QUARTER_DAY, History

NEIGHBOURS, CLOSE_NEIGHBOURS = 300, 80
BESIDE_MOST = 3  # covariates by which moments are compared
NEUTRAL_RANK = 0.5


class Near:
    """Past moments like now, by four ways of measuring distance."""

    def __init__(self, history: History, day: int) -> None:
        values, count = history.values, len(history.values)
        self.hour_max = np.concatenate(
            [np.full(HOUR - 1, values[:HOUR].max()), sliding_window_view(values, HOUR).max(axis=1)]
        )
        means = running_mean(values, QUARTER_DAY)
        ranks = np.column_stack([ranks_of(values), ranks_of(self.hour_max), ranks_of(means)])
        self.ranks = ranks
        rows = np.arange(first_row(count), count - PEAK_STEPS)
        plain = np.abs(ranks[rows] - ranks[-1]).sum(axis=1)
        if day:
            apart = np.abs(rows - (count - 1)) % day / day
            plain = plain + np.minimum(apart, 1.0 - apart)
        columns = list(history.covariates.values())[:COVARIATES_MOST]
        smooth = [running_mean(column, 3) for column in columns]
        by_load = [ranks_of(one) for one in smooth[:BESIDE_MOST]]
        beside = plain + 0.5 * sum((np.abs(one[rows] - one[-1]) for one in by_load), np.zeros(len(rows)))
        aged = plain + 0.5 * (count - 1 - rows) / count
        many, few = neighbours_count(len(rows)), max(10, min(CLOSE_NEIGHBOURS, len(rows) // 32))
        chosen = ((plain, many), (plain, few), (beside, many), (aged, many))
        self.sets: list[Int64] = [rows[_smallest(distance, number)] for distance, number in chosen]
        above = [float((values <= one).mean()) for one in (values[-1], self.hour_max[-1])]
        self.ranks_now = np.array([*above, *ranks[-1], ranks[-1 - HOUR, 0], ranks[-2, 0], ranks[-6, 0]])
        told: list[float] = []
        for column, one in zip(columns, smooth, strict=True):
            of_late = ranks_among(column, column[-QUARTER_DAY:])
            yesterday = one[-DAY] if count > DAY else one[-1]
            now, before, then = ranks_among(one, np.array([one[-1], one[-1 - HOUR], yesterday]))
            told += [
                of_late[-1],
                now,
                before,
                then if count > DAY else NEUTRAL_RANK,
                of_late[-HOUR:].max(),
                of_late.mean(),
            ]
        told += [NEUTRAL_RANK] * (6 * (COVARIATES_MOST - len(columns)))
        self.covariate_features = np.array(told)


def first_row(count: int) -> int:
    """Return the first moment of a history of `count` points to compare with: those before know too little."""
    return QUARTER_DAY if count > 4 * QUARTER_DAY else HOUR


def neighbours_count(known: int) -> int:
    """Return how many of `known` past moments are near: NEIGHBOURS of four weeks, of a short history a sixteenth.

    A quarter of a day's moments are not near, and a peak that only one of them had is not the 0.99 quantile now.
    """
    return max(20, min(NEIGHBOURS, known // 16))


def ranks_of(values: Float64) -> Float64:
    """Return each value's rank within the series, 0 to 1; equals share the middle of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((begins + ends - 1) / (2 * len(values)), ends - begins)
    return ranks


def ranks_among(values: Float64, chosen: Float64) -> Float64:
    """Return what `ranks_of` gives for some members of the series only."""
    ordered = np.sort(values)
    found = np.searchsorted(ordered, chosen, side="left") + np.searchsorted(ordered, chosen, side="right")
    return (found - 1) / (2 * len(values))


def running_mean(values: Float64, points: int) -> Float64:
    """Return the mean of each point and those before it; at the beginning of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - points, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _smallest(distances: Float64, count: int) -> Int64:
    count = min(count, len(distances))
    return np.argpartition(distances, count - 1)[:count]
