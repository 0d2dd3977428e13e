# SPDX-License-Identifier: Apache-2.0
"""Train the gate of the long-term forecaster, in numpy. A worker's file: it takes minutes, and the agent has none.

The gate learns from many moments of many workloads: what a moment's candidates were (longterm/moment.py), and what came
in the next 36 points. The loss (descent.py) is the pinball loss at each level, of the peak in shares of the capacity
and as a logarithm of a ratio, of the path in the series' own mean absolute change: the units in which forecasts are
judged.

Workloads are dealt into parts; each network is trained without one part, and forecasts that. From what is missed there
comes the stretch (gate.py). A third of what is said of the peak comes from steady networks, which see no features: of
some hundred workloads a network learns when jumps come in these, and that does not hold for others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.errors import Refused
from memsculpt.forecast import descent
from memsculpt.forecast.longterm.gate import NORM_BOUND, Gate
from memsculpt.forecast.longterm.history import (
    COVARIATES_MOST,
    LEVELS,
    MOST_POINTS,
    PEAK_STEPS,
    STEPS,
    History,
    cleaned,
)
from memsculpt.forecast.longterm.moment import FEATURES, PATH_NAMES, PEAK_NAMES, describe
from memsculpt.forecast.longterm.spread import Law, respread
from memsculpt.forecast.measures import origins
from memsculpt.forecast.recorded import DISTINCT_LEAST, RecordedSeries, read_table, usable

PARTS, SEEDS = 4, 2
GATE = descent.Recipe()
STEADY = descent.Recipe(is_steady=True, hidden=4, rate=5e-3)
STEADY_RATIO = 0.35  # how much the steady networks count for the peak
# The replay counts by half: a gate sees the last hours and days itself, the prior does not.
LAW = Law(pooled=0.3, evened=0.1, log_factor=0.0, replayed=0.5)
PART_POINTS = 4096  # moments that are forecast at once: bounds the memory
KNOWN_LEAST = 1000  # points of a series; shorter ones teach little
SERIES_LEAST, MOMENTS_LEAST = 8, 1000
MOMENTS_EACH, MOMENTS_BESIDE = 150, 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Moments and what came after them, shape (n, ...)."""

    series: Int64
    features: Any
    peaks: Any
    paths: Any
    truth: Any  # (n, STEPS)
    reference: Float64
    least: Float64
    scale: Float64
    capacity: Float64
    log_stretch: Float64


