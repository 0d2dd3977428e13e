# SPDX-License-Identifier: Apache-2.0
"""What a history says: whatever the history is, and nothing of what comes after it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.forecast.longterm import LEVELS, STEPS, History, look_ahead, prior
from memsculpt.forecast.longterm.history import cleaned
from memsculpt.forecast.longterm.moment import (
    CHANGES,
    FEATURES,
    PATH_NAMES,
    PEAK_NAMES,
    Moment,
    describe,
    peak_place,
)
from memsculpt.forecast.longterm.near import ranks_among, ranks_of

ODD = st.one_of(
    st.floats(0.0, 1e6),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), -5.0, 0.0, 1e12]),
)


def wave(points, *, level=100.0, day=288, seed=3):
    """A daily rhythm with noise, in its own unit."""
    chance = np.random.default_rng(seed)
    at = np.arange(points)
    return level * (1.0 + 0.5 * np.sin(2 * np.pi * at / day) + 0.1 * chance.random(points))


def history(values, *, capacity=1000.0, covariates=None, step=None, interval_s=300.0):
    values = np.asarray(values, np.float64)
    return History(
        values=values,
        covariates=covariates or {},
        step=len(values) - 1 if step is None else step,
        interval_s=interval_s,
        capacity=capacity,
    )


@settings(max_examples=60)
@given(
    values=st.lists(ODD, min_size=1, max_size=220),
    capacity=st.sampled_from([1000.0, 1.0, 0.0, float("nan"), -1.0]),
    interval_s=st.sampled_from([57.0, 300.0, 3600.0]),
)
def test_any_history_gives_an_outlook_within_its_bounds(values, capacity, interval_s):
    given_before = np.array(values)
    one = history(given_before, capacity=capacity, covariates={"cpu": np.array(values[::-1])}, interval_s=interval_s)
    outlook = look_ahead(one)
    most = cleaned(one).capacity
    assert np.array_equal(given_before, np.array(values), equal_nan=True)
    for quantiles in (outlook.path, outlook.peak):
        assert np.isfinite(quantiles).all()
        assert (quantiles >= 0.0).all()
        assert (quantiles <= most * (1 + 1e-12)).all()
        assert (np.diff(quantiles, axis=0) >= 0.0).all()


@pytest.mark.parametrize("points", [1, 2, 13, 160, 400, 3000, 8064, 9000])
def test_a_moment_has_the_same_form_at_every_age(points):
    moment = describe(cleaned(history(wave(points))))
    assert moment.features.shape == (FEATURES,)
    assert moment.peaks.shape == (len(PEAK_NAMES),)
    assert moment.paths.shape == (len(PATH_NAMES), len(LEVELS), STEPS)
    assert np.isfinite(moment.features).all()
    assert moment.scale > 0.0


def test_features_have_no_unit():
    """The same series in another unit is the same moment, with forecasts in that unit."""
    small, large = (describe(cleaned(history(wave(3000) * unit, capacity=1000.0 * unit))) for unit in (1.0, 1024.0))
    assert np.allclose(small.features, large.features, atol=1e-4)
    assert np.allclose(small.peaks * 1024.0, large.peaks)
    first, second = (look_ahead(history(wave(3000) * unit, capacity=1000.0 * unit)) for unit in (1.0, 1024.0))
    assert np.allclose(first.peak * 1024.0, second.peak, rtol=1e-6)


def test_only_the_last_28_days_count():
    values = wave(9000)
    other = values.copy()
    other[: 9000 - 8064] = 999.0
    assert np.array_equal(describe(cleaned(history(values))).features, describe(cleaned(history(other))).features)


def test_gaps_are_filled_by_what_was_before():
    values = wave(500)
    holes = values.copy()
    holes[100:120] = np.nan
    filled = cleaned(history(holes)).values
    assert (filled[100:120] == values[99]).all()
    assert (cleaned(history([np.nan, np.nan, 7.0])).values == 7.0).all()
    assert (cleaned(history([np.nan])).values == 0.0).all()


def test_the_time_of_day_is_known():
    """A peak that comes at the same time every day is expected before it comes, and not after it."""
    values = np.full(20 * 288, 10.0)
    for day in range(20):
        values[day * 288 + 100 : day * 288 + 106] = 500.0
    before, after = values[: 19 * 288 + 96], values[: 19 * 288 + 150]
    assert look_ahead(history(before)).peak[-1] >= 450.0
    assert look_ahead(history(after)).peak[0] <= 20.0


def test_covariates_choose_neighbours():
    """Where another counter tells what comes, past moments with its present value are found."""
    chance = np.random.default_rng(5)
    busy = chance.random(6000) < 0.05
    values = np.full(6000, 10.0)
    values[1:][busy[:-1]] = 300.0
    busy[-1] = True
    values[-1] = 10.0
    telling = look_ahead(history(values, covariates={"cpu": busy.astype(float)}, interval_s=600.0))
    silent = look_ahead(history(values, covariates={}, interval_s=600.0))
    assert telling.path[1, 0] >= silent.path[1, 0]


def test_a_series_that_moved_to_another_level_rises_from_there():
    """What is added to now is how much it rose before, though it never was at this level."""
    chance = np.random.default_rng(6)
    noise = chance.random(3000)
    values = np.where(np.arange(3000) < 2900, 100.0, 700.0) + 10.0 * noise
    moment = describe(cleaned(history(values, interval_s=57.0)))
    for way in CHANGES:
        rise = moment.peaks[peak_place(f"{way} 0.9")] - values[-12:].max()
        assert -5.0 <= rise <= 25.0, way


def test_equal_values_have_equal_rank():
    chance = np.random.default_rng(7)
    values = chance.integers(0, 9, 500).astype(float)
    ranks = ranks_of(values)
    assert all(len(np.unique(ranks[values == one])) == 1 for one in range(9))
    assert ranks.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(ranks_among(values, values[-20:]), ranks[-20:])


def moment_of(values: np.ndarray) -> Moment:
    return describe(cleaned(History(values=values, covariates={}, step=len(values), interval_s=300.0, capacity=1000.0)))


def test_a_plateau_is_told_from_what_returns_to_its_mean():
    """Where levels hold for hours the last value foretells best; of noise around a mean the mean does."""
    chance = np.random.default_rng(2)
    plateaus = np.repeat(chance.uniform(100, 900, 40), 72) + chance.standard_normal(2880)
    returning = 400.0 + 60.0 * chance.standard_normal(2880)

    assert moment_of(plateaus).stays == 1.0
    assert moment_of(returning).stays == 0.0
    assert moment_of(np.full(2880, 400.0)).stays == 1.0
    path = prior.apply(moment_of(plateaus))[1]
    assert path[0] == pytest.approx(plateaus[-1], abs=1.0)
