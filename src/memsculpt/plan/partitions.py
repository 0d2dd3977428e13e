# SPDX-License-Identifier: Apache-2.0
"""Who gets how much: the capacity is shared so that the weighted chance of falling short is equal.

Each partition's peak demand over the horizon is a distribution, given as a piecewise-linear quantile
function Q. A missing byte of partition i costs w_i (its priority). The cheapest division of a capacity C
gives x_i = Q_i(1 - λ/w_i), clipped to [guarantee, ceiling], with the one λ for which the sizes sum to C:
the newsvendor's solution with a shared budget (Hadley & Whitin 1963, ch. 6; λ is the shadow price of
memory). λ is found by bisection over whole pages and the neighbouring floating-point numbers, so the
result is exact to the page, and the same for any order of the partitions.

Level 0 is a knot too: Q(0) is what the partition has anyway. Beyond the highest knot demand has a tail that
thins out exponentially, up to the ceiling: each further `tail_bytes` is half as likely. So spare capacity is
shared as room above all that is forecast, by size and (only logarithmically) by weight, and none is left
idle. A tail that is linear up to the ceiling would give all of it to the highest weight (decision 0015).
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64, Int64, freeze_columns

_GALLOP = (-4, -16, -64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """What each partition may come to need; columns of shape (n_partitions,).

    `knots_bytes` has shape (n_partitions, n_levels) and does not fall along `levels`, which rise from 0
    to below 1. A fixed partition has `guarantee == floor == ceiling`. Raises ValueError for wrong levels.
    """

    levels: Float64
    knots_bytes: Float64
    tail_bytes: Float64  # above 0; beyond the last knot, the demand that is half as likely
    guarantee_bytes: Int64
    floor_bytes: Int64  # at least the guarantee; given up before a guarantee is
    ceiling_bytes: Int64
    weights: Float64  # cost of a missing byte, above 0
    giving_order: Int64  # rows from first to last to get the odd page: by weight, then by name

    def __post_init__(self) -> None:
        rows = len(self.weights)
        freeze_columns(self, ("levels",), self.levels.shape)
        freeze_columns(self, ("knots_bytes",), (rows, len(self.levels)))
        columns = ("tail_bytes", "guarantee_bytes", "floor_bytes", "ceiling_bytes", "weights", "giving_order")
        freeze_columns(self, columns, (rows,))
        is_rising = bool((np.diff(self.levels) > 0.0).all())
        if len(self.levels) < 2 or self.levels[0] != 0.0 or self.levels[-1] >= 1.0 or not is_rising:
            raise ValueError(f"Demand: levels must rise from 0 to below 1, got {self.levels}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sizes:
    """The division; columns in the order of the demand."""

    size_bytes: Int64  # whole pages
    shortfall_ratio: Float64  # the chance that the size will not do
    level_ratio: Float64  # the quantile level that each got: 1 - λ/w
    multiplier: float  # λ: what one more byte would be worth


def divide(demand: Demand, *, capacity_bytes: int, page_bytes: int) -> Sizes:
    """Share the capacity; the sizes sum to it exactly (to a page) unless the ceilings leave some over.

    Guarantees hold in whole pages, as the kernel keeps them. Floors above the guarantee are cut to
    the same number of pages when they do not fit. Raises ValueError when the guarantees alone do not fit: the
    configuration is refused for that, so it cannot happen under load.
    """
    rows = len(demand.weights)
    capacity = capacity_bytes // page_bytes
    if rows == 0:
        return Sizes(
            size_bytes=np.zeros(0, np.int64),
            shortfall_ratio=np.zeros(0),
            level_ratio=np.zeros(0),
            multiplier=0.0,
        )
    # One page more than all there is keeps "too much" visible, and sums far from overflow.
    ceiling = np.minimum(demand.ceiling_bytes // page_bytes, capacity + 1)
    guarantee = np.minimum(demand.guarantee_bytes // page_bytes, ceiling)
    if int(guarantee.sum()) > capacity:
        raise ValueError(
            f"guarantees of {int(guarantee.sum()) * page_bytes} bytes exceed the capacity of {capacity_bytes} bytes"
        )
    floor = np.clip(demand.floor_bytes // page_bytes, guarantee, ceiling)
    if int(floor.sum()) >= capacity:
        pages = _filled(guarantee, floor, capacity - int(guarantee.sum()), demand.giving_order)
        multiplier = float(demand.weights.max())
    else:
        pages, multiplier = _bisect(demand, floor, ceiling, capacity, page_bytes)
    size_bytes = pages * page_bytes
    return Sizes(
        size_bytes=size_bytes,
        shortfall_ratio=shortfall(demand, size_bytes),
        level_ratio=np.clip(1.0 - multiplier / demand.weights, 0.0, 1.0),
        multiplier=multiplier,
    )


def shortfall(demand: Demand, size_bytes: Int64) -> Float64:
    """Return the chance that each partition's peak exceeds its size, by inverting its quantile function."""
    rows = np.arange(len(size_bytes))
    last = len(demand.levels) - 1
    segment = np.clip((demand.knots_bytes <= size_bytes[:, np.newaxis]).sum(axis=1) - 1, 0, last - 1)
    low, high = demand.knots_bytes[rows, segment], demand.knots_bytes[rows, segment + 1]
    part = np.clip((size_bytes - low) / np.maximum(high - low, 1.0), 0.0, 1.0)
    level = demand.levels[segment] + part * (demand.levels[segment + 1] - demand.levels[segment])
    beyond = size_bytes - demand.knots_bytes[:, last]
    in_tail = (1.0 - demand.levels[last]) * np.exp2(-np.maximum(beyond, 0.0) / demand.tail_bytes)
    return np.asarray(np.where(beyond >= 0.0, in_tail, 1.0 - level), dtype=np.float64)


