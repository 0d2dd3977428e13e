# SPDX-License-Identifier: Apache-2.0
"""Train the gate of the long-term forecaster. A worker's file: torch is loaded in here, and never in the agent.

The gate learns from many moments of many workloads: what a moment's candidates were (longterm/moment.py), and what came
in the next 36 points. The loss is the pinball loss at each level, of the peak in shares of the capacity and as a
logarithm of a ratio, of the path in the series' own mean absolute change: the units in which forecasts are judged.

Workloads are dealt into parts; each network is trained without one part, and forecasts that. From what is missed there
comes the stretch (gate.py).
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.errors import Refused, Unavailable
from memsculpt.forecast.longterm.gate import BETWEEN, LOG_BOUND, NORM_BOUND, PATH_KNOTS, Gate
from memsculpt.forecast.longterm.moment import (
    COVARIATES_MOST,
    FEATURES,
    LEVELS,
    MOST_POINTS,
    PATH_NAMES,
    PEAK_NAMES,
    PEAK_STEPS,
    STEPS,
    History,
    cleaned,
    describe,
)
from memsculpt.forecast.measures import origins
from memsculpt.forecast.recorded import DISTINCT_LEAST, RecordedSeries, read_table, usable

HIDDEN = 160
EPOCHS = 12
BATCH = 512
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
DROPPED_FEATURES = 0.15
PARTS, SEEDS = 4, 2
KNOWN_LEAST = 1000  # points of a series; shorter ones teach little
SERIES_LEAST, MOMENTS_LEAST = 8, 1000
MOMENTS_EACH, MOMENTS_BESIDE = 300, 40
CAPACITY_WEIGHTS, RATIO_WEIGHTS, PATH_WEIGHTS = (3.0, 6.0, 18.0), (0.03, 0.06, 0.2), (0.2, 0.2, 0.4)
PATH_LOSS_MOST = 50.0
TAIL_RISK = 0.01


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

    Raises UsageError (not a table), Refused (too little to learn from), Unavailable (no torch, no pyarrow).
    """
    first, covariates = _examples_of(own, MOMENTS_EACH)
    parts = [first]
    for source in beside:
        found, _ = _examples_of(source, MOMENTS_BESIDE)
        parts.append(replace(found, series=found.series + sum(len(np.unique(one.series)) for one in parts)))
    joined = Examples(
        **{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Examples)}
    )
    return train(joined, covariates, on_progress=on_progress)


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
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Gate:
    """Return a gate. Some 10 s a network for 100,000 moments on one core. Raises Unavailable without torch."""
    try:
        torch: Any = importlib.import_module("torch")  # Any: it is not there where types are checked
    except ImportError as error:
        raise Unavailable(
            place="training",
            problem=f"needs torch, which is not installed ({error})",
            fix="pip install torch (the CPU build), or memsculpt[train]; without a gate the forecaster uses its prior",
        ) from error
    series_count = len(np.unique(examples.series))
    if len(examples.series) < MOMENTS_LEAST or series_count < SERIES_LEAST:
        raise Refused(
            place="training",
            problem=f"{len(examples.series)} moments of {series_count} series are too few to learn from",
            fix=f"record longer: {MOMENTS_LEAST} moments of {SERIES_LEAST} series are the least; without a gate the "
            "forecaster uses its prior",
        )
    torch.manual_seed(seed)
    mean = examples.features.mean(axis=0)
    spread = examples.features.std(axis=0) + np.float32(1e-3)
    numbers = np.unique(examples.series)
    np.random.Generator(np.random.PCG64(seed)).shuffle(numbers)
    trained: list[dict[str, Any]] = []
    unseen = np.zeros((len(examples.series), len(LEVELS)))
    data = _Tensors(torch, examples, mean, spread)
    for part in range(PARTS):
        left_out: Bool = np.isin(examples.series, numbers[part::PARTS])
        for number in range(SEEDS):
            network = _train_one(torch, data, np.flatnonzero(~left_out), seed * 100 + part * SEEDS + number)
            unseen[left_out] += data.peaks(network, np.flatnonzero(left_out)) / SEEDS
            trained.append({name: value.detach().numpy().copy() for name, value in network.items()})
            if on_progress is not None:
                on_progress(len(trained), PARTS * SEEDS)
    return Gate(
        covariates=tuple(covariates)[:COVARIATES_MOST],
        mean=mean.astype(np.float32),
        spread=spread.astype(np.float32),
        networks=tuple(trained),
        stretch=_stretch(unseen, examples),
    )


def _stretch(unseen: Float64, examples: Examples) -> Float64:
    """Return what the spread above the median is multiplied with, so that each level holds as often as it should.

    Of the logarithm of what single parts need the average of all networks needs half: it was found to be so on series
    that none of them had seen, and lies between no correction and that of the parts.
    """
    peaks = examples.truth[:, :PEAK_STEPS].max(axis=1)
    found = [1.0]
    for number, level in enumerate(LEVELS[1:], start=1):
        spread = np.maximum(unseen[:, number] - unseen[:, 0], 1e-3 * examples.capacity)
        needed = np.maximum(peaks - unseen[:, 0], 0.0) / spread
        found.append(float(np.quantile(needed, level)) ** 0.5)
    return np.clip(np.array(found), 0.5, 2.0)


