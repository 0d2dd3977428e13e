# SPDX-License-Identifier: Apache-2.0
"""The experts, one file each. `EXPERTS` is the list that the engine runs; a new one is added here."""

from memsculpt.forecast.experts.drift import Drift
from memsculpt.forecast.experts.last_value import LastValue
from memsculpt.forecast.experts.seasonal_naive import SeasonalNaive
from memsculpt.forecast.experts.smoothing import Smoothing
from memsculpt.forecast.protocol import Expert

__all__ = ["EXPERTS", "Drift", "LastValue", "SeasonalNaive", "Smoothing"]

EXPERTS: tuple[Expert, ...] = (
    LastValue(),
    Drift(),
    Smoothing("simple smoothing", level=0.3),
    Smoothing("Holt's trend", level=0.5, trend=0.1),
    Smoothing("damped smoothing", level=0.5, trend=0.2, damping=0.9),
    SeasonalNaive(),
)
