# SPDX-License-Identifier: Apache-2.0
"""Whether a sculpt paid: faults, stalls and touches of a pool's process before and after. Pure.

A page-out pays as long as what returns costs less than it may, a move to a slow node as long as a quarter of it stays
unused. A collapse pays as long as what was gathered is in use.
A prefetch pays when at least half of what came was then touched. What did not pay is taken back, and not tried again
before a time that doubles with each mistake.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.pool import Blocks, SculptDone, Verdict

WINDOW_S = 30.0
WINDOW_MOST_S = 600.0
ALARM_LEAST_S = 3.0  # below it faults are counted too finely to say anything
FAULT_S = 25e-6
LOSS_MOST_RATIO = 0.01  # of wall time: twice what the planner allows itself
STALL_MOST_RATIO = 0.01
RETURNED_MOST_RATIO = 0.75  # of what left, within the window; below it the cost alone counts
USED_LEAST_RATIO = 0.5  # of what was gathered or brought back
REFUSED_S = 300.0
REFUSED_MOST_S = 4 * 3600.0


class Reading(NamedTuple):
    """Counters of a pool's process and workload at one moment."""

    at_s: float
    major_faults_count: int
    cpu_s: float
    stall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What can be said of a sculpt now."""

    verdict: Verdict
    reason: str
    faults_per_s: float = float("nan")
    stall_ratio: float = float("nan")
    precision: float = float("nan")
    recall: float = float("nan")


def readings_of(observation: Observation, rows: Sequence[int]) -> list[Reading]:
    """Return the counters of the processes in these rows."""
    processes = observation.processes
    faults, cpu_s = processes.major_faults_count[rows].tolist(), processes.cpu_s[rows].tolist()
    stall_s = observation.workloads.some_stall_s[processes.workload_index[rows]].tolist()
    return [Reading(observation.time_s, *counters) for counters in zip(faults, cpu_s, stall_s, strict=True)]


def rates(before: Reading, after: Reading) -> tuple[float, float, float]:
    """Return (major faults in a second, stalled share of time, processor time) between two readings; NaN at once."""
    passed_s = after.at_s - before.at_s
    if passed_s <= 0.0:
        return float("nan"), float("nan"), float("nan")
    return (
        (after.major_faults_count - before.major_faults_count) / passed_s,
        (after.stall_s - before.stall_s) / passed_s,
        (after.cpu_s - before.cpu_s) / passed_s,
    )


def judge(
    done: SculptDone,
    blocks: Blocks,
    before: tuple[float, float, float],
    since: Reading,
    now: Reading,
    left_bytes: int = 0,
) -> Judgement:
    """Judge a sculpt by what came since; `before` are rates in the time before it, `since` the reading right after it.

    `left_bytes` is what left by all page-outs that are judged: pages that return may be of any of them.
    Before the window has passed it is judged only when it already costs more than it may.
    """
    faults_per_s, stall_ratio, _ = rates(since, now)
    passed_s = now.at_s - since.at_s
    is_over = passed_s >= window_of(done)
    if passed_s < ALARM_LEAST_S:
        return Judgement(verdict=Verdict.UNDER_WAY, reason="its window has just begun")
    verdict, reason, precision, recall = _verdict(
        done, blocks, before, faults_per_s, stall_ratio, passed_s, is_over, max(left_bytes, done.left_bytes)
    )
    return Judgement(
        verdict=verdict,
        reason=reason,
        faults_per_s=faults_per_s,
        stall_ratio=stall_ratio,
        precision=precision,
        recall=recall,
    )


def window_of(done: SculptDone) -> float:
    """Return for how long a sculpt is watched: what leaves is to stay unused for as long as it was idle before."""
    idle_s = done.order.idle_least_s
    return min(max(WINDOW_S, idle_s), WINDOW_MOST_S) if idle_s > 0.0 else WINDOW_S


def refused_for_s(mistakes_count: int) -> float:
    """Return for how long a kind of sculpt is refused after so many mistakes in a row."""
    return min(REFUSED_S * 2.0 ** (mistakes_count - 1), REFUSED_MOST_S)


def _verdict(
    done: SculptDone,
    blocks: Blocks,
    before: tuple[float, float, float],
    faults_per_s: float,
    stall_ratio: float,
    passed_s: float,
    is_over: bool,  # noqa: FBT001  of eight facts one
    left_bytes: int,
) -> tuple[Verdict, str, float, float]:
    nan = float("nan")
    more_faults = max(0.0, faults_per_s - max(0.0, np.nan_to_num(before[0])))
    more_stall = stall_ratio - max(0.0, np.nan_to_num(before[1]))
    if done.left_bytes:
        returned = more_faults * passed_s * PAGE_BYTES / left_bytes
        loss = more_faults * FAULT_S
        told = (
            f"{returned:.0%} of it returned, at a cost of {loss:.2%} of time; stalls by {max(0.0, more_stall):.2%} more"
        )
        # A few seconds tell little: an alarm before the end needs three times as much.
        margin = 1.0 if is_over else 3.0
        if loss > margin * LOSS_MOST_RATIO or more_stall > margin * STALL_MOST_RATIO or returned > RETURNED_MOST_RATIO:
            return Verdict.UNDONE, told, nan, nan
        return (Verdict.PAID if is_over else Verdict.UNDER_WAY), told, nan, nan
    if not is_over:
        return Verdict.UNDER_WAY, f"{passed_s:.0f} s of its window have passed", nan, nan
    if done.demoted_bytes:
        returned = min(1.0, _used_bytes(done, blocks, done.order.demote) / done.demoted_bytes)
        told = f"{returned:.0%} of what went to the slow node was in use again"
        return (Verdict.PAID if returned <= RETURNED_MOST_RATIO else Verdict.UNDONE), told, nan, nan
    if done.came_bytes:
        used = _used_bytes(done, blocks, done.order.come) / max(done.came_bytes, 1)
        precision = min(1.0, used)
        needed = precision * done.came_bytes + faults_per_s * passed_s * PAGE_BYTES
        recall = precision * done.came_bytes / needed if needed else nan
        told = f"{precision:.0%} of what came was touched, {recall:.0%} of what was needed was there"
        return (Verdict.PAID if precision >= USED_LEAST_RATIO else Verdict.UNDONE), told, precision, recall
    if done.collapsed_bytes:
        used = _used_bytes(done, blocks, done.order.collapse) / done.collapsed_bytes
        told = f"{min(1.0, used):.0%} of what was gathered was in use"
        return (Verdict.PAID if used >= USED_LEAST_RATIO else Verdict.UNDONE), told, nan, nan
    return Verdict.PAID, "nothing was moved that could cost anything", nan, nan


def _used_bytes(done: SculptDone, blocks: Blocks, ranges: Int64) -> int:
    """Return how much the blocks of the ranges hold that were touched since; what was not looked at again counts."""
    since = done.at_s - blocks.began_s
    rows = blocks.rows_within(ranges) & ((blocks.touched_at_s > since) | ~(blocks.looked_at_s > since))
    return int(blocks.present[rows].sum(dtype=np.int64)) * PAGE_BYTES
