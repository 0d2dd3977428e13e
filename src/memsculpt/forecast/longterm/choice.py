# SPDX-License-Identifier: Apache-2.0
"""What a fit came to for one workload: a model with its parameters, or that our own outlook is better. Pure.

Kept in the profile store as JSON, one version a fit, and worked with by `watch.outlook_from` until the next.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from memsculpt.errors import MemsculptError
from memsculpt.forecast.longterm.fitted import Arima, Model, Smoothing, path_of
from memsculpt.forecast.longterm.history import History
from memsculpt.forecast.longterm.outlook import Outlook

KIND = "model"  # of what the profile store keeps
FORMAT = 1
STEPS_MOST = 1 << 40  # a step further away than that is none
POINTS_LEAST = 144  # of a model's own stretch, to follow it at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Whether a fitted model helps to forecast a workload's path, and how much it is trusted then.

    Losses are the pinball loss over 12 and 36 points in units of the series' own change, the lower the better, on
    points that neither the fit nor the choice of the model saw.
    """

    made_step: int  # the last point that was known, on the grid of the history
    begin_step: int  # the first that the model was fitted to: where its state is known
    model: Model | None  # None: our own outlook is better
    trust: float  # of the model's path in the outlook's; the rest is our own's
    loss: float  # of the best that had a model in it; NaN where there was none
    own_loss: float
    windows_count: int  # that the losses were found on
    note: str = ""  # why there was none

    def __post_init__(self) -> None:
        """Check what was read from somewhere."""
        if not 0.0 <= self.trust <= 1.0 or not 0 <= self.begin_step <= self.made_step <= STEPS_MOST:
            raise ValueError(f"no choice: trust {self.trust}, points {self.begin_step} to {self.made_step}")

    @property
    def gain_ratio(self) -> float:
        """By how much of our own loss it is lower; negative where ours is better, NaN where nothing was compared."""
        return 1.0 - self.loss / self.own_loss if self.own_loss > 0.0 else float("nan")

    @property
    def form(self) -> str:
        """What forecasts the path besides us; "" for nothing."""
        return "" if self.model is None else self.model.form

    def to_bytes(self) -> bytes:
        """Return it as it is kept."""
        facts = {name: value for name, value in asdict(self).items() if name != "model"}
        numbers = {
            name: None if isinstance(one, float) and not np.isfinite(one) else one for name, one in facts.items()
        }
        kind = "arima" if isinstance(self.model, Arima) else "smoothing"
        model = None if self.model is None else {"kind": kind, **asdict(self.model)}
        return json.dumps({"format": FORMAT, "of": "path", "model": model, **numbers}, allow_nan=False).encode()

    def apply(self, outlook: Outlook, history: History, step: int) -> Outlook | None:
        """Return the outlook with the model's part in its path; None where it has none.

        The history is cleaned, and its last point is `step`. One that does not go back to the first point of the model
        is not followed: the model's state is known there and nowhere else.
        """
        count = step - self.begin_step + 1
        if self.model is None or self.trust == 0.0 or not POINTS_LEAST <= count <= len(history.values):
            return None
        path = path_of(self.model, history.values[-count:])
        if path is None or not np.isfinite(path).all():
            return None
        mixed = np.maximum.accumulate(outlook.path + self.trust * (path - outlook.path), axis=0)
        return Outlook(path=np.clip(mixed, 0.0, history.capacity), peak=outlook.peak.copy())


def choice_from_bytes(content: bytes) -> Choice:
    """Return a choice as it was kept. Raises MemsculptError for another format, or nonsense."""
    try:
        facts = cast("dict[str, Any]", json.loads(content))
        _check_format(facts.pop("format"), facts.pop("of"))
        model = _model_from(facts.pop("model"))
        for name in ("loss", "own_loss"):
            facts[name] = float("nan") if facts[name] is None else float(facts[name])
        return Choice(**facts, model=model)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MemsculptError(
            place="fitted model", problem=f"cannot be read: {error}", fix="none needed: it is fitted anew in a day"
        ) from error


def _check_format(found: object, of: object) -> None:
    if found != FORMAT or of != "path":
        raise ValueError(f"format {found} of {of}, not {FORMAT} of path")


def _model_from(facts: Mapping[str, Any] | None) -> Model | None:
    if facts is None:
        return None
    rest = {name: value for name, value in facts.items() if name not in {"kind", "ar", "ma"}}
    if facts["kind"] == "smoothing":
        return Smoothing(**rest)
    return Arima(**rest, ar=tuple(facts["ar"]), ma=tuple(facts["ma"]))
