# SPDX-License-Identifier: Apache-2.0
"""What will be needed: quantiles of every workload's peak, from experts, mixed and calibrated online."""

from memsculpt.forecast.engine import Forecaster, step

__all__ = ["Forecaster", "step"]