class _Tensors:
    """The examples as torch has them, and the network as a function of its parameters."""

    def __init__(self, torch: Any, examples: Examples, mean: Any, spread: Any) -> None:
        self.torch = torch
        softened = examples.reference + examples.least

        def of(values: Any) -> Any:
            return torch.tensor(np.asarray(values, np.float32))

        self.features = of(np.clip((examples.features - mean) / spread, -NORM_BOUND, NORM_BOUND))
        self.ratios = of(
            np.log((np.maximum(examples.peaks, 0.0) + examples.least[:, np.newaxis]) / softened[:, np.newaxis])
        )
        self.paths, self.truth = of(examples.paths), of(examples.truth)
        self.softened, self.least = of(softened), of(examples.least)
        self.scale, self.capacity = of(examples.scale), of(examples.capacity)
        self.between = of(BETWEEN)
        self.levels = of(LEVELS)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each part of a network."""
        levels, knots = len(LEVELS), len(PATH_KNOTS)
        peaks, paths = self.ratios.shape[1], self.paths.shape[1]
        outputs = {"peak": levels * peaks, "lift": levels, "path": levels * knots * paths, "shift": levels * knots}
        found = {
            "in_weight": (self.features.shape[1], HIDDEN),
            "in_bias": (HIDDEN,),
            "hidden_weight": (HIDDEN, HIDDEN),
            "hidden_bias": (HIDDEN,),
        }
        for name, count in outputs.items():
            found |= {f"{name}_weight": (HIDDEN, count), f"{name}_bias": (count,)}
        return found

    def run(self, network: dict[str, Any], rows: Any, features: Any) -> tuple[Any, Any]:
        """Return the logarithms of the peaks' ratios, (n, levels), and the paths, (n, levels, STEPS)."""
        torch = self.torch
        gelu = torch.nn.functional.gelu
        hidden = gelu(features @ network["in_weight"] + network["in_bias"], approximate="tanh")
        hidden = gelu(hidden @ network["hidden_weight"] + network["hidden_bias"], approximate="tanh")

        def out(name: str, *shape: int) -> Any:
            return (hidden @ network[f"{name}_weight"] + network[f"{name}_bias"]).view(-1, len(LEVELS), *shape)

        weights = torch.softmax(out("peak", self.ratios.shape[1]), -1)
        lifted = (weights * self.ratios[rows][:, None]).sum(-1) + out("lift")
        shares = torch.softmax(out("path", len(PATH_KNOTS), self.paths.shape[1]), -1)
        shares = torch.einsum("nlkc,kh->nlhc", shares, self.between)
        shifts = torch.einsum("nlk,kh->nlh", out("shift", len(PATH_KNOTS)), self.between)
        paths = torch.einsum("nlhc,nclh->nlh", shares, self.paths[rows]) + shifts * self.scale[rows][:, None, None]
        return torch.cummax(lifted, 1).values, paths

    def loss(self, network: dict[str, Any], rows: Any, features: Any) -> Any:
        """Return the mean loss."""
        torch, levels = self.torch, self.levels
        lifted, paths = self.run(network, rows, features)
        softened, least = self.softened[rows][:, None], self.least[rows][:, None]
        peaks = torch.exp(torch.clamp(lifted, -LOG_BOUND, LOG_BOUND)) * softened - least
        truth = self.truth[rows]
        peak = truth[:, :PEAK_STEPS].max(1).values[:, None]

        def pinball(miss: Any, levels: Any) -> Any:
            return torch.maximum(levels * miss, (levels - 1.0) * miss)

        in_capacity = (pinball(peak - peaks, levels) / self.capacity[rows][:, None]).mean(0)
        in_ratios = pinball(torch.log((peak + least) / softened) - lifted, levels).mean(0)
        misses = (truth[:, None] - paths) / self.scale[rows][:, None, None]
        in_changes = torch.clamp(pinball(misses, levels[:, None]), max=PATH_LOSS_MOST).mean((0, 2))
        return (
            (in_capacity * torch.tensor(CAPACITY_WEIGHTS)).sum()
            + (in_ratios * torch.tensor(RATIO_WEIGHTS)).sum()
            + (in_changes * torch.tensor(PATH_WEIGHTS)).sum()
        )

    def peaks(self, network: dict[str, Any], rows: Int64) -> Float64:
        """Return the quantiles of the peak for these rows, shape (n, levels)."""
        torch = self.torch
        index = torch.tensor(rows)
        with torch.no_grad():
            lifted, _ = self.run(network, index, self.features[index])
            raised = torch.exp(torch.clamp(lifted, -LOG_BOUND, LOG_BOUND)) * self.softened[index][:, None]
            return (raised - self.least[index][:, None]).numpy().astype(np.float64)


def _train_one(torch: Any, data: _Tensors, rows: Int64, seed: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    network: dict[str, Any] = {}
    for name, shape in data.shapes().items():
        is_inner = name in {"in_weight", "hidden_weight"}  # outputs begin as the plain mean of all candidates
        bound = (1.0 / shape[0]) ** 0.5 if is_inner else 0.0
        network[name] = ((torch.rand(shape, generator=chance) * 2.0 - 1.0) * bound).requires_grad_()
    parameters = list(network.values())
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = max(len(rows) // BATCH, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * batches)
    index = torch.tensor(rows)
    for _ in range(EPOCHS):
        order = index[torch.randperm(len(rows), generator=chance)]
        for number in range(batches):
            chosen = order[number * BATCH : (number + 1) * BATCH]
            features = data.features[chosen]
            kept = torch.rand(features.shape, generator=chance) > DROPPED_FEATURES
            loss = data.loss(network, chosen, features * kept)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
    return network
