# SPDX-License-Identifier: Apache-2.0
"""The contract of learners, and what each one is there for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.forecast.learners import LEARNERS, Autoregression, EchoState, PastMoments, least_squares
from memsculpt.forecast.protocol import Learner
from tests.forecast.pasts import HISTORY, HORIZONS_S, past_of, series

LEVELS = np.array((0.5, 0.75, 0.9, 0.95, 0.99, 0.999))


def kept_by(learner: Learner, count: int) -> dict[str, np.ndarray]:
    """Its arrays as the engine makes them for `count` workloads."""
    own = {}
    for name, one in learner.shapes(len(HORIZONS_S)).items():
        own[name] = np.empty((count, *one.shape), one.dtype)
        own[name][:] = one.start
    return own


def each_learner(test):
    return pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)(test)


@each_learner
@settings(max_examples=25)
@given(pasts=st.integers(0, 4).flatmap(lambda count: st.lists(series(count=count), min_size=1, max_size=12)))
def test_whatever_was_learnt_the_forecast_is_finite_and_in_order(learner: Learner, pasts):
    """Any pasts in any order, with any truths: a peak for each horizon (and level), not negative, not falling."""
    count = len(pasts[0].need_bytes)
    at, own = np.arange(count), kept_by(learner, count)
    chance = np.random.default_rng(1)
    for past in pasts:
        learner.advance(own, at, past)
        said = learner.expect(own, at, past, HORIZONS_S, LEVELS)
        noted = learner.note(own, at)
        assert noted.shape == (count, learner.note_width)
        for horizon in range(len(HORIZONS_S)):
            learner.settle(own, at, horizon, noted, (chance.standard_normal(count) * 1e3).astype(np.float32))

        assert said.shape in {(count, len(HORIZONS_S), 1), (count, len(HORIZONS_S), len(LEVELS))}
        assert np.isfinite(said).all()
        assert (said >= 0.0).all()
        assert (np.diff(said, axis=1) >= -1e-3).all()
        assert (np.diff(said, axis=2) >= -1e-3).all()


@each_learner
def test_rows_do_not_disturb_one_another(learner: Learner):
    """A workload is forecast the same alone and in company, wherever its slot is."""
    chance = np.random.default_rng(3)
    alone, crowd = kept_by(learner, 1), kept_by(learner, 9)
    steps = np.cumsum(chance.standard_normal((4, HISTORY + 60)) * 5.0, axis=1) + 500.0
    for tick in range(60):
        rings = steps[:, tick : tick + HISTORY]
        for own, at, rows in ((alone, np.array([0]), rings[2:3]), (crowd, np.array([7, 1, 4, 0]), rings)):
            past = past_of(rows)
            learner.advance(own, at, past)
            noted = learner.note(own, at)
            truth = np.sin(rows[:, 0]).astype(np.float32)
            learner.settle(own, at, 0, noted, truth)
    one = learner.expect(alone, np.array([0]), past_of(rings[2:3]), HORIZONS_S, LEVELS)
    among = learner.expect(crowd, np.array([7, 1, 4, 0]), past_of(rings), HORIZONS_S, LEVELS)

    np.testing.assert_allclose(among[2], one[0], rtol=1e-4)


@each_learner
def test_a_learner_says_what_it_is(learner: Learner):
    """`explain` prints the name, readers read the docstring."""
    assert [other.name for other in LEARNERS].count(learner.name) == 1
    assert type(learner).__doc__


def follow(learner: Learner, points: np.ndarray, cpu: np.ndarray | None = None, horizon_s: int = 3):
    """Run one workload's points through a learner, with truths as the engine gives them; return (said, true) peaks."""
    own, at = kept_by(learner, 1), np.array([0])
    usual = float(np.abs(np.diff(points)).mean())
    peaks = np.lib.stride_tricks.sliding_window_view(points[1:], horizon_s).max(axis=1)
    rise = float(np.abs(peaks - points[: len(peaks)]).mean())
    said, waiting = [], []
    for tick in range(HISTORY, len(peaks)):
        past = past_of(
            points[np.newaxis, tick - HISTORY + 1 : tick + 1],
            rise=rise,
            cpu=0.5 if cpu is None else float(cpu[tick]),
            change_bytes=np.array([usual]),
            away_ratio=np.array([3.0]),
        )
        due = tick - horizon_s
        while waiting and waiting[0][0] <= due:
            begun, noted = waiting.pop(0)
            risen = np.array([(peaks[begun] - points[begun]) / rise], np.float32)
            for horizon in range(len(HORIZONS_S)):
                learner.settle(own, at, horizon, noted, risen)
        learner.advance(own, at, past)
        waiting.append((tick, learner.note(own, at)))
        said.append(learner.expect(own, at, past, HORIZONS_S, LEVELS)[0, 0])
    return np.array(said), peaks[HISTORY:]


