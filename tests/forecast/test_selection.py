# SPDX-License-Identifier: Apache-2.0
"""The choice between our own outlook and a fitted model, in real workers, by the library itself."""

import numpy as np
import pytest

from memsculpt import workers
from memsculpt.agent.refitting import BOUNDS
from memsculpt.forecast import selection
from memsculpt.forecast.longterm import History

pytestmark = [pytest.mark.timeout(300), pytest.mark.needs("model_fitting")]


def history(values):
    return History(
        values=values, covariates={}, step=20_000 + len(values), interval_s=300.0, capacity=float(np.nanmax(values)) * 2
    )


def reverting(count=2400):
    """Falls back to its mean with a strength that past moments tell only roughly."""
    chance = np.random.default_rng(5)
    values = np.zeros(count)
    for at in range(2, count):
        values[at] = 1.8 * values[at - 1] - 0.82 * values[at - 2] + chance.normal()
    return (values + 100.0) * 2.0**20


def test_a_worker_chooses_a_model_where_it_is_better():
    values = reverting()
    values[300:310] = np.nan
    found = workers.run(BOUNDS, selection.select, history(values), None)
    assert found.form.startswith("ARIMA(")
    assert found.trust > 0.0
    assert found.loss < found.own_loss
    assert found.gain_ratio > 0.05
    assert (found.made_step, found.windows_count > 10) == (22_400, True)


def test_ours_stays_where_nothing_is_better():
    """A daily rhythm of steps: a model without a day in it does not know when."""
    chance = np.random.default_rng(3)
    at = np.arange(2880)
    values = 100.0 + 50.0 * ((at // 36) % 8 == 3) + 20.0 * ((at // 36) % 8 == 5) + chance.normal(size=len(at))
    found = selection.select(history(values), None)
    assert (found.model, found.trust) == (None, 0.0)
    assert found.gain_ratio < 0.01


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(200.0), "too short"),
        (np.full(3000, 7.0), "hardly moves"),
        (np.where(np.arange(3000) > 2300, np.nan, np.arange(3000) % 97), "gaps"),
    ],
    ids=["short", "constant", "gaps"],
)
def test_where_nothing_can_be_told_nothing_is_chosen(values, words):
    found = selection.select(history(values), None)
    assert found.model is None
    assert words in found.note
