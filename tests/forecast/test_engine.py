# SPDX-License-Identifier: Apache-2.0
"""What the forecaster promises: rhythms found by the third phase, calibration, order, no wild numbers."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.forecast import Forecaster, step
from memsculpt.forecast.experts import EXPERTS
from tests.forecast.driver import MIB, SETTINGS, profiles

NEED = 450 * MIB


def phases(period_s, length_s, *, jitter_s=0.3, seed=0, count=40):
    rng = np.random.default_rng(seed)
    return [3 + number * period_s + rng.uniform(-jitter_s, jitter_s) for number in range(count)]


def follow_phases(period_s, length_s, cycles=12):
    """Yield (time, time to the next onset, in a phase, idle time, phases begun, quantiles) for a job that pauses."""
    onsets, forecaster, last_ran = phases(period_s, length_s), Forecaster(), -10.0
    for time_s in np.arange(0.4, period_s * cycles, 1.0):
        ran_s = sum(max(0.0, min(time_s, at + length_s) - max(time_s - 1, at)) for at in onsets)
        last_ran = time_s if ran_s > 0.005 else last_ran
        idle_s = time_s - last_ran
        need = NEED if idle_s < 0.9 else MIB
        forecaster, made = step(forecaster, profiles(time_s, [need], idle=[idle_s], cpu=[ran_s]), SETTINGS)
        ahead = min((at for at in onsets if at > time_s), default=1e9) - time_s
        inside = any(at <= time_s <= at + length_s for at in onsets)
        yield time_s, ahead, inside, idle_s, sum(at < time_s for at in onsets), made.quantiles_bytes[0, 0]


@pytest.mark.parametrize(("period_s", "length_s"), [(7.3, 1.2), (10, 1.1), (16, 3), (30, 3)])
def test_a_rhythm_is_known_by_its_third_phase(period_s, length_s):
    """Before every later onset and during the phase the room is asked for; far from it, it is not."""
    wanted = SETTINGS.levels.index(0.9)
    before, away = [], []
    for _, ahead, inside, idle_s, begun, quantiles in follow_phases(period_s, length_s):
        if begun >= 3 and (ahead <= 2.5 or inside):
            before.append(quantiles[wanted])
        elif begun >= 3 and ahead > 4.2 and idle_s >= 2:
            away.append(quantiles[wanted])
    assert min(before) >= 0.95 * NEED
    assert np.mean(np.array(away) < 0.28 * NEED) >= 0.85


SERIES = {
    "noise": lambda rng, n: 200 + 10 * rng.standard_normal(n),
    "walk": lambda rng, n: 400 + np.cumsum(3 * rng.standard_normal(n)),
    "bursts": lambda rng, n: 100 + 80 * (rng.random(n) < 0.05),
    "ramp": lambda rng, n: 100 + 0.2 * np.arange(n) + rng.standard_normal(n),
}


@cache
def followed():
    """Forecast all the series side by side, once for all the tests that look at them."""
    rng = np.random.default_rng(3)
    series = np.stack([np.maximum(make(rng, 900), 1.0) * MIB for make in SERIES.values()], axis=1)
    forecaster, made = Forecaster(), []
    for tick, need in enumerate(series):
        forecaster, forecast = step(forecaster, profiles(tick + 0.5, need, ids=list(SERIES)), SETTINGS)
        made.append(forecast.quantiles_bytes[:, 0])
    return series, np.stack(made)


@pytest.mark.parametrize("kind", SERIES)
def test_the_quantile_comes_true_as_often_as_it_says(kind):
    """Over a long series 0.9 holds about 90 times in a hundred, whatever the series does."""
    series, made = followed()
    row, level = list(SERIES).index(kind), SETTINGS.levels.index(0.9)
    held = [made[tick, row, level] >= series[tick + 1 : tick + 4, row].max() for tick in range(200, 890)]
    assert 0.85 <= np.mean(held) <= 0.97


@given(
    needs=st.lists(st.lists(st.integers(0, 1 << 36), min_size=3, max_size=3), min_size=1, max_size=12),
    gaps=st.lists(st.sampled_from([0.25, 1.0, 5.0]), min_size=12, max_size=12),
)
def test_quantiles_are_in_order_and_finite(needs, gaps):
    """They fall neither along the levels nor along the horizons, and are never negative, at any spacing of ticks."""
    forecaster, time_s = Forecaster(), 10.0
    for need, gap in zip(needs, gaps, strict=False):
        time_s += gap
        forecaster, made = step(forecaster, profiles(time_s, need, elapsed_s=gap), SETTINGS)
        quantiles = made.quantiles_bytes
        assert np.isfinite(quantiles).all()
        assert (quantiles >= 0).all()
        assert (np.diff(quantiles, axis=2) >= 0).all()
        assert (np.diff(quantiles, axis=1) >= 0).all()


def test_the_order_of_workloads_does_not_matter():
    """Each workload's forecast is its own."""
    rng = np.random.default_rng(5)
    first, second = Forecaster(), Forecaster()
    names = ["a", "b", "c", "d"]
    for tick in range(60):
        need = dict(zip(names, rng.uniform(1, 500, 4) * MIB, strict=True))
        shuffled = [names[row] for row in rng.permutation(4)]
        first, one = step(first, profiles(tick + 0.5, [need[name] for name in names], ids=names), SETTINGS)
        second, two = step(second, profiles(tick + 0.5, [need[name] for name in shuffled], ids=shuffled), SETTINGS)
        for row, name in enumerate(shuffled):
            np.testing.assert_array_equal(two.quantiles_bytes[row], one.quantiles_bytes[names.index(name)])


