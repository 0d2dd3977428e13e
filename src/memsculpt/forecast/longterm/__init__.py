# SPDX-License-Identifier: Apache-2.0
"""The slow half of the forecaster: minutes to weeks, from a regular history of up to 28 days."""

from memsculpt.forecast.longterm.choice import KIND, Choice, choice_from_bytes
from memsculpt.forecast.longterm.gate import Gate, gate_from_bytes
from memsculpt.forecast.longterm.history import LEVELS, PEAK_STEPS, STEPS, History
from memsculpt.forecast.longterm.outlook import Outlook, look_ahead
from memsculpt.forecast.longterm.watch import (
    COVARIATES,
    REFRESH_S,
    RESOLUTION_S,
    RETRY_S,
    choose,
    history_from,
    outlook_from,
)

__all__ = [
    "COVARIATES",
    "KIND",
    "LEVELS",
    "PEAK_STEPS",
    "REFRESH_S",
    "RESOLUTION_S",
    "RETRY_S",
    "STEPS",
    "Choice",
    "Gate",
    "History",
    "Outlook",
    "choice_from_bytes",
    "choose",
    "gate_from_bytes",
    "history_from",
    "look_ahead",
    "outlook_from",
]
