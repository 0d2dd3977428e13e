# SPDX-License-Identifier: Apache-2.0
"""What a workload's history says at one moment: features without a scale, and candidates for what comes next. Pure.

Candidates are forecasts by simple rules, each in the workload's own unit: quantiles of its past peaks, of its peaks at
moments like now (nearest neighbours by rank of level, of the last hour's maximum, of the last six hours' mean, by time
of day and by what was measured beside it), of the last hours and days, of the same time of day. `gate.py` weighs them.

Whatever is learnt over many workloads has to look alike for all of them: features are ranks within the history and
logarithms of ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.history import (
    DAY,
    DAY_S,
    HOUR,
    LEVELS,
    MOST_POINTS,
    PEAK_STEPS,
    QUARTER_DAY,
    STEPS,
    WEEK,
    History,
)
from memsculpt.forecast.longterm.near import Near
from memsculpt.forecast.longterm.replay import log_stretch, replay

PEAK_LEVELS = np.array([0, 2, 10, 25, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 99.8, 100]) / 100
NEAR_LEVELS = np.array([0.5, 0.75, 0.9, 0.97, 0.99, 1.0])
RECENT_LEVELS = np.array([0.5, 0.9, 0.99, 1.0])
CHANGE_LEVELS = np.array([0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0])
STAYS_POINTS = 2 * HOUR
STAYS_FROM, STAYS_TO = 1.1, 1.25  # of the errors' ratio: from here on the last value counts, from there alone
RECENT_POINTS = (HOUR, QUARTER_DAY, DAY, 2 * DAY, WEEK)
SAME_TIME_DAYS = (1, 2, 7, 14)
SAME_TIME_POINTS = 6
LAGS = np.array([0, 1, 2, 3, 4, 5, 6, 8, 11, 17, 23, 35, 71])
STATISTICS_POINTS = (3, 6, HOUR, 36, 144, DAY, WEEK)
KNOTS = np.array([0, 2, 5, 11, 35])
AGE_POINTS = 4032
FEATURE_BOUND = 12.0

WAYS = ("near", "close", "beside", "aged")  # of finding moments like now; see near.Near
# What is added to a level of now: how much higher the peak after it was, at which past moments.
CHANGES = ("hour, near", "hour, week", "hour, day", "now, week")
PEAK_NAMES = (
    *(f"all {level:g}" for level in PEAK_LEVELS),
    *(f"{way} {level:g}" for way in WAYS for level in NEAR_LEVELS),
    *(f"last {points} {level:g}" for points in RECENT_POINTS for level in RECENT_LEVELS),
    *("now", "hour", "three hours", "hour's mean"),
    *(f"same time {level:g}" for level in NEAR_LEVELS),
    *(name for days in SAME_TIME_DAYS for name in (f"{days} days ago", f"around {days} days ago")),
    *(f"{way} {level:g}" for way in CHANGES for level in CHANGE_LEVELS),
)
PATH_NAMES = (
    *("near", "near change", "change", "week", "day", "two hours", "now", "three points"),
    *("hour mean", "six hours mean", "all", "same time", "yesterday", "three days' mean"),
)

Path = npt.NDArray[np.float64]
"""Quantiles of a path, shape (levels, STEPS)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """What is known at the end of a history."""

    features: npt.NDArray[np.float32]
    peaks: Float64  # candidates for quantiles of the peak, shape (n_peaks,)
    paths: Float64  # candidates for quantiles of the path, shape (n_paths, levels, STEPS)
    reference: float  # the median of past peaks: the unit of ratios
    least: float  # what a ratio is softened with, so that nothing divides by 0
    scale: float  # mean absolute change from point to point in the last week
    capacity: float
    stays: float  # 0 to 1: how much better than a mean or yesterday the last value has foretold the next hour
    log_stretch: float  # what the replay of the last past moments asks the spread to be multiplied with; see replay.py


FEATURES = 293  # of a moment; `describe` checks it


def peak_place(name: str) -> int:
    """Return where a candidate for the peak stands in `Moment.peaks`. Raises ValueError."""
    return PEAK_NAMES.index(name)


def path_place(name: str) -> int:
    """Return where a candidate for the path stands in `Moment.paths`. Raises ValueError."""
    return PATH_NAMES.index(name)


