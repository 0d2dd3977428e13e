# SPDX-License-Identifier: Apache-2.0
"""The experts, one file each. `EXPERTS` is the list that the engine runs; a new one is added here."""

from memsculpt.forecast.experts.damped import Damped
from memsculpt.forecast.experts.drift import Drift
from memsculpt.forecast.experts.last_value import LastValue
from memsculpt.forecast.experts.seasonal_naive import SeasonalNaive
from memsculpt.forecast.protocol import Expert

__all__ = ["EXPERTS", "Damped", "Drift", "LastValue", "SeasonalNaive"]

EXPERTS: tuple[Expert, ...] = (LastValue(), Drift(), Damped(), SeasonalNaive())
