# SPDX-License-Identifier: Apache-2.0
"""What an action promised, what was done, and what came of it."""

from dataclasses import dataclass
from enum import Enum

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.plan import Action
from memsculpt.domain.workload import WorkloadId


class Status(Enum):
    """How far an action got."""

    DONE = "done"
    PARTIAL = "partial"  # the kernel did less than asked
    FAILED = "failed"
    REHEARSED = "rehearsed"  # observe mode: what would have been done
    LEFT_ALONE = "left-alone"  # somebody else changed the value since


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One action as it went."""

    action_id: int  # counts up over the agent's life; `explain` takes it
    action: Action
    status: Status
    at_s: float
    done_bytes: int  # moved, freed, or the value that the kernel kept
    duration_s: float
    cpu_s: float
    problem: str = ""  # place, problem, fix of what went wrong


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrections:
    """What experience says about the next plan; columns by workload, neutral values at first."""

    ids: tuple[WorkloadId, ...]
    headroom_ratio: Float64  # multiplies the forecast's spread above the median; 1 is neutral
    page_out_allowed_ratio: Float64  # 0 after a mistake (refaults, stalls), back to 1 over time
    page_in_useful_ratio: Float64  # share of prefetched bytes that were then needed
    refused_until_s: Float64  # nothing is taken from the workload before this time
    scored_count: Int64  # how many forecasts have been scored
    covered_ratio: Float64  # share of them whose top quantile held
    pinball_bytes: Float64  # mean pinball loss at the planner's level
    backoff_until_s: float = 0.0  # the whole agent holds still until then
    backoff_reason: str = ""

    def __post_init__(self) -> None:
        columns = (
            "headroom_ratio",
            "page_out_allowed_ratio",
            "page_in_useful_ratio",
            "refused_until_s",
            "scored_count",
            "covered_ratio",
            "pinball_bytes",
        )
        freeze_columns(self, columns, (len(self.ids),))
