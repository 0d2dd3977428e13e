# SPDX-License-Identifier: Apache-2.0
"""What will be needed: quantiles of every workload's peak, from experts, mixed and calibrated online."""

from memsculpt.forecast.engine import Forecaster, recall, step, traits_of
from memsculpt.forecast.traits import Traits, traits_from_bytes

__all__ = ["Forecaster", "Traits", "recall", "step", "traits_from_bytes", "traits_of"]
