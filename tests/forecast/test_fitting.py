# SPDX-License-Identifier: Apache-2.0
"""From recorded series to a gate."""

from dataclasses import replace

import numpy as np
import pytest

from memsculpt.errors import Refused
from memsculpt.forecast import descent, fitting
from memsculpt.forecast.longterm import LEVELS, STEPS, gate_from_bytes, look_ahead
from memsculpt.forecast.longterm.moment import FEATURES, PATH_NAMES, PEAK_NAMES
from memsculpt.forecast.longterm.spread import respread
from memsculpt.forecast.recorded import RecordedSeries
from tests.forecast.longterm.test_moment import history, wave

pytestmark = pytest.mark.timeout(120)  # twelve networks are trained


def recorded(points, seed):
    values = wave(points, seed=seed)
    return RecordedSeries(
        name=f"w{seed}",
        steps=np.arange(points),
        values=values,
        is_known=np.ones(points, np.bool_),
        capacity=np.full(points, 1000.0),
        covariates={"cpu": values / 10.0},
    )


def examples(moments=1200, series=12, seed=0):
    """Moments without sense, but of the right form."""
    chance = np.random.default_rng(seed)
    return fitting.Examples(
        series=np.repeat(np.arange(series), moments // series),
        features=chance.normal(size=(moments, FEATURES)).astype(np.float32),
        peaks=chance.gamma(2.0, 50.0, size=(moments, len(PEAK_NAMES))).astype(np.float32),
        paths=chance.gamma(2.0, 50.0, size=(moments, len(PATH_NAMES), len(LEVELS), STEPS)).astype(np.float32),
        truth=chance.gamma(2.0, 50.0, size=(moments, STEPS)).astype(np.float32),
        reference=np.full(moments, 100.0),
        least=np.full(moments, 2.0),
        scale=np.full(moments, 20.0),
        capacity=np.full(moments, 1000.0),
        log_stretch=np.zeros(moments),
    )


# Nothing can be learnt from moments without sense: twice over them is enough.
BRIEF = (descent.Recipe(epochs=2), replace(fitting.STEADY, epochs=2))


@pytest.fixture(scope="module")
def gate():
    return fitting.train(examples(), ("cpu",), recipes=BRIEF)


def test_moments_are_evenly_spread_and_know_what_came():
    found = fitting.examples_from([recorded(1500, 1), recorded(1500, 2)], 300.0, each=5)
    assert found.series.tolist() == [0] * 5 + [1] * 5
    assert found.features.shape == (10, FEATURES)
    assert found.truth.shape == (10, STEPS)
    assert (found.capacity == 1000.0).all()
    assert not np.array_equal(found.truth[0], found.truth[5])


def test_networks_are_trusted_in_all_with_one(gate):
    assert len(gate.networks) == fitting.PARTS * (fitting.SEEDS + 1)
    assert gate.peak_trust.sum() == pytest.approx(1.0)
    assert gate.path_trust.sum() == pytest.approx(1.0)
    steady = gate.path_trust == 0.0
    assert steady.sum() == fitting.PARTS
    assert gate.peak_trust[steady].sum() == pytest.approx(fitting.STEADY_RATIO)
    for network, is_steady in zip(gate.networks, steady, strict=True):
        assert np.any(network["in_weight"]) != is_steady


def test_what_was_trained_is_kept_and_used(gate):
    again = gate_from_bytes(gate.to_bytes())
    one = history(wave(2000), covariates={"cpu": wave(2000)})
    first, second = look_ahead(one, gate), look_ahead(one, again)
    assert np.allclose(first.peak, second.peak, rtol=1e-5)
    assert (np.diff(first.peak) >= 0.0).all()
    assert not np.allclose(first.peak, look_ahead(one).peak)


def test_the_same_examples_give_the_same_gate(gate):
    assert fitting.train(examples(), ("cpu",), recipes=BRIEF).to_bytes() == gate.to_bytes()


def test_too_little_is_refused():
    with pytest.raises(Refused, match="too few to learn from"):
        fitting.train(examples(moments=120), ())
    with pytest.raises(Refused, match="of 4 series"):
        fitting.train(examples(series=4), ())


def test_how_wide_the_top_has_to_be_is_found_on_the_kind_that_is_forecast():
    """What is learnt from beside may be livelier: it does not widen forecasts of the calm kind."""
    calm, mixed = examples(moments=600), examples(moments=1200)
    unseen = np.tile([100.0, 150.0, 250.0], (600, 1))
    calm.truth[:] = np.linspace(90.0, 200.0, 600)[:, np.newaxis]
    mixed.truth[:600], mixed.truth[600:] = calm.truth, 900.0

    alone = fitting._spreads(unseen, calm, None)
    beside = fitting._spreads(unseen, mixed, 600)
    together = fitting._spreads(np.tile(unseen, (2, 1)), mixed, None)

    assert np.array_equal(alone[0], beside[0])
    assert alone[1] == beside[1]
    assert together[1].log_factor > alone[1].log_factor + 0.5


def test_the_top_holds_as_often_as_it_should_on_what_no_network_saw():
    own = examples(moments=1200)
    peaks = own.truth[:, :12].max(axis=1)
    unseen = np.tile([80.0, 250.0, 350.0], (1200, 1))
    stretch, law = fitting._spreads(unseen, own, None)
    stretched = unseen[:, :1] + stretch * (unseen - unseen[:, :1])
    top = respread(stretched, own.capacity, own.log_stretch, law)[:, -1]
    assert (peaks > top).mean() == pytest.approx(0.01, abs=0.005)
