# SPDX-License-Identifier: Apache-2.0
"""What is different between two series, metric by metric, and when in a week a workload needs most. Pure."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.domain.series import METRICS, Series

# A median that moved by more than this many times the larger spread, and by more than the share, stands out.
STANDS_OUT_SPREADS = 3.0
STANDS_OUT_RATIO = 0.1
WEEK_HOURS = 7 * 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One metric of a series in a few numbers; in the metric's own unit, None where nothing is known."""

    known_ratio: float
    last: float | None
    median: float | None
    high: float | None  # 99 % of the samples are at most this
    peak: float | None
    spread: float  # half of the samples are within this of the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric before and after."""

    metric: str
    before: Summary
    after: Summary
    change_ratio: float | None  # of the median; None where one is not known or the first is 0
    stands_out: bool


def summarize(series: Series) -> dict[str, Summary]:
    """Return every metric in a few numbers."""
    return {one.name: _summary(series.values[:, place], series.is_valid[:, place]) for place, one in enumerate(METRICS)}


def compare(before: Series, after: Series) -> tuple[Difference, ...]:
    """Return what is different, metric by metric; those where neither side knows anything are left out.

    A metric stands out when its median moved by more than 10 % and by more than three times the spread of either side.
    """
    first, second = summarize(before), summarize(after)
    return tuple(
        _difference(one.name, first[one.name], second[one.name])
        for one in METRICS
        if first[one.name].known_ratio > 0.0 or second[one.name].known_ratio > 0.0
    )


def hours_of_week(series: Series, metric: str, *, offset_s: int = 0) -> Float64:
    """Return the mean of a metric by hour of the week, Monday first, shape (7 * 24,), NaN where nothing is known.

    `offset_s` is how far local time is ahead of UTC. The Unix clock began on a Thursday.
    """
    values, is_known = series.column(metric)
    hours = ((series.times_s + offset_s) // 3600 + 3 * 24) % WEEK_HOURS
    sums = np.bincount(hours[is_known], weights=values[is_known], minlength=WEEK_HOURS)
    counts = np.bincount(hours[is_known], minlength=WEEK_HOURS)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _summary(values: Float64, is_known: Bool) -> Summary:
    known = values[is_known]
    if not known.size:
        return Summary(known_ratio=0.0, last=None, median=None, high=None, peak=None, spread=0.0)
    median = float(np.median(known))
    return Summary(
        known_ratio=known.size / values.size,
        last=float(known[-1]),
        median=median,
        high=float(np.quantile(known, 0.99)),
        peak=float(known.max()),
        spread=float(np.median(np.abs(known - median))),
    )


def _difference(metric: str, before: Summary, after: Summary) -> Difference:
    change_ratio, stands_out = None, (before.median is None) != (after.median is None)
    if before.median is not None and after.median is not None:
        moved = abs(after.median - before.median)
        spread = max(before.spread, after.spread)
        larger = max(abs(before.median), abs(after.median))
        stands_out = moved > STANDS_OUT_RATIO * larger and moved > STANDS_OUT_SPREADS * spread
        change_ratio = None if before.median == 0.0 else after.median / before.median - 1.0
    return Difference(metric=metric, before=before, after=after, change_ratio=change_ratio, stands_out=stands_out)
