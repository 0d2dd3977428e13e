# SPDX-License-Identifier: Apache-2.0
"""What to do, pure: forecasts and experience in, a plan with reasons out. No clock, no I/O, no chance."""

from memsculpt.plan.balloon_watch import after_asking
from memsculpt.plan.decide import choose
from memsculpt.plan.explain import explain_action, explain_grant, explain_plan, explain_reason
from memsculpt.plan.overcommit import Overcommit, overcommit_of
from memsculpt.plan.phases import (
    Experience,
    MoveBudget,
    PrefetchChoice,
    PrefetchOutcome,
    Standing,
    choose_prefetch,
    learn_from,
    what_is_coming,
)
from memsculpt.plan.phases import judge as judge_prefetch
from memsculpt.plan.request import answer_request
from memsculpt.plan.sculpt import (
    SculptRules,
    choose_cold,
    choose_due,
    choose_hot,
    choose_returned,
    explain_sculpt,
    ranges_of_rows,
    slow_by_block,
    slow_bytes,
    weigh_cold,
)
from memsculpt.plan.sculpt import joined as joined_ranges
from memsculpt.plan.sharing import SharingRules, SharingState, SharingView, after_sharing, choose_sharing, saved_pages
from memsculpt.plan.situation import room_below_limit_bytes
from memsculpt.plan.state import Balloon, PlannerState

__all__ = [
    "Balloon",
    "Experience",
    "MoveBudget",
    "Overcommit",
    "PlannerState",
    "PrefetchChoice",
    "PrefetchOutcome",
    "SculptRules",
    "SharingRules",
    "SharingState",
    "SharingView",
    "Standing",
    "after_asking",
    "after_sharing",
    "answer_request",
    "choose",
    "choose_cold",
    "choose_due",
    "choose_hot",
    "choose_prefetch",
    "choose_returned",
    "choose_sharing",
    "explain_action",
    "explain_grant",
    "explain_plan",
    "explain_reason",
    "explain_sculpt",
    "joined_ranges",
    "judge_prefetch",
    "learn_from",
    "overcommit_of",
    "ranges_of_rows",
    "room_below_limit_bytes",
    "saved_pages",
    "slow_by_block",
    "slow_bytes",
    "weigh_cold",
    "what_is_coming",
]