def test_an_oom_kill_is_learnt_from_at_once_and_forgotten_slowly():
    """The top quantiles are above the peak that was too much in the very tick, and come down again."""
    forecaster = Forecaster()
    for tick in range(40):
        forecaster, calm = step(forecaster, profiles(tick + 0.5, [100 * MIB]), SETTINGS)
    forecaster, alarmed = step(forecaster, profiles(40.5, [100 * MIB], was_oom_killed=[True]), SETTINGS)
    for tick in range(41, 640):
        forecaster, later = step(forecaster, profiles(tick + 0.5, [100 * MIB]), SETTINGS)
    level = SETTINGS.levels.index(0.99)
    assert calm.quantiles_bytes[0, 0, level] < 120 * MIB
    assert alarmed.quantiles_bytes[0, 0, level] >= 120 * MIB
    assert later.quantiles_bytes[0, 0, level] < 110 * MIB


def test_a_start_is_kept_apart():
    """Its peak is no peak of steady state, and is what a restart is sized for."""
    forecaster = Forecaster()
    for tick in range(10):
        forecaster, made = step(
            forecaster, profiles(tick + 0.5, [(900 if tick < 5 else 100) * MIB], is_starting=[True]), SETTINGS
        )
    for tick in range(10, 60):
        forecaster, made = step(forecaster, profiles(tick + 0.5, [100 * MIB]), SETTINGS)
    assert made.historic_peak_bytes[0] == 100 * MIB
    assert made.startup_peak_bytes[0] == 900 * MIB
    assert made.quantiles_bytes[0, 0, SETTINGS.levels.index(0.9)] < 150 * MIB
    again, flags = [10 * MIB], {"is_starting": [True], "was_restarted": [True]}
    forecaster, made = step(forecaster, profiles(60.5, again, **flags), SETTINGS)
    assert made.quantiles_bytes[0, 0, SETTINGS.levels.index(0.9)] >= 900 * MIB


def test_workloads_come_and_go():
    """A slot that is used again starts clean; an identity that comes back soon keeps what was known."""
    forecaster = Forecaster()
    for tick in range(40):
        forecaster, _ = step(forecaster, profiles(tick + 0.5, [300 * MIB], ids=["kept"]), SETTINGS)
    for tick in range(40, 50):
        forecaster, _ = step(forecaster, profiles(tick + 0.5, [], ids=[]), SETTINGS)
    forecaster, made = step(forecaster, profiles(50.5, [MIB, MIB], ids=["kept", "new"]), SETTINGS)
    assert made.historic_peak_bytes.tolist() == [300 * MIB, MIB]
    many = [f"w{number}" for number in range(300)]
    forecaster, made = step(forecaster, profiles(51.5, [MIB] * 300, ids=many), SETTINGS)
    assert made.quantiles_bytes.shape[0] == 300


@pytest.mark.parametrize("expert", EXPERTS, ids=lambda expert: expert.name)
def test_every_expert_keeps_the_contract(expert):
    """Right shape, no negative peak, its input untouched, and words on what it is."""
    from memsculpt.forecast.protocol import Series

    rng = np.random.default_rng(1)
    count, history = 7, 120
    ring = rng.uniform(0, 1e9, (count, history))
    series = Series(
        now_s=500.0,
        grid_s=1.0,
        need_bytes=ring[:, -1].copy(),
        ring_bytes=ring.copy(),
        known_count=np.full(count, 120.0),
        growth_bytes_per_s=rng.uniform(0, 1e6, count),
        is_active=rng.random(count) < 0.5,
        onset_s=np.where(rng.random((count, 8)) < 0.5, np.nan, np.sort(rng.uniform(0, 500, (count, 8)), axis=1)),
        phase_peaks_bytes=rng.uniform(0, 1e9, (count, 8)),
        season_s=np.where(rng.random(count) < 0.5, np.nan, 20.0),
    )
    peaks = expert.expect_peak(series, SETTINGS.horizons_s)
    assert peaks.shape == (count, len(SETTINGS.horizons_s))
    assert np.isfinite(peaks).all()
    assert (peaks >= 0).all()
    assert expert.is_confident(series).shape == (count,)
    np.testing.assert_array_equal(series.ring_bytes, ring)
    assert type(expert).__doc__