def _stays(values: Float64, day: int) -> float:
    """Tell plateaus from what returns to its mean or has a day's rhythm, by how far each was off in the last week.

    `day` has so many points; 0 where there is none.
    """
    recent = values[-WEEK:]
    if len(recent) <= 2 * STAYS_POINTS:
        return 0.5
    ahead = recent[STAYS_POINTS + PEAK_STEPS - 1 :]
    lasts = recent[STAYS_POINTS - 1 : len(recent) - PEAK_STEPS]
    sums = np.cumsum(np.concatenate(([0.0], recent)))
    means = (sums[STAYS_POINTS:] - sums[:-STAYS_POINTS])[: len(lasts)] / STAYS_POINTS
    off_by_last = float(np.abs(ahead - lasts).mean())
    off_by_other = float(np.abs(ahead - means).mean())
    if len(lasts) > day > 0:
        as_yesterday = lasts[day:] + ahead[:-day] - lasts[:-day]
        off_by_other = min(off_by_other, float(np.abs(ahead[day:] - as_yesterday).mean()))
    if off_by_last == 0.0:
        return 1.0
    return float(np.clip((off_by_other / off_by_last - STAYS_FROM) / (STAYS_TO - STAYS_FROM), 0.0, 1.0))


def describe(history: History) -> Moment:
    """Return what a cleaned history says now. Some 5 ms for 28 days of 5 minutes."""
    values, count = history.values, len(history.values)
    day = round(DAY_S / history.interval_s)
    has_day = count >= day + PEAK_STEPS + 1
    peaks_after = sliding_window_view(values[1:], PEAK_STEPS).max(axis=1)  # of the moments 0 .. count - 13
    sorted_peaks = np.sort(peaks_after)
    reference, least = float(_at(sorted_peaks, [0.5])[0]), 0.002 * history.capacity
    near = Near(history, day if has_day else 0)
    same_time = _same_time(peaks_after, sorted_peaks, count, day if has_day else 0)
    hour_max = near.hour_max
    now = np.array([values[-1], hour_max[-1], values[-36:].max(), values[-HOUR:].mean()])
    recent = [_at(np.sort(peaks_after[-points:]), RECENT_LEVELS) for points in RECENT_POINTS]
    near_peaks = [_at(np.sort(peaks_after[rows]), NEAR_LEVELS) for rows in near.sets]
    peaks = np.concatenate(
        [_at(sorted_peaks, PEAK_LEVELS), *near_peaks, *recent, now, same_time, _raised(values, peaks_after, near)]
    )
    paths = _paths(history, near, day if has_day else 0)
    scale = max(float(np.abs(np.diff(values[-WEEK:])).mean()), 1e-4 * history.capacity)

    def ratio(of: Float64 | float) -> Float64:
        return np.log((np.maximum(of, 0.0) + least) / (reference + least))

    softened = reference + least
    statistics: list[float] = []
    for points in STATISTICS_POINTS:
        part = values[-points:]
        statistics += [
            *ratio(np.array([part.mean(), part.max(), part.min()])),
            np.log((part.std() + 0.1 * least) / softened),
        ]
    lagged = values[np.maximum(count - 1 - LAGS, 0)]
    features = np.concatenate(
        [
            np.log([softened / history.capacity, scale / history.capacity, (scale + 0.1 * least) / softened]),
            [count / MOST_POINTS, float(has_day)],
            ratio(lagged),
            statistics,
            ratio(peaks),
            near.ranks_now,
            _changes(values, scale),
            _ages(values, sorted_peaks),
            _clock(history.step, day),
            near.covariate_features,
            np.arcsinh((lagged[1:] - values[-1]) / scale),
            np.arcsinh((paths[:, 0][:, KNOTS] - values[-1]) / scale).ravel(),
        ]
    )
    bounded = np.clip(
        np.nan_to_num(features, nan=0.0, posinf=FEATURE_BOUND, neginf=-FEATURE_BOUND), -FEATURE_BOUND, FEATURE_BOUND
    )
    if len(bounded) != FEATURES:
        raise ValueError(f"a moment has {len(bounded)} features, not {FEATURES}")
    return Moment(
        features=bounded.astype(np.float32),
        peaks=peaks,
        paths=paths,
        reference=reference,
        least=least,
        scale=scale,
        capacity=history.capacity,
        stays=_stays(values, day if has_day else 0),
        log_stretch=log_stretch(replay(near.ranks, peaks_after, day if has_day else 0), reference + least, least),
    )


