# SPDX-License-Identifier: Apache-2.0
"""Choose between our own outlook and ARIMA or exponential smoothing for one workload. A worker's file.

The order of ARIMA (Hyndman and Khandakar, "Automatic time series forecasting: the forecast package for R", 2008) and
the form of smoothing are selected by statsforecast, which the agent never loads: it takes 200 MiB. The history is
parted by time: on most of it models are fitted; on the next part it is found which of them, and how much of it, goes
into the path; the last part judges that against our own outlook, and what does not help there is not taken. Each part
is later than those before it, so that nothing is judged on what it has seen.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.errors import Unavailable
from memsculpt.forecast.longterm.choice import Choice
from memsculpt.forecast.longterm.fitted import ORDER_MOST, Arima, Model, Smoothing, path_of
from memsculpt.forecast.longterm.gate import Gate
from memsculpt.forecast.longterm.history import DAY, LEVELS, STEPS, WEEK, History, cleaned
from memsculpt.forecast.longterm.outlook import look_ahead
from memsculpt.forecast.measures import Windows, origins, score

FIX = "pip install 'memsculpt[fit]'"
KNOWN_LEAST = 2 * DAY  # points; with fewer there is too little to judge on
DISTINCT_LEAST = 10
JUDGED_RATIO, JUDGED_POINTS = 0.25, 3 * DAY  # of the history, at most: half to choose on, half to judge on
WINDOWS_EACH = 24
WINDOWS_LEAST = 6
GAIN_LEAST = 0.01  # less than that is chance
TRUSTS = (0.25, 0.5, 0.75, 1.0)
REACHES = (12, 36)  # points that the loss is over
ORDERS = {"max_p": 3, "max_q": 3, "max_d": 1, "nmodels": 40}  # what one fit may try: bounds the time


def is_available() -> bool:
    """Tell whether statsforecast is installed, without loading it."""
    return importlib.util.find_spec("statsforecast") is not None


def select_many(histories: Sequence[History], gate: Gate | None) -> list[Choice]:
    """Return the choice for each history; for workers. Raises as `select`."""
    return [select(one, gate) for one in histories]


def select(history: History, gate: Gate | None) -> Choice:
    """Return what forecasts a history's path best. Some seconds. Raises Unavailable without statsforecast.

    The history may come from another process, frozen or not; its values may have gaps.
    """
    history = History(**{one.name: getattr(history, one.name) for one in fields(History)})
    is_known = np.isfinite(history.values)
    count = len(is_known)
    judged = min(int(count * JUDGED_RATIO), JUDGED_POINTS)
    end = count - judged
    begin = max(end - WEEK, 0)
    known = history.values[is_known]
    if (
        len(known) < KNOWN_LEAST
        or len(np.unique(known)) < DISTINCT_LEAST
        or len(np.unique(history.values[begin:end])) < 3
    ):
        return _nothing(history, "too short, or it hardly moves")
    whole = cleaned(history)
    places = origins(is_known, end, 2 * WINDOWS_EACH)
    # A window that chooses ends before the first that judges begins.
    choosing = places[: len(places) // 2]
    judging = places[places >= choosing[-1] + STEPS] if len(choosing) else places
    if min(len(choosing), len(judging)) < WINDOWS_LEAST:
        return _nothing(history, "too many gaps to judge on")
    notes: list[str] = []
    models = _fitted(whole.values[begin:end], notes)
    first_step = history.step - count + 1
    own = {at: look_ahead(_until(history, at), gate).path for at in (*choosing.tolist(), *judging.tolist())}
    trial = _Trial(values=whole.values, begin=begin, own=own, capacity=whole.capacity)
    best = min(
        (
            (trial.loss(choosing, model, trust), number, trust)
            for number, model in enumerate(models)
            for trust in TRUSTS
        ),
        default=None,
    )
    if best is None:
        return _nothing(history, "; ".join(notes))
    model, trust = models[best[1]], best[2]
    loss, own_loss = trial.loss(judging, model, trust), trial.loss(judging, None, 0.0)
    is_better = loss < own_loss * (1.0 - GAIN_LEAST) and best[0] < trial.loss(choosing, None, 0.0)
    return Choice(
        made_step=history.step,
        begin_step=first_step + begin,
        model=model if is_better else None,
        trust=trust if is_better else 0.0,
        loss=loss,
        own_loss=own_loss,
        windows_count=len(judging),
        note="; ".join((*notes, *([] if is_better else [f"{model.form} was the best of the others"]))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One workload's forecasts, judged by the measures of `measures.py`."""

    values: Float64  # cleaned
    begin: int
    own: dict[int, Float64]  # our own path by moment
    capacity: float

    def loss(self, places: Int64, model: Model | None, trust: float) -> float:
        """Return the pinball loss of the path at the moments, mean over levels and reaches."""
        paths = np.array([self._path(at, model, trust) for at in places.tolist()])
        truth = np.array([self.values[at + 1 : at + 1 + STEPS] for at in places.tolist()])
        size = len(places)
        change = np.array([np.abs(np.diff(self.values[max(at - WEEK, 0) : at + 1])).mean() for at in places.tolist()])
        found = score(
            Windows(
                series=np.zeros(size, np.int64),
                truth=truth,
                path=paths,
                peak=np.full((size, len(LEVELS)), self.capacity),  # the peak is not judged here
                capacity=np.full(size, self.capacity),
                scale=change,
                duration_s=np.zeros(size),
            )
        )
        return float(np.mean([found.pinball[reach] for reach in REACHES]))

    def _path(self, at: int, model: Model | None, trust: float) -> Float64:
        own = self.own[at]
        theirs = None if model is None else path_of(model, self.values[self.begin : at + 1])
        mixed = own if theirs is None else own + trust * (theirs - own)
        return np.clip(np.maximum.accumulate(mixed, axis=0), 0.0, self.capacity)


