# SPDX-License-Identifier: Apache-2.0
"""What to do, pure: forecasts and experience in, a plan with reasons out. No clock, no I/O, no chance."""

from memsculpt.plan.decide import choose
from memsculpt.plan.explain import explain_action, explain_grant, explain_plan, explain_reason
from memsculpt.plan.request import answer_request
from memsculpt.plan.state import PlannerState

__all__ = [
    "PlannerState",
    "answer_request",
    "choose",
    "explain_action",
    "explain_grant",
    "explain_plan",
    "explain_reason",
]
