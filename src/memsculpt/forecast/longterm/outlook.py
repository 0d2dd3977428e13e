# SPDX-License-Identifier: Apache-2.0
"""What a workload will need in the next minutes to hours, from weeks of its history: the slow half of the engine. Pure.

history -> cleaned -> described (features, candidates) -> weighed by a gate, or by the prior -> Outlook
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm import prior
from memsculpt.forecast.longterm.gate import Gate
from memsculpt.forecast.longterm.history import LEVELS, STEPS, History, cleaned
from memsculpt.forecast.longterm.moment import Moment, describe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """Quantiles for LEVELS, in the history's unit, within [0, capacity], not falling along the levels."""

    path: Float64  # of each of the next points, shape (levels, STEPS)
    peak: Float64  # of the peak over the next PEAK_STEPS points, shape (levels,)

    def __post_init__(self) -> None:
        """Check the shapes, and let nobody write."""
        if self.path.shape != (len(LEVELS), STEPS) or self.peak.shape != (len(LEVELS),):
            raise ValueError(f"an outlook has other shapes than {self.path.shape} and {self.peak.shape}")
        self.path.flags.writeable = False
        self.peak.flags.writeable = False


def look_ahead(history: History, gate: Gate | None = None) -> Outlook:
    """Return the outlook at the end of a history of any length from 1 on; gaps and nonsense in it do no harm.

    Without a gate, or with one that was trained on other covariates, the prior weighs the candidates. Some 6 ms.
    """
    whole = cleaned(_with_covariates_of(gate, history) if gate is not None else history)
    moment = describe(whole)
    peak, path = gate.apply(moment) if gate is not None else prior.apply(moment)
    return Outlook(path=_bounded(path, whole.capacity), peak=_bounded(peak, whole.capacity))


def _with_covariates_of(gate: Gate, history: History) -> History:
    """Return the history with what the gate knows, in its order; what was not measured says nothing."""
    unknown = np.full(len(history.values), np.nan)
    return History(
        values=history.values,
        covariates={name: history.covariates.get(name, unknown) for name in gate.covariates},
        step=history.step,
        interval_s=history.interval_s,
        capacity=history.capacity,
    )


def _bounded(quantiles: Float64, capacity: float) -> Float64:
    return np.clip(np.maximum.accumulate(quantiles, axis=0), 0.0, capacity)


__all__ = ["History", "Moment", "Outlook", "look_ahead"]
