# SPDX-License-Identifier: Apache-2.0
"""The engine as a tool calls it."""

import numpy as np
import pytest

from memsculpt.forecast import backtest
from memsculpt.forecast.baselines import BASELINES
from memsculpt.forecast.recorded import RecordedSeries
from memsculpt.forecast.rolling import roll
from tests.forecast.longterm.test_moment import wave

LEVELS = (0.5, 0.9, 0.99)


def called(forecaster, values, horizon=36, levels=LEVELS, interval_s=300.0):
    values = np.asarray(values, np.float64)
    return forecaster(
        values,
        horizon,
        levels,
        interval_s=interval_s,
        capacity=1000.0,
        covariates={"cpu": np.arange(len(values), dtype=float)},
        steps=np.arange(len(values)),
    )


@pytest.mark.parametrize("horizon", [1, 12, 36])
def test_what_a_tool_gets(horizon):
    told = called(backtest.forecast, wave(3000), horizon)
    assert told["path"].shape == (3, horizon)
    assert told["peak"].shape == (3,)


def test_other_questions_are_refused():
    for horizon, levels in ((37, LEVELS), (0, LEVELS), (12, (0.1, 0.5))):
        with pytest.raises(ValueError, match="levels are"):
            called(backtest.forecast, wave(3000), horizon, levels)


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize("points", [1, 30, 400, 5000])
def test_every_baseline_answers_at_every_age(name, points):
    told = called(BASELINES[name], wave(points))
    assert np.asarray(told["path"]).shape == (3, 36)
    assert np.asarray(told["peak"]).shape == (3,)
    assert np.isfinite(told["peak"]).all()


def test_nothing_after_the_moment_is_seen():
    """With another future the forecasts are the same."""
    values = wave(4000)
    other = values.copy()
    other[3900:] = 777.0

    def rolled(values):
        one = RecordedSeries(
            name="w",
            steps=np.arange(len(values)),
            values=values,
            is_known=np.arange(len(values)) < 3937,
            capacity=np.full(len(values), 1000.0),
            covariates={"cpu": values * 2.0},
        )
        return roll(0, one, {"ours": backtest.forecast}, interval_s=300.0, count=30, clock=lambda: 0.0)["ours"]

    first, second = rolled(values), rolled(other)
    assert np.array_equal(first.path[:-1], second.path[:-1])
    assert not np.array_equal(first.truth[-1], second.truth[-1])
