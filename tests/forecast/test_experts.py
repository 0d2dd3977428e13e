# SPDX-License-Identifier: Apache-2.0
"""The contract of experts: a new one in `EXPERTS` is tested by being there."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.forecast.experts import EXPERTS
from memsculpt.forecast.memory import N_ONSETS
from memsculpt.forecast.protocol import Expert, Series

HORIZONS_S = (3.0, 10.0, 60.0)
HISTORY = 80


@st.composite
def series(draw) -> Series:
    """Any past that the engine may hand over, also of no workload at all."""
    count = draw(st.integers(0, 5))
    chance = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    now_s = draw(st.floats(0, 1e6))
    ring = chance.uniform(0, 1e9, (count, HISTORY)) * chance.integers(0, 2, (count, 1))
    onsets = now_s - np.cumsum(chance.uniform(0.1, 40.0, (count, N_ONSETS)), axis=1)[:, ::-1]
    known = chance.integers(0, N_ONSETS + 1, count)
    unknown = np.arange(N_ONSETS) < (N_ONSETS - known)[:, np.newaxis]
    return Series(
        now_s=now_s,
        grid_s=1.0,
        need_bytes=ring[:, -1].copy(),
        ring_bytes=ring,
        known_count=chance.integers(0, HISTORY + 1, count).astype(np.float64),
        growth_bytes_per_s=chance.uniform(0, 1e8, count) * chance.integers(0, 2, count),
        is_active=chance.random(count) < 0.5,
        onset_s=np.where(unknown, np.nan, onsets),
        phase_peaks_bytes=np.where(unknown, np.nan, chance.uniform(0, 1e9, (count, N_ONSETS))),
        season_s=np.where(chance.random(count) < 0.5, np.nan, chance.uniform(2.0, 60.0, count)),
    )


def each_expert(test):
    return pytest.mark.parametrize("expert", EXPERTS, ids=lambda expert: expert.name)(test)


@each_expert
@settings(max_examples=30)
@given(past=series())
def test_a_peak_for_each_horizon_finite_not_negative_and_not_falling(expert: Expert, past):
    """Shape (n, n_horizons), and a longer horizon never has a lower peak."""
    peaks = expert.expect_peak(past, HORIZONS_S)

    assert peaks.shape == (len(past.need_bytes), len(HORIZONS_S))
    assert np.isfinite(peaks).all()
    assert (peaks >= 0.0).all()
    assert (np.diff(peaks, axis=1) >= 0.0).all()


@each_expert
@settings(max_examples=30)
@given(past=series())
def test_an_expert_is_a_function_that_leaves_its_input_alone(expert: Expert, past):
    """The same series twice gives the same answers, and nobody writes into it."""
    before = pickle.dumps(past)
    first, second = (expert.expect_peak(past, HORIZONS_S) for _ in range(2))
    confident = expert.is_confident(past)

    assert pickle.dumps(past) == before
    assert first.tobytes() == second.tobytes()
    assert confident.shape == (len(past.need_bytes),)
    assert confident.dtype == np.bool_


@each_expert
def test_an_expert_says_what_it_is(expert: Expert):
    """`explain` prints the name, readers read the docstring."""
    assert expert.name
    assert [other.name for other in EXPERTS].count(expert.name) == 1
    assert type(expert).__doc__
