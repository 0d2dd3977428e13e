# SPDX-License-Identifier: Apache-2.0
"""A choice survives its bytes, has its part in an outlook, and is refused when it is nonsense."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.errors import MemsculptError
from memsculpt.forecast import longterm
from memsculpt.forecast.longterm.choice import Choice, choice_from_bytes
from memsculpt.forecast.longterm.fitted import Arima, Smoothing
from tests.forecast.longterm.test_moment import wave
from tests.forecast.longterm.test_watch import kept

LAST = Arima(ar=(), ma=(), differences=1, constant=0.0)


def choice(model=LAST, **changed):
    facts = {
        "made_step": 1999,
        "begin_step": 500,
        "model": model,
        "trust": 1.0,
        "loss": 0.8,
        "own_loss": 1.0,
        "windows_count": 24,
    }
    return Choice(**{**facts, **changed})


@given(st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.text(max_size=9))
def test_what_is_kept_comes_back(number, trust, note):
    for model in (
        None,
        Arima(ar=(number,), ma=(number, 0.5), differences=1, constant=number),
        Smoothing(alpha=number, beta=0.1, damping=0.9, level=number, slope=0.0),
    ):
        one = choice(model, trust=trust, note=note)
        assert choice_from_bytes(one.to_bytes()) == one
    nothing = choice_from_bytes(choice(None, loss=float("nan"), own_loss=float("nan")).to_bytes())
    assert np.isnan([nothing.loss, nothing.own_loss, nothing.gain_ratio]).all()


@given(st.binary(max_size=60))
def test_nonsense_is_refused(content):
    with pytest.raises(MemsculptError, match="cannot be read"):
        choice_from_bytes(content)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"of": "peak"},
        {"trust": 2.0},
        {"begin_step": 3000},
        {"model": {"kind": "arima", "ar": [1.0] * 99, "ma": [], "differences": 0, "constant": 0.0}},
        {"model": {"kind": "arima"}},
        {"model": 7},
        {"new": 1},
    ],
    ids=str,
)
def test_another_format_is_refused(changed):
    facts = {**json.loads(choice().to_bytes()), **changed}
    with pytest.raises(MemsculptError, match="cannot be read"):
        choice_from_bytes(json.dumps(facts).encode())


def test_a_model_has_its_part_in_the_path_and_none_in_the_peak():
    series = kept(wave(2000) * 2**20)
    alone = longterm.outlook_from(series, 1 << 40, None, 0.0)
    whole = longterm.outlook_from(series, 1 << 40, None, 0.0, choice())
    half = longterm.outlook_from(series, 1 << 40, None, 0.0, choice(trust=0.5))
    assert whole.weighed_by == "prior and ARIMA(0,1,0)"
    assert not np.allclose(whole.path_bytes, alone.path_bytes)
    np.testing.assert_allclose(half.path_bytes, (alone.path_bytes + whole.path_bytes) / 2.0)
    np.testing.assert_array_equal(whole.peak_bytes, alone.peak_bytes)
    assert (np.diff(whole.path_bytes, axis=0) >= 0.0).all()
    capped = longterm.outlook_from(series, 64 << 20, None, 0.0, choice())
    assert capped.path_bytes.max() <= 64 << 20


@pytest.mark.parametrize(
    "one",
    [
        choice(None, trust=0.0),
        choice(begin_step=1990),
        choice(made_step=9000, begin_step=8000),
        choice(Arima(ar=(9.0,), ma=(), differences=0, constant=0.0)),  # runs away
    ],
    ids=["ours is better", "too new", "of the future", "runs away"],
)
def test_a_model_that_cannot_be_followed_changes_nothing(one):
    series = kept(wave(2000) * 2**20)
    alone = longterm.outlook_from(series, 1 << 40, None, 0.0)
    found = longterm.outlook_from(series, 1 << 40, None, 0.0, one)
    if one.model is None or one.begin_step > 1000:
        assert found.weighed_by == "prior"
        np.testing.assert_array_equal(found.path_bytes, alone.path_bytes)
    assert np.isfinite(found.path_bytes).all()
    assert found.path_bytes.max() <= 1 << 40


def test_a_history_that_does_not_go_back_to_the_first_point_is_not_followed():
    series = kept(wave(2000) * 2**20)
    later = dataclasses.replace(series, start_s=300 * 8000)
    one = choice(made_step=9000, begin_step=7900)
    assert longterm.outlook_from(later, 1 << 40, None, 0.0, one).weighed_by == "prior"
