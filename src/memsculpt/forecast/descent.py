# SPDX-License-Identifier: Apache-2.0
"""Train one network of a gate: its loss, the gradient of it, and the way down. numpy alone; a worker's file. Pure.

The network is the one that `longterm/gate.py` runs. Gradients are written out by hand (there are two layers and four
outputs), and checked against differences of the loss in tests/forecast/test_descent.py. The way down is Adam with
decoupled weight decay (Kingma and Ba, 2015; Loshchilov and Hutter, 2019), the gradient's length bounded, the rate
rising and falling once (Smith and Topin, "Super-convergence", 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.forecast.longterm.gate import BETWEEN, LOG_BOUND, PATH_KNOTS
from memsculpt.forecast.longterm.history import LEVELS, PEAK_STEPS, STEPS

Numbers: TypeAlias = npt.NDArray[np.floating]
"""32 bits where a network is trained; what is checked by differences has 64."""

Network: TypeAlias = dict[str, Numbers]

GRADIENT_MOST = 1.0
RISING = 0.3  # share of all steps in which the rate rises
RATE_RISE, RATE_FALL = 25.0, 1e4  # how much lower the first rate is than the highest, and the last than the first
MOMENTUM, SQUARES = 0.9, 0.999
# The loss is of the peak in shares of capacity and as a logarithm of a ratio, and of the path in mean changes.
CAPACITY_WEIGHTS: Numbers = np.array((3.0, 6.0, 18.0), np.float32)
RATIO_WEIGHTS: Numbers = np.array((0.03, 0.06, 0.2), np.float32)
PATH_WEIGHTS: Numbers = np.array((0.2, 0.2, 0.4), np.float32)
PATH_LOSS_MOST = 50.0

_LEVELS: Numbers = np.array(LEVELS, np.float32)
_BETWEEN: Numbers = BETWEEN.astype(np.float32)
_GELU, _CUBE = np.float32(0.7978845608028654), np.float32(0.044715)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    hidden: int = 160  # units in each layer
    epochs: int = 12
    batch: int = 512
    rate: float = 2e-3  # the highest
    weight_decay: float = 1e-3
    dropped: float = 0.15  # share of the features that a moment is trained without
    is_steady: bool = False  # without any feature: the weights are the same for all moments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lessons:
    """What a network learns from: n moments as it sees them, and what came."""

    features: Numbers  # shape (n, features), standardised
    ratios: Numbers  # shape (n, peak candidates): logarithms of ratios to the softened median peak
    paths: Numbers  # shape (n, levels, path candidates, STEPS)
    truth: Numbers  # shape (n, STEPS)
    softened: Numbers  # shape (n,): the unit of the ratios
    least: Numbers  # shape (n,): what they are softened with
    scale: Numbers  # shape (n,): the unit of the path's loss
    capacity: Numbers  # shape (n,)

    def of(self, rows: Int64) -> "Lessons":
        """Return a part of the moments."""
        return Lessons(
            features=self.features[rows],
            ratios=self.ratios[rows],
            paths=self.paths[rows],
            truth=self.truth[rows],
            softened=self.softened[rows],
            least=self.least[rows],
            scale=self.scale[rows],
            capacity=self.capacity[rows],
        )


def shapes(lessons: Lessons, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part of a network for these lessons."""
    levels, knots = len(LEVELS), len(PATH_KNOTS)
    outputs = {
        "peak": levels * lessons.ratios.shape[1],
        "lift": levels,
        "path": levels * knots * lessons.paths.shape[2],
        "shift": levels * knots,
    }
    found: dict[str, tuple[int, ...]] = {
        "in_weight": (lessons.features.shape[1], hidden),
        "in_bias": (hidden,),
        "hidden_weight": (hidden, hidden),
        "hidden_bias": (hidden,),
    }
    for name, count in outputs.items():
        found |= {f"{name}_weight": (hidden, count), f"{name}_bias": (count,)}
    return found


