# SPDX-License-Identifier: Apache-2.0
"""ARIMA and smoothing in numpy say what statsforecast says, and what they say of errors is what comes."""

import importlib
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.forecast import selection
from memsculpt.forecast.longterm.fitted import STEPS, Arima, Smoothing, follow, lead_weights, path_of

pytestmark = pytest.mark.timeout(60)
COEFFICIENTS = st.floats(-0.45, 0.45)
ARIMAS = st.builds(
    Arima,
    ar=st.tuples(COEFFICIENTS, COEFFICIENTS) | st.just(()),
    ma=st.tuples(COEFFICIENTS) | st.just(()),
    differences=st.integers(0, 2),
    constant=st.floats(-1.0, 1.0),
)
SMOOTHINGS = st.builds(
    Smoothing,
    alpha=st.floats(0.05, 0.9),
    beta=st.floats(0.0, 0.04),
    damping=st.floats(0.8, 1.0),
    level=st.floats(-10.0, 10.0),
    slope=st.floats(-1.0, 1.0),
)


def noise(count, seed=1):
    return np.random.default_rng(seed).normal(size=count)


def level_with_noise():
    return 50.0 + 0.2 * np.cumsum(noise(1500)) + noise(1500, 2)


def autoregressive():
    values, errors = np.zeros(1500), noise(1500)
    for at in range(1, 1500):
        values[at] = 0.7 * values[at - 1] + errors[at] + 0.4 * errors[at - 1]
    return values + 30.0


def drifting():
    return 100.0 + np.cumsum(0.05 + 0.3 * noise(1500))


def fitted(kind, values, **options):
    models = importlib.import_module("statsforecast.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(models, kind)(season_length=1, **options).fit(values)


@pytest.mark.needs("model_fitting")
@pytest.mark.parametrize("values", [level_with_noise(), autoregressive(), drifting()], ids=["level", "ar", "drift"])
def test_arima_goes_on_as_the_library_says(values):
    library = fitted("AutoARIMA", values, **selection.ORDERS)
    ours = follow(selection.arima_from(library.model_, 1.0), values)
    np.testing.assert_allclose(ours.point, library.predict(STEPS)["mean"], rtol=1e-6)


@pytest.mark.needs("model_fitting")
@pytest.mark.parametrize("damped", [None, False, True])
@pytest.mark.parametrize("values", [level_with_noise(), autoregressive(), drifting()], ids=["level", "ar", "drift"])
def test_smoothing_goes_on_as_the_library_says(values, damped):
    """Errors at every point, and the forecasts; of a damped trend only the next: see the test below."""
    kind = {"model": "ANN"} if damped is None else {"model": "AAN", "damped": damped}
    library = fitted("AutoETS", values, **kind)
    ours = follow(selection.smoothing_from(library.model_, 1.0), values)
    np.testing.assert_allclose(ours.errors, library.model_["residuals"], rtol=1e-6, atol=1e-6)
    reach = 1 if damped else STEPS
    np.testing.assert_allclose(ours.point[:reach], library.predict(reach)["mean"], rtol=1e-6)


@given(ARIMAS | SMOOTHINGS, st.integers(0, 5))
def test_what_is_forecast_comes_without_error_if_it_comes_so(model, seed):
    """Continued by its own forecast, a series holds no error. (The library damps a trend's second step too little.)"""
    values = np.cumsum(noise(60, seed))
    followed = follow(model, values)
    again = follow(model, np.concatenate([values, followed.point]))
    size = max(1.0, float(np.abs(followed.point).max()))
    np.testing.assert_allclose(again.errors[-STEPS:] / size, 0.0, atol=1e-9)


@given(ARIMAS | SMOOTHINGS)
def test_an_error_moves_what_is_ahead_by_its_weights(model):
    values = np.cumsum(noise(60))
    before = follow(model, values).point
    values[-1] += 1.0
    moved = follow(model, values).point - before
    np.testing.assert_allclose(moved[:-1], lead_weights(model)[1:], atol=1e-7)


def test_quantiles_hold_as_often_as_they_should():
    """On a series that does what the model says, over many moments."""
    values = 100.0 + np.cumsum(noise(4000))
    model = Arima(ar=(), ma=(), differences=1, constant=0.0)
    held = np.array([values[at + 1 : at + 37] <= path_of(model, values[: at + 1]) for at in range(2100, 3900, 20)])
    assert held.mean(axis=(0, 2)) == pytest.approx([0.5, 0.9, 0.99], abs=0.08)


def test_with_little_to_go_by_nothing_is_said():
    model = Arima(ar=(0.5,), ma=(), differences=0, constant=3.0)
    assert path_of(model, noise(100)) is None
    assert path_of(model, noise(200)).shape == (3, STEPS)
    with pytest.raises(ValueError, match="too few"):
        follow(model, noise(5))
    with pytest.raises(ValueError, match="finite"):
        Arima(ar=(float("nan"),), ma=(), differences=0, constant=0.0)
    with pytest.raises(ValueError, match="no order of ours"):
        Arima(ar=(), ma=(), differences=3, constant=0.0)
    with pytest.raises(ValueError, match="damping"):
        Smoothing(alpha=0.5, beta=0.1, damping=1.5, level=0.0, slope=0.0)


def test_forms_have_names():
    assert Arima(ar=(0.1,), ma=(0.2, 0.1), differences=1, constant=2.0).form == "ARIMA(1,1,2) with drift"
    assert Arima(ar=(), ma=(), differences=0, constant=2.0).form == "ARIMA(0,0,0) with mean"
    assert Smoothing(alpha=0.5, beta=0.0, damping=1.0, level=1.0, slope=0.0).form == "ETS(A,N,N)"
    assert Smoothing(alpha=0.5, beta=0.1, damping=0.9, level=1.0, slope=0.1).form == "ETS(A,Ad,N)"
