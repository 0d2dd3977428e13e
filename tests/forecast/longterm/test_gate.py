# SPDX-License-Identifier: Apache-2.0
"""Gates: what they say, and how they are kept."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.errors import CorruptRecord, Refused
from memsculpt.forecast.longterm import LEVELS, STEPS, Gate, gate_from_bytes, look_ahead, prior
from memsculpt.forecast.longterm.gate import HEAD_BYTES, PARTS, PATH_KNOTS, VERSION
from memsculpt.forecast.longterm.history import cleaned
from memsculpt.forecast.longterm.moment import FEATURES, PATH_NAMES, PEAK_NAMES, describe
from memsculpt.forecast.longterm.spread import PLAIN
from tests.forecast.longterm.test_moment import history, wave

HIDDEN = 4
OUTPUTS = {
    "peak": len(LEVELS) * len(PEAK_NAMES),
    "lift": len(LEVELS),
    "path": len(LEVELS) * len(PATH_KNOTS) * len(PATH_NAMES),
    "shift": len(LEVELS) * len(PATH_KNOTS),
}


def made(seed=0, spread=0.3, networks=2, stretch=(1.0, 1.0, 1.0)):
    """A gate as training could have left it."""
    chance = np.random.default_rng(seed)

    def of(*shape):
        return (chance.normal(size=shape) * spread).astype(np.float32)

    def network():
        inner = {
            "in_weight": of(FEATURES, HIDDEN),
            "in_bias": of(HIDDEN),
            "hidden_weight": of(HIDDEN, HIDDEN),
            "hidden_bias": of(HIDDEN),
        }
        for name, count in OUTPUTS.items():
            inner |= {f"{name}_weight": of(HIDDEN, count), f"{name}_bias": of(count)}
        return {name: inner[name] for name in PARTS}

    return Gate(
        covariates=("cpu",),
        mean=of(FEATURES),
        spread=np.abs(of(FEATURES)) + np.float32(0.1),
        networks=tuple(network() for _ in range(networks)),
        stretch=np.array(stretch),
        law=PLAIN,
        peak_trust=np.full(networks, 1.0 / networks),
        path_trust=np.full(networks, 1.0 / networks),
    )


def test_an_untrained_gate_is_the_plain_mean_of_its_candidates():
    gate = made(spread=0.0)
    moment = describe(cleaned(history(wave(4000))))
    peak, path = gate.apply(moment)
    softened = moment.reference + moment.least
    mean = np.exp(np.log((moment.peaks + moment.least) / softened).mean()) * softened - moment.least
    assert np.allclose(peak, mean)
    assert np.allclose(path[0], moment.paths[:, 0].mean(axis=0))


def test_what_is_said_lies_among_the_candidates():
    """Without a correction no gate says more than the most that the workload has shown."""
    moment = describe(cleaned(history(wave(4000))))
    for seed in range(5):
        gate = made(seed)
        for network in gate.networks:
            for name in ("lift_weight", "lift_bias", "shift_weight", "shift_bias"):
                network[name][...] = 0.0
        peak, path = gate.apply(moment)
        assert moment.peaks.min() - 1e-6 <= peak.min()
        assert peak.max() <= moment.peaks.max() + 1e-6
        assert path.max() <= moment.paths.max() + 1e-6


def test_a_stretch_widens_what_lies_above_the_median():
    moment = describe(cleaned(history(wave(4000))))
    plain, _ = made(1).apply(moment)
    wider, _ = made(1, stretch=(1.0, 1.5, 2.0)).apply(moment)
    assert np.allclose(wider - wider[0], (plain - plain[0]) * np.array([1.0, 1.5, 2.0]))


def test_the_bytes_give_the_same_gate():
    gate = made(3)
    again = gate_from_bytes(gate.to_bytes())
    assert again.covariates == gate.covariates
    moment = describe(cleaned(history(wave(2000))))
    for first, second in zip(gate.apply(moment), again.apply(moment), strict=True):
        assert np.array_equal(first, second)
    assert gate.to_bytes() == again.to_bytes()


@given(st.data())
def test_whatever_is_changed_in_the_bytes_is_noticed(data):
    content = bytearray(made(networks=1).to_bytes())
    cut = data.draw(st.booleans())
    place = data.draw(st.integers(0, len(content) - 1))
    if cut:
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CorruptRecord, Refused)):
        gate_from_bytes(bytes(content), "here")


def test_a_gate_of_another_version_is_refused():
    content = bytearray(made(networks=1).to_bytes())
    content[8:12] = (VERSION + 1).to_bytes(4, "little")
    with pytest.raises(Refused, match="newer memsculpt"):
        gate_from_bytes(bytes(content))
    content[8:12] = (1).to_bytes(4, "little")
    with pytest.raises(Refused, match="older memsculpt"):
        gate_from_bytes(bytes(content))
    assert HEAD_BYTES == 56


def test_a_gate_uses_what_it_was_trained_on():
    """Covariates that it does not know are left out, those that are missing say nothing; neither is an error."""
    gate = made(2)
    plain = look_ahead(history(wave(3000)), gate)
    other = look_ahead(history(wave(3000), covariates={"disk": wave(3000, seed=9)}), gate)
    assert np.array_equal(plain.peak, other.peak)
    assert plain.path.shape == (len(LEVELS), STEPS)


def test_the_prior_s_weights_are_weights():
    for weights in prior.PEAK_WEIGHTS:
        assert sum(weights.values()) == pytest.approx(1.0, abs=0.01)
        assert set(weights) <= set(PEAK_NAMES)
    for by_name in prior.PATH_WEIGHTS:
        assert set(by_name) <= set(PATH_NAMES)
        assert np.array(list(by_name.values())).sum(axis=0) == pytest.approx(1.0, abs=0.03)


def test_networks_count_as_much_as_they_are_trusted():
    """The peak is the trusted mean of the networks; one that is not trusted with the path says nothing of it."""
    moment = describe(cleaned(history(wave(4000))))
    both = made(1)
    alone = [replace(both, networks=(one,), peak_trust=np.ones(1), path_trust=np.ones(1)) for one in both.networks]
    (first, path), (second, _) = (gate.apply(moment) for gate in alone)
    peak, mixed = replace(both, peak_trust=np.array([0.7, 0.3]), path_trust=np.array([1.0, 0.0])).apply(moment)
    assert np.allclose(peak, 0.7 * first + 0.3 * second)
    assert np.allclose(mixed, path)