def _paths(history: History, near: Near, day: int) -> Float64:
    values, count = history.values, len(history.values)
    last = values[-1]
    futures = sliding_window_view(values[1:], STEPS)
    rows = near.sets[0][near.sets[0] < len(futures)]
    if len(rows) < HOUR:
        rows = np.arange(max(len(futures) - 50, 0), len(futures))
    of_late = np.arange(max(len(futures) - WEEK, 0), len(futures), 4)

    def flat(quantiles: Sequence[float] | Float64) -> Path:
        return np.repeat(np.asarray(quantiles, np.float64)[:, np.newaxis], STEPS, axis=1)

    def level(value: float) -> Path:
        return np.full((len(LEVELS), STEPS), value)

    found = [
        _at(np.sort(futures[rows], axis=0), LEVELS),
        last + _at(np.sort(futures[rows] - values[rows, np.newaxis], axis=0), LEVELS),
        last + _at(np.sort(futures[of_late] - values[of_late, np.newaxis], axis=0), LEVELS),
        flat(_at(np.sort(values[-WEEK:]), LEVELS)),
        flat(_at(np.sort(values[-DAY:]), LEVELS)),
        flat(_at(np.sort(values[-24:]), LEVELS)),
        level(last),
        level(float(values[-3:].mean())),
        level(float(values[-HOUR:].mean())),
        level(float(values[-QUARTER_DAY:].mean())),
        flat(_at(np.sort(values), LEVELS)),
    ]
    days = (
        [values[at : at + STEPS] for at in range(count - day, max(count - 15 * day, -1), -day)] if day >= STEPS else []
    )
    if days:
        ordered = np.sort(np.array(days), axis=0)
        found += [
            np.stack([np.median(ordered, axis=0), _at(ordered, [0.9])[0], ordered[-1]]),
            np.repeat(days[0][np.newaxis], len(LEVELS), axis=0),
            np.repeat(np.mean(days[:3], axis=0)[np.newaxis], len(LEVELS), axis=0),
        ]
    else:
        found += [found[0]] * 3
    return np.array(found)


def _same_time(peaks_after: Float64, sorted_peaks: Float64, count: int, day: int) -> Float64:
    """Return quantiles of peaks at this time of day, and the peaks of single days; without a day, of all peaks."""
    middle = float(sorted_peaks[len(sorted_peaks) // 2])
    if not day:
        return np.concatenate([_at(sorted_peaks, NEAR_LEVELS), np.full(2 * len(SAME_TIME_DAYS), middle)])
    apart = (np.arange(len(peaks_after)) - (count - 1)) % day
    near = np.minimum(apart, day - apart) <= SAME_TIME_POINTS
    found = list(_at(np.sort(peaks_after[near]) if near.any() else sorted_peaks, NEAR_LEVELS))
    for days in SAME_TIME_DAYS:
        at = count - 1 - days * day
        if at < 0:
            found += [middle, middle]
        else:
            found += [
                float(peaks_after[at]),
                float(peaks_after[max(at - SAME_TIME_POINTS, 0) : at + SAME_TIME_POINTS + 1].max()),
            ]
    return np.array(found)


def _raised(values: Float64, peaks_after: Float64, near: Near) -> Float64:
    """Return what now would rise to, by CHANGES: a series that has just moved to another level has no other past."""
    from_hour = peaks_after - near.hour_max[: len(peaks_after)]
    from_now = peaks_after - values[: len(peaks_after)]
    hour = near.hour_max[-1]
    return np.concatenate(
        [
            start + _at(np.sort(rises), CHANGE_LEVELS)
            for start, rises in (
                (hour, from_hour[near.sets[0]]),
                (hour, from_hour[-WEEK:]),
                (hour, from_hour[-DAY:]),
                (values[-1], from_now[-WEEK:]),
            )
        ]
    )


def _changes(values: Float64, scale: float) -> Float64:
    """Return how lively the series is of late: changes by window, and how often nothing changes."""
    steps = np.diff(values)
    lively = [np.abs(steps[-points:]).mean() / scale for points in (5, HOUR - 1, 35, DAY - 1)]
    recent = values[-DAY:]
    return np.array(
        [*lively, (steps[-DAY:] == 0).mean(), (steps[-24:] == 0).mean(), len(np.unique(recent)) / len(recent)]
    )


def _ages(values: Float64, sorted_peaks: Float64) -> Float64:
    """Return how long ago the series was as high as the 0.9, 0.97 and 0.99 quantiles of its peaks, up to two weeks."""
    backwards = values[: -AGE_POINTS - 1 : -1]
    ages: list[float] = []
    for high in _at(sorted_peaks, [0.9, 0.97, 0.99]):
        found = np.flatnonzero(backwards >= high)
        ages.append(np.log1p(found[0] if len(found) else AGE_POINTS) / np.log1p(AGE_POINTS))
    return np.array(ages)


def _clock(step: int, day: int) -> Float64:
    """Return the time of day and of the week as places on circles."""
    angles = 2.0 * np.pi * np.array([step % day / day, step % (7 * day) / (7 * day)])
    return np.concatenate([np.sin(angles), np.cos(angles)])


def _at(ordered: Float64, levels: Sequence[float] | Float64) -> Float64:
    """Return empirical quantiles of what is sorted along its first axis: the nearest value, none in between."""
    places = np.round(np.asarray(levels) * (len(ordered) - 1)).astype(np.int64)
    return ordered[places]