def _filled(least: Int64, most: Int64, room: int, order: Int64) -> Int64:
    """Raise `least` towards `most` by the same number of pages for all, `room` pages in all; the rest in order."""
    steps = most - least
    low, high = 0, int(steps.max(initial=0))
    while low < high:  # the highest common level that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(np.minimum(steps, middle).sum()) <= room else (low, middle - 1)
    result = least + np.minimum(steps, low)
    over = order[(result < most)[order]][: room - int((result - least).sum())]
    result[over] += 1
    return np.asarray(result, dtype=np.int64)


class _Search:
    """Pages of the rows whose size is still open between the two ends of the bracket."""

    def __init__(self, demand: Demand, lower: Int64, ceiling: Int64, page_bytes: int) -> None:
        knots = np.ascontiguousarray(demand.knots_bytes.T) / page_bytes  # a level's knots side by side
        knots = np.maximum(knots, lower)
        knots[0] = lower  # so the floors are what λ = the highest weight leaves, whatever level 0 was said to be
        self.levels = demand.levels
        self.knots, self.slopes = knots, np.diff(knots, axis=0) / np.diff(demand.levels)[:, np.newaxis]
        # The tail begins at λ = w (1 - last level), and grows with each halving of λ from there.
        self.tail, self.tail_from = demand.tail_bytes / page_bytes, _log2(demand.weights * (1.0 - demand.levels[-1]))
        self.lower, self.ceiling, self.weights = lower, ceiling, demand.weights
        self.has_one_weight = bool((demand.weights == demand.weights[0]).all())

    def pages(self, multiplier: float) -> Int64:
        """Return each row's pages at λ; they do not rise with λ, bit for bit (every rounding is monotone)."""
        wanted = self._at_one_level(multiplier) if self.has_one_weight else self._at_levels(multiplier)
        wanted = wanted + self.tail * np.maximum(self.tail_from - _log2(np.float64(multiplier)), 0.0)
        return np.minimum(np.maximum(np.floor(wanted), self.lower), self.ceiling).astype(np.int64)

    def keep(self, rows: Int64) -> None:
        """Drop all other rows."""
        self.knots, self.slopes = self.knots.take(rows, axis=1), self.slopes.take(rows, axis=1)
        self.tail, self.tail_from = self.tail[rows], self.tail_from[rows]
        self.lower, self.ceiling, self.weights = self.lower[rows], self.ceiling[rows], self.weights[rows]

    def _at_levels(self, multiplier: float) -> Float64:
        level = np.minimum(np.maximum(1.0 - multiplier / self.weights, 0.0), self.levels[-1])
        count = len(level)
        segment = np.minimum(np.searchsorted(self.levels, level, side="right") - 1, len(self.levels) - 2)
        flat = segment * count + np.arange(count)
        knots, after = self.knots.ravel()[flat], self.knots.ravel()[flat + count]
        wanted = knots + self.slopes.ravel()[flat] * (level - self.levels[segment])
        # The end of a segment, computed from its start, may miss the next knot by a rounding.
        return np.where(level >= self.levels[segment + 1], after, np.minimum(wanted, after))

    def _at_one_level(self, multiplier: float) -> Float64:
        # The same, where all weights are the same: several times faster without a gather per row.
        level = min(max(1.0 - multiplier / float(self.weights[0]), 0.0), float(self.levels[-1]))
        segment = min(int(np.searchsorted(self.levels, level, side="right")) - 1, len(self.levels) - 2)
        after = self.knots[segment + 1]
        if level >= float(self.levels[segment + 1]):
            return after
        wanted = self.knots[segment] + self.slopes[segment] * (level - float(self.levels[segment]))
        return np.minimum(wanted, after)