def test_autoregression_learns_a_swing():
    """A series that swings back and forth: the coming turn is foreseen far better than by the last value."""
    chance = np.random.default_rng(0)
    points = 300.0 + 50.0 * np.sin(np.arange(500) * 2.0 * np.pi / 9.0) + chance.standard_normal(500)

    said, true = follow(Autoregression(), points)

    naive = points[HISTORY : HISTORY + len(true)]
    assert np.abs(said[-200:, 0] - true[-200:]).mean() < 0.25 * np.abs(naive[-200:] - true[-200:]).mean()


def test_the_network_learns_that_work_comes_before_memory():
    """Processor use jumps two ticks before memory does, at random times: only the covariate can tell."""
    chance = np.random.default_rng(4)
    starts = np.flatnonzero(chance.random(900) < 0.06)
    points, cpu = np.full(900, 100.0) + chance.standard_normal(900), np.full(900, 0.1)
    for at in starts:
        cpu[at : at + 2] = 0.9
        points[at + 2 : at + 5] += 80.0

    told, true = follow(EchoState(), points, cpu)
    untold, _ = follow(EchoState(), points)

    def error(said):
        return np.abs(said[-400:, 0] - true[-400:]).mean()

    assert error(told) < 0.6 * error(untold)


def test_past_moments_tell_quantiles_of_what_followed():
    """After a dip the need doubles in one of two cases: the upper quantile knows, and only after a dip."""
    chance = np.random.default_rng(5)
    points = np.full(1500, 100.0) + 0.5 * chance.standard_normal(1500)
    dips = np.cumsum(chance.integers(15, 45, 60))
    dips = dips[dips < 1490]
    points[dips] -= 40.0
    for at in dips[chance.random(len(dips)) < 1 / 2]:
        points[at + 2] += 100.0

    said, _ = follow(PastMoments(), points)

    at_dips = dips[(dips > 700) & (dips < 1480)] - HISTORY
    assert np.median(said[at_dips, 3]) > 150.0
    assert np.median(said[at_dips + 8, 3]) < 110.0


def test_least_squares_find_the_line_and_follow_when_it_changes():
    """The coefficients of exact pairs, and the new ones some hundred pairs after a change."""
    chance = np.random.default_rng(6)
    first, second = np.array([1.0, -0.5, 0.25], np.float32), np.array([-0.5, 0.5, 1.0], np.float32)
    coefficients, inverse = np.zeros((1, 3), np.float32), least_squares.begin(3)[np.newaxis]
    for truth in (first, second):
        for _ in range(600):
            inputs = chance.standard_normal((1, 3)).astype(np.float32)
            gains, inverse = least_squares.gain(inverse, inputs, 0.98)
            coefficients = least_squares.learn(coefficients, gains, inputs, inputs @ truth)

        np.testing.assert_allclose(coefficients[0], truth, atol=0.02)


def test_least_squares_do_not_wind_up_where_nothing_happens():
    """Ten thousand inputs without news, then a surprise: the coefficients stay within its reach."""
    coefficients, inverse = np.zeros((1, 4), np.float32), least_squares.begin(4)[np.newaxis]
    still = np.array([[0.0, 0.0, 0.0, 0.3]], np.float32)
    for _ in range(10_000):
        gains, inverse = least_squares.gain(inverse, still, 0.99)
        coefficients = least_squares.learn(coefficients, gains, still, np.zeros(1, np.float32))
    surprise = np.ones((1, 4), np.float32)
    gains, inverse = least_squares.gain(inverse, surprise, 0.99)
    coefficients = least_squares.learn(coefficients, gains, surprise, np.full(1, 5.0, np.float32))

    assert np.abs(coefficients).max() <= 5.0
    assert np.linalg.eigvalsh(inverse[0].astype(np.float64)).min() > 0.0
