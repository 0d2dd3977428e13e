# SPDX-License-Identifier: Apache-2.0
"""Training by hand-written gradients: they are those of the loss, and the way goes down."""

from dataclasses import replace

import numpy as np
import pytest

from memsculpt.forecast import descent
from memsculpt.forecast.longterm.gate import BETWEEN, PATH_KNOTS, Gate
from memsculpt.forecast.longterm.moment import LEVELS, STEPS, Moment
from memsculpt.forecast.longterm.spread import PLAIN

FEATURES, PEAKS, PATHS = 7, 6, 4


def lessons(count=40, seed=0):
    """Moments of which the first candidate is nearly the truth where the first feature is positive, else the second."""
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(count, FEATURES))
    truth = chance.gamma(2.0, 10.0, size=(count, STEPS))
    peak = truth[:, :12].max(axis=1)
    softened = chance.uniform(5.0, 50.0, size=count)
    ratios = chance.normal(size=(count, PEAKS))
    told = np.where(features[:, 0] > 0, 0, 1)
    ratios[np.arange(count), told] = np.log((peak + 0.2) / softened)
    paths = chance.gamma(2.0, 10.0, size=(count, len(LEVELS), PATHS, STEPS))
    return descent.Lessons(
        features=features.astype(np.float32),
        ratios=ratios.astype(np.float32),
        paths=paths.astype(np.float32),
        truth=truth.astype(np.float32),
        softened=softened.astype(np.float32),
        least=np.full(count, 0.2, np.float32),
        scale=chance.uniform(1.0, 5.0, size=count).astype(np.float32),
        capacity=np.full(count, 200.0, np.float32),
    )


def doubled(part):
    """The same with 64 bits, so that differences are exact enough."""
    return descent.Lessons(**{name: getattr(part, name).astype(np.float64) for name in part.__slots__})


def started(part, seed=1, size=0.3):
    chance = np.random.default_rng(seed)
    return {name: chance.normal(size=shape) * size for name, shape in descent.shapes(part, 16).items()}


def test_gradients_are_those_of_the_loss():
    part = doubled(lessons())
    network = started(part)
    _, gradient = descent.loss(network, part, part.features)
    chance = np.random.default_rng(2)
    for name, values in network.items():
        way = chance.normal(size=values.shape)
        step = 1e-6
        ahead, _ = descent.loss({**network, name: values + step * way}, part, part.features)
        behind, _ = descent.loss({**network, name: values - step * way}, part, part.features)
        assert np.vdot(gradient[name], way) == pytest.approx((ahead - behind) / (2 * step), rel=2e-3, abs=1e-7), name


def test_training_finds_whom_to_believe():
    """Which candidate is right is told by a feature; after training the loss is a fraction of what it was."""
    part = lessons(1000)
    network = descent.learn(part, np.arange(800), 3, descent.Recipe(hidden=16, batch=32, epochs=60))
    unseen = part.of(np.arange(800, 1000))
    plain = {name: np.zeros(shape, np.float32) for name, shape in descent.shapes(part, 16).items()}
    truth = unseen.truth[:, :12].max(axis=1)
    before = np.abs(descent.peaks(plain, unseen)[:, 0] - truth).mean()
    after = np.abs(descent.peaks(network, unseen)[:, 0] - truth).mean()
    assert after < 0.5 * before, (after, before)


def test_the_same_seed_gives_the_same_network():
    part = lessons(512)
    first, again, other = (descent.learn(part, np.arange(512), seed, descent.Recipe()) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["in_weight"], other["in_weight"])


def test_training_and_running_say_the_same():
    """What the gate says in the agent is what the network said where it was trained."""
    part = lessons(8)
    network = {name: values.astype(np.float32) for name, values in started(part).items()}
    said = descent.peaks(network, part)
    gate = Gate(
        covariates=(),
        mean=np.zeros(FEATURES, np.float32),
        spread=np.ones(FEATURES, np.float32),
        networks=(network,),
        stretch=np.ones(len(LEVELS)),
        law=PLAIN,
        peak_trust=np.ones(1),
        path_trust=np.ones(1),
    )
    for row in range(8):
        peaks = np.exp(part.ratios[row].astype(float)) * part.softened[row] - part.least[row]
        peak, path = gate.apply(
            Moment(
                features=part.features[row],
                peaks=peaks,
                paths=part.paths[row].transpose(1, 0, 2).astype(float),
                reference=float(part.softened[row] - part.least[row]),
                least=float(part.least[row]),
                scale=float(part.scale[row]),
                capacity=1.0,
                stays=0.0,
                log_stretch=0.0,
            )
        )
        assert peak == pytest.approx(said[row], rel=1e-3, abs=1e-3)
        assert path.shape == (len(LEVELS), STEPS)
    assert BETWEEN.shape == (len(PATH_KNOTS), STEPS)


def test_the_rate_rises_and_falls_once():
    rates = [descent.rate_at(step, 100) for step in range(100)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1.0)
    assert all(np.diff(rates[: top + 1]) > 0)
    assert all(np.diff(rates[top:]) < 0)
    assert rates[0] < 1 / 20
    assert rates[-1] < 1 / 1000


def test_a_steady_network_says_the_same_whatever_the_features():
    part = lessons(512)
    network = descent.learn(part, np.arange(512), 1, descent.Recipe(is_steady=True))
    other = replace(part, features=part.features + np.float32(3.0))
    assert np.array_equal(descent.peaks(network, part), descent.peaks(network, other))
    assert not np.array_equal(network["peak_bias"], np.zeros_like(network["peak_bias"]))