def _bisect(demand: Demand, lower: Int64, ceiling: Int64, capacity: int, page_bytes: int) -> tuple[Int64, float]:
    """Find the smallest λ whose pages fit, and share the odd pages of the step just below it.

    λ is bisected over the bit patterns of positive doubles, whose order is that of the numbers: after at
    most 62 steps the ends are neighbours. Rows that have the same pages at both ends are settled and leave
    the search, so most steps look at few rows.
    """
    search = _Search(demand, lower, ceiling, page_bytes)
    if int(ceiling.sum()) <= capacity:
        return ceiling, 0.0
    rows, most = np.arange(len(lower)), float(demand.weights.max())
    low_bits, high_bits = 0, _bits(most)  # λ = 0 would be the ceilings
    at_low, at_high = ceiling, search.pages(most)
    for exponent in _GALLOP:  # λ is rarely tiny: look from above before halving
        at_middle = search.pages(most * 2.0**exponent)
        if int(at_middle.sum()) > capacity:
            low_bits, at_low = _bits(most * 2.0**exponent), at_middle
            break
        high_bits, at_high = _bits(most * 2.0**exponent), at_middle
    result, room = at_high.copy(), capacity
    while high_bits - low_bits > 1 and int(at_high.sum()) != room:
        middle_bits = (low_bits + high_bits) // 2
        at_middle = search.pages(_number(middle_bits))
        if int(at_middle.sum()) > room:
            low_bits, at_low = middle_bits, at_middle
        else:
            high_bits, at_high = middle_bits, at_middle
        is_open = at_low != at_high
        if int(is_open.sum()) * 2 <= len(rows):
            result[rows] = at_high
            room -= int(at_high[~is_open].sum())
            still = np.flatnonzero(is_open)
            rows, at_low, at_high = rows[still], at_low[still], at_high[still]
            search.keep(still)
    # Rows that step at the same λ cannot all have their step.
    result[rows] = at_high
    step = result.copy()
    step[rows] = at_low
    return _filled(result, step, capacity - int(result.sum()), demand.giving_order), _number(high_bits)


def _log2(number: Float64 | np.float64) -> Float64:
    """Return log2, linear between powers of two: unlike the library's it never falls where it should rise."""
    mantissa, exponent = np.frexp(number)
    return np.asarray(exponent + 2.0 * mantissa - 2.0, dtype=np.float64)


def _bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))


def _number(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
