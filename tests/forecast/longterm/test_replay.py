# SPDX-License-Identifier: Apache-2.0
"""What a workload's past says of forecasts of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.forecast.longterm.history import PEAK_STEPS, cleaned
from memsculpt.forecast.longterm.moment import describe
from memsculpt.forecast.longterm.near import ranks_of
from memsculpt.forecast.longterm.replay import (
    LEVEL,
    LOG_MOST,
    REPLAYED,
    SCORE_USUAL,
    STEP,
    height,
    log_stretch,
    replay,
    tracked,
)
from tests.forecast.longterm.test_moment import history, wave


def replayed(values, day=288):
    peaks_after = np.lib.stride_tricks.sliding_window_view(values[1:], PEAK_STEPS).max(axis=1)
    return replay(np.column_stack([ranks_of(values)] * 3), peaks_after, day)


@given(st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=200))
def test_the_share_exceeded_is_what_the_factor_says(scores):
    """The guarantee of quantile tracking: how far the share is from 1 % can be read from where the factor ended."""
    exceeded, factors = 0, [0.0]
    for number in range(len(scores)):
        exceeded += scores[number] > np.exp(factors[-1])
        factors.append(tracked(scores[: number + 1]))
    if max(np.abs(factors)) < LOG_MOST:
        share = exceeded / len(scores)
        assert abs(share - (1.0 - LEVEL)) == pytest.approx(abs(factors[-1]) / (STEP * len(scores)), abs=1e-9)


@given(st.lists(st.floats(0.0, 1e9), max_size=300))
def test_the_factor_has_bounds(scores):
    assert abs(tracked(scores)) <= LOG_MOST


def test_past_moments_are_forecast_from_what_was_before_them():
    """Peaks that came after a moment are not among its neighbours': a level never had before is not forecast."""
    values = np.concatenate([100.0 + wave(3000, level=1.0), 500.0 + wave(200, level=1.0)])
    found = replayed(values)
    assert found.shape == (REPLAYED, 4)
    before = found[:, 3] < 400.0
    assert (found[before, 2] < 400.0).all()
    first = np.flatnonzero(~before)[0]
    assert found[first, 2] < 400.0
    assert found[-1, 1] > 400.0


def test_quantiles_rise_and_the_truth_is_what_came():
    values = wave(5000)
    found = replayed(values)
    assert (np.diff(found[:, :3], axis=1) >= 0.0).all()
    assert found[-1, 3] == values[-PEAK_STEPS:].max()
    assert found[0, 3] == values[-PEAK_STEPS * REPLAYED :][:PEAK_STEPS].max()


def test_a_workload_that_has_become_livelier_is_given_more():
    chance = np.random.default_rng(1)
    calm = 100.0 + chance.random(4000)
    lively = calm.copy()
    lively[-400:] *= np.repeat(1.0 + chance.random(100) * (chance.random(100) < 0.4), 4)
    settled, changed = (describe(cleaned(history(values))).log_stretch for values in (calm, lively))
    assert settled < -STEP * (1.0 - LEVEL) * REPLAYED
    assert changed > settled + 0.2


def test_scores_count_by_their_height_before_any_is_a_miss():
    assert height(np.full(30, SCORE_USUAL)) == pytest.approx(0.0)
    assert height(np.full(30, 0.9)) > 0.5
    assert height(np.full(30, -0.5)) < -0.5
    assert height(np.array([1e9])) < 2.0


@pytest.mark.parametrize("points", [1, 100, 160, 200, 400])
def test_a_short_history_is_replayed_as_far_as_it_goes(points):
    values = cleaned(history(wave(points))).values
    found = replayed(values, day=0)
    assert len(found) <= len(values) // (4 * PEAK_STEPS)
    assert np.isfinite(log_stretch(found, 100.0, 0.2))


def test_nothing_replayed_asks_for_nothing():
    assert log_stretch(np.zeros((0, 4)), 1.0, 0.1) == 0.0
