# SPDX-License-Identifier: Apache-2.0
"""Train a recurrent network beside the gate (longterm/recurrent.py), in numpy. A worker's file. Pure.

Through time the gradient is written out by hand (Werbos, "Backpropagation through time", 1990), and checked against
differences of the loss in tests/forecast/test_recurrent.py. Loss and way down are the gate's (descent.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.forecast import descent
from memsculpt.forecast.descent import Lessons, Network, Numbers
from memsculpt.forecast.longterm.recurrent import SIZE_FEATURES, UNIT_PARTS, UNITS, last_state

RECIPE = descent.Recipe(hidden=96, epochs=10, batch=192)
MOMENTS_MOST = 8000  # that one network learns from: 50 s of one core
SAID_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """How the state came about, of n sequences; what the gradient needs. Shape (points, n, ...)."""

    states: Numbers  # before each point, and after the last
    gates: Numbers  # keep and reset
    fresh: Numbers
    held: Numbers  # what the reset gate multiplies


def learn(lessons: Lessons, sequences: Numbers, rows: Int64, seed: int, recipe: descent.Recipe = RECIPE) -> Network:
    """Return a network trained on at most MOMENTS_MOST of `rows`; the same for the same seed.

    `sequences` has shape (n, points, channels), any kind of float; `lessons` are of the same n moments.
    """
    chance = np.random.Generator(np.random.PCG64(seed))
    network = started(lessons, sequences.shape[2], recipe.hidden, chance)
    first = {name: np.zeros_like(part) for name, part in network.items()}
    second = {name: np.zeros_like(part) for name, part in network.items()}
    taught = chance.permutation(rows)[:MOMENTS_MOST]
    batches = max(len(taught) // recipe.batch, 1)
    step, steps = 0, recipe.epochs * batches
    for _ in range(recipe.epochs):
        order = chance.permutation(taught)
        for number in range(batches):
            chosen = order[number * recipe.batch : (number + 1) * recipe.batch]
            part = lessons.of(chosen)
            kept = (chance.random((len(chosen), UNITS), dtype=np.float32) >= recipe.dropped).astype(np.float32)
            _, gradient = loss(network, part, sequences[chosen].astype(np.float32), kept)
            rate = recipe.rate * descent.rate_at(step, steps)
            descent.descend(network, gradient, first, second, step=step, rate=rate, recipe=recipe)
            step += 1
    return network


def started(lessons: Lessons, channels: int, hidden: int, chance: np.random.Generator) -> Network:
    """Return a network to begin with. Its unit keeps what it holds at first, so that early points are not forgotten."""

    def drawn(*shape: int, inputs: int) -> Numbers:
        return (chance.uniform(-1.0, 1.0, shape) * inputs**-0.5).astype(np.float32)

    network: Network = {
        "read_weight": drawn(channels, 3 * UNITS, inputs=channels),
        "state_weight": drawn(UNITS, 3 * UNITS, inputs=UNITS),
        "read_bias": np.concatenate((np.ones(UNITS), np.zeros(2 * UNITS))).astype(np.float32),
        "state_bias": np.zeros(UNITS, np.float32),
    }
    inputs = replace(lessons, features=np.zeros((1, UNITS + SIZE_FEATURES), np.float32))
    for name, shape in descent.shapes(inputs, hidden).items():
        is_random = name in ("in_weight", "hidden_weight")
        network[name] = drawn(*shape, inputs=shape[0]) if is_random else np.zeros(shape, np.float32)
    return network


def peaks(network: Mapping[str, Numbers], lessons: Lessons, sequences: Numbers) -> Numbers:
    """Return the quantiles of the peak that a network says, shape (n, levels)."""
    said: list[Numbers] = []
    for rows in np.array_split(np.arange(len(sequences)), len(sequences) // SAID_AT_ONCE + 1):
        state = last_state(network, sequences[rows].astype(np.float32))
        part = lessons.of(rows)
        said.append(descent.peaks(network, replace(part, features=_joined(state, part))))
    return np.concatenate(said)


def loss(network: Mapping[str, Numbers], lessons: Lessons, sequences: Numbers, kept: Numbers) -> tuple[float, Network]:
    """Return the mean loss of these moments, and its gradient in each part of the network.

    `kept` is 1 where a unit of the last state is seen, else 0; shape (n, UNITS).
    """
    way = _forward(network, sequences)
    total, gradient, of_features = descent.loss_and_slopes(network, lessons, _joined(way.states[-1] * kept, lessons))
    return total, gradient | _backward(network, sequences, way, of_features[:, :UNITS] * kept)


def _joined(state: Numbers, lessons: Lessons) -> Numbers:
    return np.concatenate((state, lessons.features[:, :SIZE_FEATURES]), axis=1)


def _forward(network: Mapping[str, Numbers], sequences: Numbers) -> _Way:
    """Do as `last_state` does, and keep the way."""
    weight, bias = network["state_weight"], network["state_bias"]
    read = (sequences @ network["read_weight"] + network["read_bias"]).transpose(1, 0, 2)
    points, count, units = len(read), len(sequences), len(bias)
    states = np.zeros((points + 1, count, units), weight.dtype)
    gates = np.empty((points, count, 2 * units), weight.dtype)
    fresh, held = np.empty_like(states[1:]), np.empty_like(states[1:])
    for point in range(points):
        seen, from_state = read[point], states[point] @ weight
        gates[point] = _sigmoid(from_state[:, : 2 * units] + seen[:, : 2 * units])
        held[point] = from_state[:, 2 * units :] + bias
        fresh[point] = np.tanh(gates[point, :, units:] * held[point] + seen[:, 2 * units :])
        states[point + 1] = fresh[point] + gates[point, :, :units] * (states[point] - fresh[point])
    return _Way(states=states, gates=gates, fresh=fresh, held=held)


def _backward(network: Mapping[str, Numbers], sequences: Numbers, way: _Way, of_state: Numbers) -> Network:
    """Return the gradient in UNIT_PARTS, for what the last state is worth."""
    points, count, units = way.fresh.shape
    back = np.ascontiguousarray(network["state_weight"].T)
    of_read = np.empty((points, count, 3 * units), of_state.dtype)
    of_held = np.empty_like(of_read)
    gate_slope = way.gates * (1.0 - way.gates)
    fresh_slope = 1.0 - way.fresh * way.fresh
    for point in reversed(range(points)):
        keep, reset = way.gates[point, :, :units], way.gates[point, :, units:]
        of_fresh = of_state * (1.0 - keep) * fresh_slope[point]
        of_read[point, :, :units] = of_state * (way.states[point] - way.fresh[point]) * gate_slope[point, :, :units]
        of_read[point, :, units : 2 * units] = of_fresh * way.held[point] * gate_slope[point, :, units:]
        of_read[point, :, 2 * units :] = of_fresh
        of_held[point] = of_read[point]
        of_held[point, :, 2 * units :] *= reset
        of_state = of_state * keep + of_held[point] @ back
    flat_read, flat_held = of_read.reshape(-1, 3 * units), of_held.reshape(-1, 3 * units)
    seen = sequences.transpose(1, 0, 2).reshape(points * count, -1)
    found = (
        seen.T @ flat_read,
        way.states[:-1].reshape(-1, units).T @ flat_held,
        flat_read.sum(axis=0),
        flat_held[:, 2 * units :].sum(axis=0),
    )
    return dict(zip(UNIT_PARTS, found, strict=True))


def _sigmoid(values: Numbers) -> Numbers:
    """Return the logistic function, by tanh, which neither overflows nor warns."""
    half = values.dtype.type(0.5)
    return half + half * np.tanh(half * values)