def examples_from(
    series: Sequence[RecordedSeries], interval_s: float, *, each: int = MOMENTS_EACH, first_ratio: float = 0.15
) -> Examples:
    """Return up to `each` moments of every series, evenly spread after its first part. Some 6 ms a moment."""
    rows: list[tuple[Any, ...]] = []
    for number, one in enumerate(series):
        for at in origins(one.is_known, int(len(one.values) * first_ratio), each).tolist():
            begin = max(0, at + 1 - MOST_POINTS)
            moment = describe(
                cleaned(
                    History(
                        values=one.values[begin : at + 1],
                        covariates={name: column[begin : at + 1] for name, column in one.covariates.items()},
                        step=int(one.steps[at]),
                        interval_s=interval_s,
                        capacity=float(one.capacity[at]),
                    )
                )
            )
            rows.append(
                (
                    number,
                    moment.features,
                    moment.peaks,
                    moment.paths.astype(np.float32),
                    one.values[at + 1 : at + 1 + STEPS],
                    moment.reference,
                    moment.least,
                    moment.scale,
                    float(one.capacity[at]),
                    moment.log_stretch,
                )
            )
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(fields(Examples))
    return Examples(
        series=np.array(columns[0], np.int64),
        features=_stacked(columns[1], (FEATURES,)),
        peaks=_stacked(columns[2], (len(PEAK_NAMES),)),
        paths=_stacked(columns[3], (len(PATH_NAMES), len(LEVELS), STEPS)),
        truth=_stacked(columns[4], (STEPS,)),
        reference=np.array(columns[5]),
        least=np.array(columns[6]),
        scale=np.array(columns[7]),
        capacity=np.array(columns[8]),
        log_stretch=np.array(columns[9]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Parquet file to learn from."""

    path: str
    interval_s: float
    capacity: str | None = None  # a column, or a number; None: the largest value


def fit_tables(
    own: Source, beside: Sequence[Source] = (), *, on_progress: Callable[[int, int], None] | None = None
) -> Gate:
    """Train on `own`, and on a part of what is `beside` it: other kinds of series teach what jumps look like.

    Raises UsageError (not a table), Refused (too little to learn from), Unavailable (no pyarrow).
    """
    first, covariates = _examples_of(own, MOMENTS_EACH)
    parts = [first]
    for source in beside:
        found, _ = _examples_of(source, MOMENTS_BESIDE)
        parts.append(replace(found, series=found.series + sum(len(np.unique(one.series)) for one in parts)))
    joined = Examples(
        **{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Examples)}
    )
    return train(joined, covariates, own_count=len(first.series), on_progress=on_progress)


def fit_to_bytes(own: Source, beside: Sequence[Source]) -> bytes:
    """Train, and return the gate as it is kept: what a worker is asked for. Raises as `fit_tables`."""
    return fit_tables(own, beside).to_bytes()


def _examples_of(source: Source, each: int) -> tuple[Examples, tuple[str, ...]]:
    table = read_table(source.path, capacity=source.capacity)
    series = tuple(usable(table.series, KNOWN_LEAST))
    covariates = _telling(series, table.covariates)
    chosen = [replace(one, covariates={name: one.covariates[name] for name in covariates}) for one in series]
    return examples_from(chosen, source.interval_s, each=each), covariates


def _stacked(rows: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Return the rows as one array, which has its shape also where there is none."""
    return np.array(rows, np.float32).reshape(len(rows), *shape)


def _telling(series: Sequence[RecordedSeries], names: Sequence[str]) -> tuple[str, ...]:
    """Return the covariates that move within at least half of the series."""

    def moves(name: str) -> float:
        return float(np.mean([len(np.unique(one.covariates[name])) >= DISTINCT_LEAST for one in series]))

    return tuple(name for name in names if series and moves(name) >= 0.5)[:COVARIATES_MOST]


def train(
    examples: Examples,
    covariates: Sequence[str],
    *,
    own_count: int | None = None,
    seed: int = 0,
    recipes: tuple[descent.Recipe, descent.Recipe] = (GATE, STEADY),
    on_progress: Callable[[int, int], None] | None = None,
) -> Gate:
    """Return a gate; the same for the same examples and seed. Some 30 s a network for 100,000 moments on one core.

    The first `own_count` examples (None: all) are of the kind that will be forecast: how wide a spread has to be is
    found on these alone. `recipes` are of a gate's and of a steady network. Raises Refused with too few examples.
    """
    series_count = len(np.unique(examples.series))
    if len(examples.series) < MOMENTS_LEAST or series_count < SERIES_LEAST:
        raise Refused(
            place="training",
            problem=f"{len(examples.series)} moments of {series_count} series are too few to learn from",
            fix=f"record longer: {MOMENTS_LEAST} moments of {SERIES_LEAST} series are the least; without a gate the "
            "forecaster uses its prior",
        )
    mean = examples.features.mean(axis=0)
    spread = examples.features.std(axis=0) + np.float32(1e-3)
    numbers = np.unique(examples.series)
    np.random.Generator(np.random.PCG64(seed)).shuffle(numbers)
    trained: list[descent.Network] = []
    steady: list[bool] = []
    unseen = np.zeros((len(examples.series), len(LEVELS)))
    lessons = _lessons(examples, mean, spread)
    for part in range(PARTS):
        left_out: Bool = np.isin(examples.series, numbers[part::PARTS])
        unseen_rows = np.flatnonzero(left_out)
        for number in range(SEEDS + 1):
            is_steady = number == SEEDS
            network = descent.learn(
                lessons,
                np.flatnonzero(~left_out),
                (seed * PARTS + part) * (SEEDS + 1) + number,
                recipes[is_steady],
            )
            trust = STEADY_RATIO if is_steady else (1.0 - STEADY_RATIO) / SEEDS
            for rows in np.array_split(unseen_rows, len(unseen_rows) // PART_POINTS + 1):
                unseen[rows] += trust * descent.peaks(network, lessons.of(rows))
            trained.append(network)
            steady.append(is_steady)
            if on_progress is not None:
                on_progress(len(trained), PARTS * (SEEDS + 1))
    is_gate = 1.0 - np.array(steady, np.float64)
    of_gates = is_gate / is_gate.sum()
    stretch, law = _spreads(unseen[:own_count], examples, own_count)
    return Gate(
        covariates=tuple(covariates)[:COVARIATES_MOST],
        mean=mean.astype(np.float32),
        spread=spread.astype(np.float32),
        networks=tuple({name: part.astype(np.float32) for name, part in network.items()} for network in trained),
        stretch=stretch,
        law=law,
        peak_trust=(1.0 - STEADY_RATIO) * of_gates + STEADY_RATIO * (1.0 - is_gate) / (1.0 - is_gate).sum(),
        path_trust=of_gates,
    )


def _spreads(unseen: Float64, examples: Examples, own_count: int | None) -> tuple[Float64, Law]:
    """Return factors on what lies above the median, by level, and the law of the top's spread.

    Both are such that each level holds as often as it should. Of the logarithm of what the 0.9 quantile of single parts
    needs the average of all networks needs half: it was found to be so on series that none of them had seen, and lies
    between no correction and that of the parts. What the top needs under its law is taken in full.
    """
    peaks = examples.truth[:own_count, :PEAK_STEPS].max(axis=1)
    capacity, log_stretch = examples.capacity[:own_count], examples.log_stretch[:own_count]

    def needed(quantiles: Float64, number: int) -> float:
        spread = np.maximum(quantiles[:, number] - unseen[:, 0], 1e-3 * capacity)
        found = float(np.quantile(np.maximum(peaks - unseen[:, 0], 0.0) / spread, LEVELS[number]))
        return float(np.log(np.clip(found, 0.25, 4.0)))

    ninth = np.exp(0.5 * needed(unseen, 1))
    stretch = np.array([1.0, ninth, 1.0])
    stretched = unseen[:, :1] + stretch * (unseen - unseen[:, :1])
    of_top = needed(respread(stretched, capacity, log_stretch, LAW), -1)
    return stretch, replace(LAW, log_factor=of_top)


def _lessons(examples: Examples, mean: Any, spread: Any) -> descent.Lessons:
    softened = examples.reference + examples.least
    ratios = np.log((np.maximum(examples.peaks, 0.0) + examples.least[:, np.newaxis]) / softened[:, np.newaxis])
    return descent.Lessons(
        features=np.clip((examples.features - mean) / spread, -NORM_BOUND, NORM_BOUND).astype(np.float32),
        ratios=ratios.astype(np.float32),
        paths=np.ascontiguousarray(examples.paths.transpose(0, 2, 1, 3)),
        truth=examples.truth,
        softened=softened.astype(np.float32),
        least=examples.least.astype(np.float32),
        scale=examples.scale.astype(np.float32),
        capacity=examples.capacity.astype(np.float32),
    )
