# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.plan.overcommit import chance_apart, chance_together

LEVELS = (0.5, 0.9, 0.99)


@st.composite
def demands(draw):
    rows = draw(st.integers(1, 4))
    quantiles = np.array([sorted(draw(st.lists(st.floats(1, 1000), min_size=3, max_size=3))) for _ in range(rows)])
    return quantiles, quantiles[:, -1] * draw(st.floats(1.0, 2.0))


@given(demands=demands(), capacity=st.floats(10, 5000), more=st.floats(0, 1000))
def test_more_capacity_never_means_more_risk(demands, capacity, more):
    for chance in (chance_together, chance_apart):
        less = chance(LEVELS, *demands, capacity)
        assert 0.0 <= less <= 1.0 + 1e-9
        # The grid's cells grow with the capacity: rounding up by one of them a VM may cost what lies in it.
        slack = 0.0 if chance is chance_together else 0.02
        assert chance(LEVELS, *demands, capacity + more) <= less + slack


@given(demands=demands())
def test_what_fits_in_full_has_no_risk(demands):
    quantiles, most = demands
    assert chance_together(LEVELS, quantiles, most, most.sum() + 1) == 0.0
    assert chance_apart(LEVELS, quantiles, most, most.sum() + 1) == 0.0


def test_one_vm_is_its_own_quantile():
    quantiles, most = np.array([[100.0, 200.0, 300.0]]), np.array([400.0])
    for chance in (chance_together, chance_apart):
        assert chance(LEVELS, quantiles, most, 200.0) == pytest.approx(0.1, abs=0.01)


def test_vms_that_peak_apart_are_less_risk_than_together():
    """The oracle of the second is a million drawn days."""
    quantiles, most = np.array([[100.0, 200.0, 300.0]] * 3), np.array([320.0] * 3)
    together = chance_together(LEVELS, quantiles, most, 650.0)
    apart = chance_apart(LEVELS, quantiles, most, 650.0)
    drawn = np.random.default_rng(1).random((3, 1_000_000))
    sums = np.interp(drawn, [0.0, *LEVELS, 1.0], [100.0, 100.0, 200.0, 300.0, 320.0]).sum(axis=0)
    assert apart == pytest.approx(float((sums > 650.0).mean()), abs=0.003)
    assert apart < together
