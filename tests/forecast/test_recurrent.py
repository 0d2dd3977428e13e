# SPDX-License-Identifier: Apache-2.0
"""The recurrent network beside the gate: its gradient through time, what it reads, and that both forms say the same."""

import numpy as np
import pytest

from memsculpt.forecast import descent, recurrent_descent
from memsculpt.forecast.longterm.history import cleaned
from memsculpt.forecast.longterm.moment import describe
from memsculpt.forecast.longterm.recurrent import UNITS, last_state
from memsculpt.forecast.longterm.sequence import AGO, BOUND, CHANNELS, POINTS, sequence_of
from tests.forecast.longterm.test_moment import history, wave
from tests.forecast.test_descent import doubled, lessons

SHORT = 9  # points of a sequence where a gradient is checked


def sequences(count, points=SHORT, channels=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, points, channels))


def started(part, channels=4):
    """A network with 64 bits, no part of which is zero."""
    chance = np.random.default_rng(1)
    begun = recurrent_descent.started(part, channels, 16, chance)
    return {name: values.astype(np.float64) + 0.1 * chance.normal(size=values.shape) for name, values in begun.items()}


def test_gradients_through_time_are_those_of_the_loss():
    part, read = doubled(lessons()), sequences(40)
    network = started(part)
    kept = (np.random.default_rng(3).random((40, UNITS)) > 0.2).astype(np.float64)
    _, gradient = recurrent_descent.loss(network, part, read, kept)
    assert set(gradient) == set(network)
    chance = np.random.default_rng(2)
    for name, values in network.items():
        way, step = chance.normal(size=values.shape), 1e-6
        ahead, _ = recurrent_descent.loss({**network, name: values + step * way}, part, read, kept)
        behind, _ = recurrent_descent.loss({**network, name: values - step * way}, part, read, kept)
        assert np.vdot(gradient[name], way) == pytest.approx((ahead - behind) / (2 * step), rel=2e-3, abs=1e-7), name


def test_training_hears_what_the_points_say():
    """Which candidate is right is told by a channel alone; after training it is believed."""
    part = lessons(600)
    told = np.where(part.features[:, 0] > 0, 1.0, -1.0)
    read = sequences(600)
    read[:, 3:7, 0] = 3.0 * told[:, np.newaxis]  # not where it ends: it has to be remembered
    recipe = descent.Recipe(hidden=16, batch=32, epochs=60, rate=5e-3, dropped=0.0)
    deaf = descent.Lessons(**{name: getattr(part, name) for name in part.__slots__} | {"features": 0.0 * part.features})
    network = recurrent_descent.learn(deaf, read, np.arange(480), 3, recipe)
    unseen = np.arange(480, 600)
    truth = part.truth[unseen, :12].max(axis=1)
    after = np.abs(recurrent_descent.peaks(network, deaf.of(unseen), read[unseen])[:, 0] - truth).mean()
    silent = np.abs(recurrent_descent.peaks(network, deaf.of(unseen), 0.0 * read[unseen])[:, 0] - truth).mean()
    assert after < 0.6 * silent, (after, silent)


def test_the_same_seed_gives_the_same_network():
    part, read = lessons(256), sequences(256)
    recipe = descent.Recipe(hidden=8, batch=64, epochs=1)
    first, again, other = (recurrent_descent.learn(part, read, np.arange(256), seed, recipe) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["state_weight"], other["state_weight"])


def test_one_sequence_says_what_it_says_among_many_and_where_it_is_trained():
    network, read = started(lessons()), sequences(5)
    together = last_state(network, read)
    assert together.shape == (5, UNITS)
    assert recurrent_descent._forward(network, read).states[-1] == pytest.approx(together)
    for row in range(5):
        assert last_state(network, read[row : row + 1])[0] == pytest.approx(together[row])


@pytest.mark.parametrize("points", [1, 100, 400, 5000])
def test_of_any_history_there_is_a_sequence(points):
    whole = cleaned(history(wave(points), covariates={"cpu": wave(points)}))
    found = sequence_of(whole, describe(whole))
    assert found.shape == (POINTS, CHANNELS)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= BOUND


def test_a_sequence_has_no_scale():
    """The same history in another unit, on a machine as much larger, reads alike."""
    values = wave(3000)
    small = cleaned(history(values, capacity=1000.0))
    large = cleaned(history(64.0 * values, capacity=64_000.0))
    assert sequence_of(small, describe(small)) == pytest.approx(sequence_of(large, describe(large)), abs=1e-4)


def test_the_last_point_is_now_and_points_go_back_two_days():
    values = wave(3000)
    values[-1] = values.max() * 2.0
    whole = cleaned(history(values, capacity=4.0 * values.max()))
    found = sequence_of(whole, describe(whole))
    assert AGO[-1] == 0
    assert AGO[0] == 60 + 6 * 59
    assert (np.diff(AGO) < 0).all()
    assert found[-1, 0] == found[:, 0].max()
    assert found[-1, 11] == 0.0  # how far it is from now
