# SPDX-License-Identifier: Apache-2.0
"""The contract of experts: a new one in `EXPERTS` is tested by being there."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings

from memsculpt.forecast.experts import EXPERTS
from memsculpt.forecast.protocol import Expert
from tests.forecast.pasts import HORIZONS_S, series


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
