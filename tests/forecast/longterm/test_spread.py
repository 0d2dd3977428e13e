# SPDX-License-Identifier: Apache-2.0
"""Laws of spreads: what they keep, and which way they turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.forecast.longterm.spread import PLAIN, Law, respread

RISES = st.lists(st.floats(0.0, 500.0), min_size=3, max_size=3)


def one(peaks, law, *, capacity=1000.0, log_stretch=0.0):
    return respread(np.array([peaks], float), np.array([capacity]), np.array([log_stretch]), law)[0]


@given(RISES, st.floats(0.0, 1.0), st.floats(0.0, 0.9), st.floats(-1.5, 1.5))
def test_quantiles_stay_in_order_above_the_median(rises, pooled, evened, log_stretch):
    peaks = np.cumsum(rises)
    law = Law(pooled=pooled, evened=evened, log_factor=0.2, replayed=1.0)
    found = one(peaks, law, log_stretch=log_stretch)
    assert found[0] == peaks[0]
    assert (np.diff(found) >= 0.0).all()


@given(RISES)
def test_a_plain_law_changes_nothing(rises):
    peaks = np.cumsum(rises)
    assert one(peaks, PLAIN) == pytest.approx(peaks)


def test_a_top_far_from_the_ninth_tenth_is_drawn_towards_it():
    law = Law(pooled=0.5, evened=0.0, log_factor=0.0, replayed=0.0)
    assert one([100.0, 110.0, 200.0], law)[-1] < 200.0
    assert one([100.0, 200.0, 200.0], law)[-1] == pytest.approx(200.0)


def test_wide_spreads_are_narrowed_and_narrow_ones_widened():
    law = Law(pooled=0.0, evened=0.1, log_factor=0.0, replayed=0.0)
    assert one([100.0, 100.0, 500.0], law)[-1] < 500.0
    assert one([100.0, 100.0, 110.0], law)[-1] > 110.0


def test_the_replay_is_followed_as_far_as_the_law_says():
    law = Law(pooled=0.0, evened=0.0, log_factor=0.0, replayed=0.5)
    assert one([100.0, 100.0, 200.0], law, log_stretch=2.0 * np.log(2.0))[-1] == pytest.approx(300.0)


@pytest.mark.parametrize("wrong", [{"pooled": 1.1}, {"pooled": -0.1}, {"evened": 1.0}, {"replayed": 2.0}])
def test_what_is_no_law_is_refused(wrong):
    whole = {"pooled": 0.3, "evened": 0.1, "log_factor": 0.0, "replayed": 1.0} | wrong
    with pytest.raises(ValueError, match="not a law"):
        Law(**whole)
