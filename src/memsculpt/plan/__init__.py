# SPDX-License-Identifier: Apache-2.0
"""What to do, pure: forecasts and experience in, a plan with reasons out. No clock, no I/O, no chance."""

from memsculpt.plan.balloon_watch import after_asking
from memsculpt.plan.decide import choose
from memsculpt.plan.explain import explain_action, explain_grant, explain_plan, explain_reason
from memsculpt.plan.overcommit import Overcommit, overcommit_of
from memsculpt.plan.request import answer_request
from memsculpt.plan.sculpt import (
    SculptRules,
    choose_cold,
    choose_due,
    choose_hot,
    explain_sculpt,
    ranges_of_rows,
    weigh_cold,
)
from memsculpt.plan.state import Balloon, PlannerState

__all__ = [
    "Balloon",
    "Overcommit",
    "PlannerState",
    "SculptRules",
    "after_asking",
    "answer_request",
    "choose",
    "choose_cold",
    "choose_due",
    "choose_hot",
    "explain_action",
    "explain_grant",
    "explain_plan",
    "explain_reason",
    "explain_sculpt",
    "overcommit_of",
    "ranges_of_rows",
    "weigh_cold",
]
