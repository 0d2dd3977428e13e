# SPDX-License-Identifier: Apache-2.0
"""ARIMA and exponential smoothing with parameters that were fitted elsewhere: followed and continued in numpy. Pure.

Both are kept in innovation form: a one-step forecast, its error, and weights with which an error moves what is forecast
further ahead (Hyndman, Koehler, Ord and Snyder, "Forecasting with Exponential Smoothing", 2008; Box and Jenkins,
"Time Series Analysis", 1970). The spread is that of the model's own errors at each lead over the last week and no
normal distribution: memory does not follow one, and its intervals are passed ten times too often.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.history import LEVELS, STEPS, WEEK

DIFFERENCES_MOST, ORDER_MOST = 2, 8
ERRORS_LEAST = 2 * STEPS  # before so many errors at a lead are known, a model says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Arima:
    """ARIMA(p, d, q): (1 - ar)(w - constant) = (1 + ma) error, where w is the series differenced d times."""

    ar: tuple[float, ...]
    ma: tuple[float, ...]
    differences: int
    constant: float  # the mean for d = 0, the drift a step for d = 1, in the unit of the series

    def __post_init__(self) -> None:
        """Check what was read from somewhere."""
        if not 0 <= self.differences <= DIFFERENCES_MOST or max(len(self.ar), len(self.ma)) > ORDER_MOST:
            raise ValueError(f"no order of ours: {len(self.ar)}, {self.differences}, {len(self.ma)}")
        _check_finite(*self.ar, *self.ma, self.constant)

    @property
    def form(self) -> str:
        """What it is called."""
        constant = "" if self.constant == 0.0 else " with drift" if self.differences else " with mean"
        return f"ARIMA({len(self.ar)},{self.differences},{len(self.ma)}){constant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Exponential smoothing with additive errors: a level, and a trend where `beta` is above 0, damped below 1."""

    alpha: float
    beta: float
    damping: float
    level: float  # before the first point, in the unit of the series
    slope: float

    def __post_init__(self) -> None:
        """Check what was read from somewhere."""
        _check_finite(self.alpha, self.beta, self.level, self.slope)
        if not 0.0 <= self.damping <= 1.0:
            raise ValueError(f"a damping is within 0 and 1, not {self.damping}")

    @property
    def form(self) -> str:
        """What it is called."""
        trend = "N" if self.beta == 0.0 and self.slope == 0.0 else "A" if self.damping == 1.0 else "Ad"
        return f"ETS(A,{trend},N)"


Model = Arima | Smoothing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Followed:
    """What a model makes of a series."""

    errors: Float64  # of its one-step forecasts, shape (n - d,)
    point: Float64  # its forecast of the next points, shape (STEPS,)


def follow(model: Model, values: Float64) -> Followed:
    """Return a model's errors along a series without gaps, shape (n,), and its forecast at the end. Some 1 ms a week.

    The first points are where the model was fitted: there its state is known. Raises ValueError with too few points.
    """
    if len(values) <= DIFFERENCES_MOST + ORDER_MOST:
        raise ValueError(f"{len(values)} points are too few to follow")
    return _follow_arima(model, values) if isinstance(model, Arima) else _follow_smoothing(model, values)


def lead_weights(model: Model) -> Float64:
    """Return by how much an error of 1 moves the forecast 0, 1, ... steps after it, shape (STEPS,); the first is 1."""
    weights = np.ones(STEPS)
    if isinstance(model, Smoothing):
        trend = np.cumsum(model.damping ** np.arange(1, STEPS))
        weights[1:] = model.alpha + model.beta * np.concatenate([[1.0], 1.0 + trend[:-1]]) * model.damping
        return weights
    for step in range(1, STEPS):
        past = sum(one * weights[step - lag] for lag, one in enumerate(model.ar[:step], start=1))
        weights[step] = past + (model.ma[step - 1] if step <= len(model.ma) else 0.0)
    for _ in range(model.differences):
        weights = np.cumsum(weights)
    return weights


def path_of(model: Model, values: Float64) -> Float64 | None:
    """Return quantiles for LEVELS of the next points, shape (levels, STEPS); None with too few errors to tell.

    Around the point forecast lie the quantiles of the errors the model made at each lead in the last week; they are
    those of past moments, so nothing is assumed but that the model goes on being wrong as it was.
    """
    followed = follow(model, values)
    recent = followed.errors[-(WEEK + STEPS) :]
    if len(recent) < ERRORS_LEAST + STEPS:
        return None
    # An error `lead` steps ahead is the sum of the errors since, each with the weight of its age.
    since = sliding_window_view(recent, STEPS)
    weights = lead_weights(model)
    at_lead = np.empty((len(since), STEPS))
    for lead in range(STEPS):
        at_lead[:, lead] = since[:, : lead + 1] @ weights[lead::-1]
    return followed.point + np.quantile(at_lead, LEVELS, axis=0)


def _follow_arima(model: Arima, values: Float64) -> Followed:
    tails: list[float] = []
    series = values
    for _ in range(model.differences):
        tails.append(float(series[-1]))
        series = np.diff(series)
    centred = series - model.constant
    order = len(model.ar)
    driven = centred.copy()
    for lag, one in enumerate(model.ar, start=1):
        driven[lag:] -= one * centred[:-lag]
    driven[:order] = 0.0  # as in conditional least squares: what came before the first points is not known
    errors = _without_average(driven.tolist(), model.ma)
    ahead: list[float] = centred[-order:].tolist() if order else []
    for step in range(STEPS):
        known = sum(one * ahead[-lag] for lag, one in enumerate(model.ar, start=1))
        still = sum(one * errors[step - lag] for lag, one in enumerate(model.ma, start=1) if lag > step)
        ahead.append(known + still)
    point = np.array(ahead[order:]) + model.constant
    for tail in reversed(tails):
        point = tail + np.cumsum(point)
    return Followed(errors=np.array(errors), point=point)


def _without_average(driven: list[float], ma: tuple[float, ...]) -> list[float]:
    """Return the errors whose moving average is `driven`, 0 before the first."""
    if not ma:
        return driven
    errors = [0.0] * len(ma)
    backwards = ma[::-1]
    for one in driven:
        errors.append(one - sum(map(_times, backwards, errors[-len(ma) :])))
    return errors[len(ma) :]


def _times(left: float, right: float) -> float:
    return left * right


def _follow_smoothing(model: Smoothing, values: Float64) -> Followed:
    level, slope = model.level, model.slope
    errors: list[float] = []
    alpha, beta, damping = model.alpha, model.beta, model.damping
    for value in values.tolist():
        slope *= damping
        error = value - level - slope
        level += slope + alpha * error
        slope += beta * error
        errors.append(error)
    return Followed(
        errors=np.array(errors), point=level + slope * np.cumsum(damping ** np.arange(1, STEPS + 1, dtype=np.float64))
    )


def _check_finite(*numbers: float) -> None:
    if not all(np.isfinite(one) for one in numbers):
        raise ValueError(f"parameters are finite numbers, not {numbers}")
