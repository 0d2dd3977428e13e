# SPDX-License-Identifier: Apache-2.0
"""The slow half of the forecaster: minutes to weeks, from a regular history of up to 28 days."""

from memsculpt.forecast.longterm.gate import Gate, gate_from_bytes
from memsculpt.forecast.longterm.moment import LEVELS, PEAK_STEPS, STEPS, History
from memsculpt.forecast.longterm.outlook import Outlook, look_ahead

__all__ = ["LEVELS", "PEAK_STEPS", "STEPS", "Gate", "History", "Outlook", "gate_from_bytes", "look_ahead"]
