# SPDX-License-Identifier: Apache-2.0
"""Every action's promised effect is compared with what came of it.

A page-out is a mistake when the workload at once needs the pages again; a page-in was useless when the
workload did not run in the time it was meant for; a lowered limit was wrong when it was hit.
"""

from dataclasses import dataclass

from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import PageIn, PageOut, SetLimit
from memsculpt.domain.profile import Profiles
from memsculpt.domain.report import Outcome
from memsculpt.domain.workload import WorkloadId

PAGE_OUT_WINDOW_S = 2.5
PAGE_IN_WINDOW_S = 12.0
LIMIT_WINDOW_S = 5.0
# Above this share of what was sent out coming back by faults, the wrong pages left.
MISTAKE_RATIO = 0.2
# A mistake weighs in full when this share of the workload's memory was sent out; a few pages weigh little.
FULL_WEIGHT_RATIO = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An action whose effect is not known yet."""

    applied: Applied
    workload: WorkloadId
    until_s: float
    faulted_bytes: float = 0.0  # page-out: what came back by the workload's own faults, at most all of it
    whole_bytes: float = 0.0  # what the workload had: in use, cold and in its working set
    has_run: bool = False
    hit_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of an action, and what it says about the workload."""

    outcome: Outcome
    workload: WorkloadId
    mistake_weight: float = 0.0  # 0 for none, 1 for one that cost a good part of the workload's memory
    page_in_used: bool | None = None


def trials_of(applied: tuple[Applied, ...], observation: Observation, now_s: float) -> tuple[Trial, ...]:
    """Return what is to be watched of the actions that were just carried out."""
    trials: list[Trial] = []
    for one in applied:
        if one.status not in {Status.DONE, Status.PARTIAL}:
            continue
        action = one.action
        if isinstance(action, PageOut) and one.done_bytes > 0:
            trials.append(Trial(applied=one, workload=action.workload, until_s=now_s + PAGE_OUT_WINDOW_S))
        elif isinstance(action, PageIn) and one.done_bytes > 0:
            trials.append(Trial(applied=one, workload=action.workload, until_s=now_s + PAGE_IN_WINDOW_S))
        elif isinstance(action, SetLimit) and action.to_bytes < action.from_bytes:
            trials.extend(
                Trial(applied=one, workload=each, until_s=now_s + LIMIT_WINDOW_S)
                for each, cgroup in zip(observation.workloads.ids, observation.workloads.cgroups, strict=True)
                if cgroup == action.cgroup
            )
    return tuple(trials)


def follow(trial: Trial, profiles: Profiles, row: int | None, brought_bytes: float, page_bytes: int) -> Trial:
    """Return the trial after one more tick; `brought_bytes` is what the agent itself brought back in it."""
    if row is None:
        return trial
    # The kernel counts pages that others fault in for a workload among its major faults: they are ours.
    faulted = float(profiles.major_faults_per_s[row]) * profiles.elapsed_s * page_bytes - brought_bytes
    present = int(profiles.needed_bytes[row] + profiles.cold_bytes[row])
    return Trial(
        applied=trial.applied,
        workload=trial.workload,
        until_s=trial.until_s,
        faulted_bytes=min(trial.faulted_bytes + max(faulted, 0.0), float(trial.applied.done_bytes)),
        whole_bytes=max(trial.whole_bytes, float(max(present, int(profiles.working_set_bytes[row])))),
        has_run=trial.has_run or float(profiles.idle_s[row]) <= 0.0,
        hit_limit=trial.hit_limit or bool(profiles.hit_limit[row]),
    )


def judge(trial: Trial, now_s: float) -> Verdict | None:
    """Return the verdict once it can be told, None before."""
    applied, action = trial.applied, trial.applied.action
    is_due = now_s >= trial.until_s
    done = applied.done_bytes
    if isinstance(action, PageOut):
        is_mistake = trial.faulted_bytes > MISTAKE_RATIO * done
        if not is_due and not is_mistake:
            return None
        came = max(0, int(done - trial.faulted_bytes))
        word = "was-needed-again" if is_mistake else "held"
        weight = min(done / max(FULL_WEIGHT_RATIO * trial.whole_bytes, 1.0), 1.0) if is_mistake else 0.0
        return Verdict(outcome=_outcome(applied, came, word), workload=trial.workload, mistake_weight=weight)
    if isinstance(action, PageIn):
        if not is_due and not trial.has_run:
            return None
        word = "was-used" if trial.has_run else "was-not-used"
        outcome = _outcome(applied, done if trial.has_run else 0, word)
        return Verdict(outcome=outcome, workload=trial.workload, page_in_used=trial.has_run)
    if not is_due and not trial.hit_limit:
        return None
    word = "was-hit" if trial.hit_limit else "held"
    outcome = _outcome(applied, done, word)
    return Verdict(outcome=outcome, workload=trial.workload, mistake_weight=float(trial.hit_limit))


def _outcome(applied: Applied, came_bytes: int, verdict: str) -> Outcome:
    action = applied.action
    promised = action.to_bytes if isinstance(action, SetLimit) else getattr(action, "size_bytes", 0)
    return Outcome(action_id=applied.action_id, promised_bytes=promised, came_bytes=came_bytes, verdict=verdict)
