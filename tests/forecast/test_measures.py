# SPDX-License-Identifier: Apache-2.0
"""Measures of forecasts, on cases whose values can be reckoned by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.forecast import measures
from memsculpt.forecast.measures import LEVELS, STEPS, Windows


def windows(*, truth=10.0, path=(10.0, 12.0, 15.0), peak=(10.0, 12.0, 15.0), count=4, series=None, capacity=100.0):
    return Windows(
        series=np.arange(count) if series is None else np.array(series),
        truth=np.full((count, STEPS), truth),
        path=np.repeat(np.repeat(np.array(path)[np.newaxis, :, np.newaxis], count, 0), STEPS, 2),
        peak=np.repeat(np.array(peak)[np.newaxis], count, 0),
        capacity=np.full(count, capacity),
        scale=np.full(count, 2.0),
        duration_s=np.full(count, 0.003),
    )


def test_errors_are_in_mean_changes():
    scores = measures.score(windows(truth=13.0))
    assert scores.mase == {1: 1.5, 12: 1.5, 36: 1.5}
    assert scores.pinball[12] == pytest.approx((0.5 * 3 / 2, 0.9 * 1 / 2, 0.01 * 2 / 2))
    assert scores.coverage[12] == (0.0, 0.0, 1.0)
    assert scores.duration_ms == pytest.approx(3.0)


def test_a_series_counts_once_however_long():
    parts = [windows(truth=10.0, count=9, series=[0] * 9), windows(truth=14.0, count=1, series=[1])]
    assert measures.score(measures.joined(parts)).mase[1] == pytest.approx((0.0 + 2.0) / 2)


def test_violations_and_what_was_given():
    scores = measures.score(measures.joined([windows(truth=14.0, count=3), windows(truth=20.0, count=1)]))
    assert scores.violated_ratio == 0.25
    assert scores.provisioned_ratio == pytest.approx(0.15)
    assert scores.slack_ratio == pytest.approx((3 * (1 - 14 / 15) + (1 - 20 / 15)) / 4)


def test_the_price_gives_up_as_many_windows_as_the_risk_allows():
    """One window in a hundred may be exceeded: the spread is stretched until the second highest just fits."""
    one = windows(count=100)
    truth = np.full((100, STEPS), 10.0)
    truth[0], truth[1] = 90.0, 20.0
    price = measures.price(replace(one, truth=truth), 0.01)
    assert price.stretch == pytest.approx(2.0)
    assert price.provisioned_ratio == pytest.approx(0.2)
    assert measures.price(replace(one, truth=truth), 0.0).provisioned_ratio == pytest.approx(0.9)


@given(
    st.lists(st.floats(0.0, 100.0), min_size=20, max_size=60),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_no_more_windows_than_allowed_exceed_their_price(peaks, risk):
    one = replace(windows(count=len(peaks)), truth=np.repeat(np.array(peaks)[:, np.newaxis], STEPS, 1))
    price = measures.price(one, risk)
    given_ratio = np.clip((10.0 + price.stretch * 5.0) / 100.0, 0.01, 1.0)
    assert (np.array(peaks) / 100.0 > given_ratio + 1e-6).mean() <= risk
    assert price.provisioned_ratio == pytest.approx(given_ratio)


def test_moments_have_a_known_hour_before_and_all_steps_after():
    known = np.ones(400, bool)
    known[200] = False
    found = measures.origins(known, 100, 1000)
    assert found.min() == 100
    assert found.max() == 400 - STEPS - 1
    assert not any(at - 11 <= 200 <= at + STEPS for at in found)
    few = measures.origins(known, 100, 5)
    assert len(few) == 5
    assert (np.diff(few) > 30).all()
    assert len(measures.origins(np.zeros(400, bool), 0, 5)) == 0


def test_nothing_to_score_is_said():
    with pytest.raises(ValueError, match="no window"):
        measures.score(windows(count=0))
    with pytest.raises(ValueError, match="nothing to join"):
        measures.joined([])
    assert len(LEVELS) == 3
