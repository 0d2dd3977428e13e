# SPDX-License-Identifier: Apache-2.0
"""How good forecasts were: errors, coverage, and what memory they would have cost. Pure.

Errors are means within a series, then over series, so that a long series does not count more. They are divided by the
mean absolute change from one step to the next (MASE: Hyndman and Koehler, "Another look at measures of forecast
accuracy", 2006), which makes series of any size comparable.

What counts in the end is a decision: a partition is given the 0.99 quantile of the peak over the next hour. A window in
which more was needed is a violation. Methods differ in how often they are violated, so for a fair comparison the spread
of all of a method's forecasts is stretched or shrunk by one factor until a given share of windows is violated; what is
then provisioned, as a share of capacity, is the price at that risk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from memsculpt.domain.arrays import Float64, Int64, freeze_columns

LEVELS = (0.5, 0.9, 0.99)
STEPS = 36
PEAK_STEPS = 12
REACHES = (1, 12, 36)
RISKS = (0.01, 0.05)
# A share of capacity below which nothing is provisioned, and the least spread that is stretched.
FLOOR_RATIO = 0.01
LEAST_SPREAD_RATIO = 0.001
LEAST_SCALE_RATIO = 1e-4
EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """What was forecast in n windows, and what came. Values are in the series' own unit."""

    series: Int64  # number of the series, shape (n,)
    truth: Float64  # shape (n, STEPS)
    path: Float64  # shape (n, levels, STEPS), within [0, capacity]
    peak: Float64  # quantiles of the peak over PEAK_STEPS, shape (n, levels)
    capacity: Float64  # shape (n,)
    scale: Float64  # mean absolute change from step to step before the window, shape (n,)
    duration_s: Float64  # what each forecast took, shape (n,)

    def __post_init__(self) -> None:
        """Check the shapes, and let nobody write."""
        count, levels = len(self.series), len(LEVELS)
        freeze_columns(self, ("series", "capacity", "scale", "duration_s"), (count,))
        freeze_columns(self, ("truth",), (count, STEPS))
        freeze_columns(self, ("path",), (count, levels, STEPS))
        freeze_columns(self, ("peak",), (count, levels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a method provisions at a risk."""

    risk: float
    stretch: float  # the factor on its spread
    provisioned_ratio: float  # of capacity, mean over windows
    slack_ratio: float  # share of what is provisioned that was not needed, mean over windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The measures of one method."""

    windows_count: int
    series_count: int
    duration_ms: float  # of one forecast, mean
    mase: dict[int, float]  # by reach in steps
    pinball: dict[int, tuple[float, ...]]  # by reach, one for each level, scaled as MASE
    coverage: dict[int, tuple[float, ...]]  # share of steps that did not pass each level
    violated_ratio: float
    slack_ratio: float
    provisioned_ratio: float
    prices: tuple[Price, ...]


def score(windows: Windows) -> Scores:
    """Return the measures. Raises ValueError without any window."""
    if not len(windows.series):
        raise ValueError("there is no window to score")
    scale = np.maximum(windows.scale, LEAST_SCALE_RATIO * windows.capacity)
    mase: dict[int, float] = {}
    pinball: dict[int, tuple[float, ...]] = {}
    coverage: dict[int, tuple[float, ...]] = {}
    for reach in REACHES:
        truth, path = windows.truth[:, :reach], windows.path[:, :, :reach]
        mase[reach] = _by_series(windows.series, np.abs(truth - path[:, 0]).mean(axis=1) / scale)
        misses = [truth - path[:, number] for number in range(len(LEVELS))]
        pinball[reach] = tuple(
            _by_series(windows.series, np.maximum(level * miss, (level - 1.0) * miss).mean(axis=1) / scale)
            for level, miss in zip(LEVELS, misses, strict=True)
        )
        coverage[reach] = tuple(float((miss <= EPSILON).mean()) for miss in misses)
    base, given, peak = _decision(windows)
    return Scores(
        windows_count=len(windows.series),
        series_count=len(np.unique(windows.series)),
        duration_ms=float(windows.duration_s.mean()) * 1e3,
        mase=mase,
        pinball=pinball,
        coverage=coverage,
        violated_ratio=float((peak > given + EPSILON).mean()),
        slack_ratio=float((1.0 - peak / given).mean()),
        provisioned_ratio=float((given / windows.capacity).mean()),
        prices=tuple(_price(base, given, peak, windows.capacity, risk) for risk in RISKS),
    )


def price(windows: Windows, risk: float) -> Price:
    """Return what is provisioned when at most `risk` of the windows may be violated."""
    base, given, peak = _decision(windows)
    return _price(base, given, peak, windows.capacity, risk)


def joined(parts: Sequence[Windows]) -> Windows:
    """Return the windows of several series, or of several processes, as one. Raises ValueError without any."""
    if not parts:
        raise ValueError("there is nothing to join")
    return Windows(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Windows)})


def _decision(windows: Windows) -> tuple[Float64, Float64, Float64]:
    """Return, by window, the median of the peak, what is provisioned, and the peak that came, all within bounds."""
    floor = FLOOR_RATIO * windows.capacity

    def bounded(values: Float64) -> Float64:
        return np.maximum(np.minimum(values, windows.capacity), floor)

    return (
        bounded(windows.peak[:, 0]),
        bounded(windows.peak[:, -1]),
        bounded(windows.truth[:, :PEAK_STEPS].max(axis=1)),
    )


def _price(base: Float64, given: Float64, peak: Float64, capacity: Float64, risk: float) -> Price:
    """Return what is provisioned when the spread is stretched so that at most `risk` of the windows is violated."""
    spread = np.maximum(given - base, LEAST_SPREAD_RATIO * capacity)
    # The stretch from which on each window holds: of all windows the largest few are given up.
    floor = FLOOR_RATIO * capacity
    needed = np.where(peak <= floor + EPSILON, 0.0, np.maximum(peak - EPSILON - base, 0.0) / spread)
    stretch = float(np.sort(needed)[::-1][int(risk * len(needed))])
    stretched = np.maximum(np.minimum(base + stretch * spread, capacity), floor)
    return Price(
        risk=risk,
        stretch=stretch,
        provisioned_ratio=float((stretched / capacity).mean()),
        slack_ratio=float((1.0 - peak / stretched).mean()),
    )


def _by_series(series: Int64, values: Float64) -> float:
    _, number = np.unique(series, return_inverse=True)
    sums, counts = np.bincount(number, weights=values), np.bincount(number)
    return float((sums / counts).mean())


def origins(is_known: Sequence[bool] | np.ndarray[tuple[int], np.dtype[np.bool_]], first: int, count: int) -> Int64:
    """Return up to `count` moments, evenly spread from `first` on, whose next STEPS values are all known."""
    known = np.asarray(is_known, np.bool_)
    gaps = np.concatenate([[0], np.cumsum(~known)])
    candidates = np.arange(max(first, PEAK_STEPS), len(known) - STEPS)
    # The last hour before has to be known, too: else the last value is none.
    whole = gaps[candidates + STEPS + 1] - gaps[candidates - PEAK_STEPS + 1] == 0
    good = candidates[whole]
    if len(good) <= count:
        return good.astype(np.int64)
    places = (np.arange(count) + 0.5) * len(good) / count
    return good[places.astype(np.int64)].astype(np.int64)