def learn(lessons: Lessons, rows: Int64, seed: int, recipe: Recipe) -> Network:
    """Return a network trained on `rows` of the lessons; the same for the same seed. Some 20 s for 100,000 moments."""
    chance = np.random.Generator(np.random.PCG64(seed))
    network: Network = {}
    for name, shape in shapes(lessons, recipe.hidden).items():
        # Outputs begin as the plain mean of all candidates.
        is_random = name == "hidden_weight" or (name == "in_weight" and not recipe.is_steady)
        bound = shape[0] ** -0.5 if is_random else 0.0
        network[name] = (chance.uniform(-1.0, 1.0, shape) * bound).astype(np.float32)
    first = {name: np.zeros_like(part) for name, part in network.items()}
    second = {name: np.zeros_like(part) for name, part in network.items()}
    batches = max(len(rows) // recipe.batch, 1)
    step, steps = 0, recipe.epochs * batches
    for _ in range(recipe.epochs):
        order = chance.permutation(rows)
        for number in range(batches):
            part = lessons.of(order[number * recipe.batch : (number + 1) * recipe.batch])
            dropped = 1.0 if recipe.is_steady else recipe.dropped
            kept = chance.random(part.features.shape, dtype=np.float32) >= dropped
            _, gradient = loss(network, part, part.features * kept)
            _descend(
                network, gradient, first, second, step=step, rate=recipe.rate * rate_at(step, steps), recipe=recipe
            )
            step += 1
    return network


def rate_at(step: int, steps: int) -> float:
    """Return the rate of one step of `steps`, as a part of the highest: half a cosine up, then another down."""
    turn = max(RISING * steps - 1.0, 1.0)
    if step <= turn:
        low, high, done = 1.0 / RATE_RISE, 1.0, step / turn
    else:
        low, high, done = 1.0, 1.0 / RATE_RISE / RATE_FALL, (step - turn) / max(steps - 1.0 - turn, 1.0)
    return float(high + (low - high) * 0.5 * (1.0 + np.cos(np.pi * done)))


def _descend(
    network: Network, gradient: Network, first: Network, second: Network, *, step: int, rate: float, recipe: Recipe
) -> None:
    length = float(np.sqrt(sum(float(np.vdot(part, part)) for part in gradient.values())))
    bound = np.float32(min(1.0, GRADIENT_MOST / (length + 1e-6)))
    early, late = 1.0 - MOMENTUM ** (step + 1), (1.0 - SQUARES ** (step + 1)) ** 0.5
    for name, part in network.items():
        slope = gradient[name] * bound
        first[name] += np.float32(1.0 - MOMENTUM) * (slope - first[name])
        second[name] += np.float32(1.0 - SQUARES) * (slope * slope - second[name])
        root = np.sqrt(second[name]) * np.float32(1.0 / late) + np.float32(1e-8)
        network[name] = (
            part * np.float32(1.0 - rate * recipe.weight_decay) - np.float32(rate / early) * first[name] / root
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Said:
    """What a network says of n moments, and what the gradient needs."""

    inner: tuple[Numbers, Numbers]  # before the bend, shape (n, hidden)
    bent: tuple[Numbers, Numbers]  # after it
    peak_shares: Numbers  # shape (n, levels, peak candidates)
    path_shares: Numbers  # shape (n, levels, knots, path candidates)
    leading: Int64  # shape (n, levels): the level whose ratio each level has, as none may fall
    lifted: Numbers  # shape (n, levels)
    paths: Numbers  # shape (n, levels, STEPS)


def _say(network: Mapping[str, Numbers], lessons: Lessons, features: Numbers) -> _Said:
    count, levels, knots = len(features), len(LEVELS), len(PATH_KNOTS)
    outer = features @ network["in_weight"] + network["in_bias"]
    bent_outer = _bend(outer)
    inner = bent_outer @ network["hidden_weight"] + network["hidden_bias"]
    hidden = _bend(inner)

    def out(name: str, *shape: int) -> Numbers:
        return (hidden @ network[f"{name}_weight"] + network[f"{name}_bias"]).reshape(count, levels, *shape)

    peak_shares = _softmax(out("peak", lessons.ratios.shape[1]))
    raw = (peak_shares @ lessons.ratios[:, :, np.newaxis])[:, :, 0] + out("lift")
    lifted = np.maximum.accumulate(raw, axis=1)
    leading = np.maximum.accumulate(np.where(raw >= lifted, np.arange(levels), 0), axis=1)
    path_shares = _softmax(out("path", knots, lessons.paths.shape[2]))
    by_knot = path_shares @ lessons.paths  # (n, levels, knots, STEPS)
    paths = np.einsum("nlkh,kh->nlh", by_knot, _BETWEEN)
    paths += (out("shift", knots) @ _BETWEEN) * lessons.scale[:, np.newaxis, np.newaxis]
    return _Said(
        inner=(outer, inner),
        bent=(bent_outer, hidden),
        peak_shares=peak_shares,
        path_shares=path_shares,
        leading=leading,
        lifted=lifted,
        paths=paths,
    )


def peaks(network: Mapping[str, Numbers], lessons: Lessons) -> Numbers:
    """Return the quantiles of the peak that a network says, shape (n, levels)."""
    lifted = np.clip(_say(network, lessons, lessons.features).lifted, -LOG_BOUND, LOG_BOUND)
    return np.exp(lifted) * lessons.softened[:, np.newaxis] - lessons.least[:, np.newaxis]


def loss(network: Mapping[str, Numbers], lessons: Lessons, features: Numbers) -> tuple[float, Network]:
    """Return the mean loss of these moments, and its gradient in each part of the network.

    `features` are the lessons' own, or a thinned copy.
    """
    said = _say(network, lessons, features)
    count, levels = len(features), len(LEVELS)
    softened, least = lessons.softened[:, np.newaxis], lessons.least[:, np.newaxis]
    truth = lessons.truth[:, :PEAK_STEPS].max(axis=1)[:, np.newaxis]
    bounded = np.clip(said.lifted, -LOG_BOUND, LOG_BOUND)
    risen = np.exp(bounded) * softened
    capacity = lessons.capacity[:, np.newaxis]
    in_capacity, by_peak = _pinball(truth - (risen - least), _LEVELS)
    in_ratios, by_ratio = _pinball(np.log((truth + least) / softened) - said.lifted, _LEVELS)
    unit = lessons.scale[:, np.newaxis, np.newaxis]
    in_changes, by_path = _pinball((lessons.truth[:, np.newaxis] - said.paths) / unit, _LEVELS[:, np.newaxis])
    is_bound = in_changes > PATH_LOSS_MOST
    total = float(
        ((in_capacity / capacity).mean(axis=0) * CAPACITY_WEIGHTS).sum()
        + (in_ratios.mean(axis=0) * RATIO_WEIGHTS).sum()
        + (np.minimum(in_changes, PATH_LOSS_MOST).mean(axis=(0, 2)) * PATH_WEIGHTS).sum()
    )
    # Backwards from here on: what each output is worth, then what led to it.
    of_lifted = by_ratio * (RATIO_WEIGHTS / count)
    of_lifted += by_peak * risen / capacity * (CAPACITY_WEIGHTS / count) * (bounded == said.lifted)
    of_raw = np.zeros_like(of_lifted)
    for level in range(levels):
        np.add.at(of_raw, (np.arange(count), said.leading[:, level]), of_lifted[:, level])
    of_paths = np.where(is_bound, np.float32(0.0), by_path)
    of_paths *= (PATH_WEIGHTS / (count * STEPS))[:, np.newaxis]
    by_knot = (of_paths / unit)[:, :, np.newaxis, :] * _BETWEEN  # (n, levels, knots, STEPS)
    of_path_shares = by_knot @ lessons.paths.transpose(0, 1, 3, 2)
    of_outputs = {
        "peak": _through_softmax(said.peak_shares, of_raw[:, :, np.newaxis] * lessons.ratios[:, np.newaxis]),
        "lift": of_raw,
        "path": _through_softmax(said.path_shares, of_path_shares),
        "shift": of_paths @ _BETWEEN.T,
    }
    hidden = said.bent[1]
    gradient: Network = {}
    of_hidden = np.zeros_like(hidden)
    for name, of_output in of_outputs.items():
        flat = of_output.reshape(count, -1)
        gradient[f"{name}_weight"], gradient[f"{name}_bias"] = hidden.T @ flat, flat.sum(axis=0)
        of_hidden += flat @ network[f"{name}_weight"].T
    of_inner = of_hidden * _slope(said.inner[1])
    gradient["hidden_weight"], gradient["hidden_bias"] = said.bent[0].T @ of_inner, of_inner.sum(axis=0)
    of_outer = (of_inner @ network["hidden_weight"].T) * _slope(said.inner[0])
    gradient["in_weight"], gradient["in_bias"] = features.T @ of_outer, of_outer.sum(axis=0)
    return total, gradient


def _pinball(miss: Numbers, levels: Numbers) -> tuple[Numbers, Numbers]:
    """Return the pinball loss of truth minus forecast, and how it changes with the forecast."""
    short = miss > 0.0
    return np.where(short, levels * miss, (levels - 1.0) * miss), np.where(short, -levels, 1.0 - levels)


def _softmax(values: Numbers) -> Numbers:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _through_softmax(shares: Numbers, of_shares: Numbers) -> Numbers:
    return shares * (of_shares - (shares * of_shares).sum(axis=-1, keepdims=True))


def _bend(values: Numbers) -> Numbers:
    """Gaussian error linear unit, in its tanh form, as `gate.py` has it."""
    return np.float32(0.5) * values * (1.0 + np.tanh(_GELU * (values + _CUBE * values * values * values)))


def _slope(values: Numbers) -> Numbers:
    square = values * values
    bent = np.tanh(_GELU * (values + _CUBE * values * square))
    inner = _GELU * (1.0 + 3.0 * _CUBE * square)
    return np.float32(0.5) * (1.0 + bent + values * (1.0 - bent * bent) * inner)