def _until(history: History, at: int) -> History:
    return History(
        values=history.values[: at + 1],
        covariates={name: column[: at + 1] for name, column in history.covariates.items()},
        step=history.step - (len(history.values) - 1 - at),
        interval_s=history.interval_s,
        capacity=history.capacity,
    )


def _nothing(history: History, note: str) -> Choice:
    return Choice(
        made_step=history.step,
        begin_step=history.step,
        model=None,
        trust=0.0,
        loss=float("nan"),
        own_loss=float("nan"),
        windows_count=0,
        note=note,
    )


# --- statsforecast ----------------------------------------------------------------------------------------------------


def _fitted(values: Float64, notes: list[str]) -> list[Model]:
    """Return the models that statsforecast selects for the values; what it cannot fit is told in `notes`."""
    try:
        library: Any = importlib.import_module("statsforecast.models")  # Any: it carries no types
    except ImportError as error:
        raise Unavailable(
            place="fitting models", problem=f"needs statsforecast, which cannot be loaded: {error}", fix=FIX
        ) from error
    scale = float(np.abs(np.diff(values)).mean())  # bytes squared are more than its optimiser's tolerances are made for
    models: list[Model] = []
    for name, chosen, read in (
        ("ARIMA", library.AutoARIMA(season_length=1, **ORDERS), arima_from),
        ("ETS", library.AutoETS(season_length=1, model="AZN"), smoothing_from),
    ):
        try:
            with warnings.catch_warnings():  # of an order that did not converge and is not taken, on stderr
                warnings.simplefilter("ignore")
                found = chosen.fit(values / scale)
            models.append(read(found.model_, scale))
        except Exception as error:  # noqa: BLE001  it raises bare Exceptions: told, and the other form is tried
            notes.append(f"{name} could not be fitted: {type(error).__name__}: {error}")
    return models


def arima_from(found: Any, scale: float) -> Arima:
    """Return what statsforecast fitted to values divided by `scale`. Raises ValueError for terms that are not ours."""
    p, q, _, _, _, d, _ = (int(one) for one in found["arma"])
    named = {str(name): float(one) for name, one in found["coef"].items()}
    known = {f"{kind}{lag}" for kind in ("ar", "ma") for lag in range(1, ORDER_MOST)} | {"intercept", "drift"}
    if not set(named) <= known:
        raise ValueError(f"has terms that are not ours: {sorted(set(named) - known)}")
    return Arima(
        ar=tuple(named[f"ar{lag}"] for lag in range(1, p + 1)),
        ma=tuple(named[f"ma{lag}"] for lag in range(1, q + 1)),
        differences=d,
        constant=scale * named.get("drift" if d else "intercept", 0.0),
    )


def smoothing_from(found: Any, scale: float) -> Smoothing:
    """Return what statsforecast fitted to values divided by `scale`. Raises ValueError for a form that is not ours."""
    error, trend, season, damped = found["components"]
    if (error, season) != ("A", "N"):
        raise ValueError(f"is not of our forms: {found['components']}")
    alpha, beta, _, damping = (float(one) for one in found["par"][:4])
    state = [scale * float(one) for one in found["states"][0]]
    has_trend = trend == "A"
    return Smoothing(
        alpha=alpha,
        beta=beta if has_trend else 0.0,
        damping=damping if damped != "N" else 1.0,
        level=state[0],
        slope=state[1] if has_trend else 0.0,
    )
