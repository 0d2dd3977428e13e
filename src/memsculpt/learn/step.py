# SPDX-License-Identifier: Apache-2.0
"""One step of learning: score what is due, judge what was done, forgive with time."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Applied, Corrections
from memsculpt.domain.plan import PageIn, PageOut, SculptPool
from memsculpt.domain.pool import Prefetch
from memsculpt.domain.profile import Profiles
from memsculpt.domain.report import Outcome, Scores
from memsculpt.domain.workload import WorkloadId
from memsculpt.learn import judging, scoring
from memsculpt.learn.corrections import Experience, corrections_from
from memsculpt.learn.judging import Trial
from memsculpt.learn.scoring import Waiting

PLANNED_LEVEL = 0.9  # the level that the planner sizes for; its misses widen the headroom
OUTCOMES_KEPT = 256
FORGET_S = 900.0
# The whole agent holds still when everything on the host stalls right after it has taken pages.
BACKOFF_FULL_STALL_RATIO = 0.4
BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learner:
    """What experience there is. `Learner()` has none."""

    waiting: tuple[Waiting, ...] = ()
    trials: tuple[Trial, ...] = ()
    experiences: Mapping[WorkloadId, Experience] = field(default_factory=dict[WorkloadId, Experience])
    outcomes: tuple[Outcome, ...] = ()
    horizon_s: float = 0.0
    levels: tuple[float, ...] = ()
    held_count: Float64 = field(default_factory=lambda: np.empty(0))
    pinball_sum: Float64 = field(default_factory=lambda: np.empty(0))
    scored_count: int = 0
    brought_bytes: Mapping[WorkloadId, float] = field(
        default_factory=dict[WorkloadId, float]
    )  # by the agent, in the tick before
    took_at_s: float = float("-inf")
    full_stall_s: float | None = None
    backoff_until_s: float = 0.0
    backoff_reason: str = ""


def step(
    learner: Learner,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    applied: tuple[Applied, ...],
) -> tuple[Learner, Corrections]:
    """Learn from this tick; return the corrections for the next plan. Pure."""
    if learner.levels != forecasts.levels:
        zeros = np.zeros(len(forecasts.levels))
        learner = replace(
            learner, levels=forecasts.levels, waiting=(), held_count=zeros, pinball_sum=zeros, scored_count=0
        )
    now_s = observation.time_s
    present = {each: learner.experiences.get(each, Experience()) for each in profiles.ids}
    gone = {each: old for each, old in learner.experiences.items() if now_s - old.seen_at_s < FORGET_S}
    experiences = gone | {each: old.forgiven(profiles.elapsed_s, now_s) for each, old in present.items()}
    learner, experiences = _score(learner, experiences, profiles, forecasts)
    learner, experiences = _judge(learner, experiences, observation, profiles, applied)
    learner = _back_off(learner, observation, profiles, applied)
    learner = replace(learner, experiences=MappingProxyType(experiences))
    corrections = corrections_from(
        experiences,
        profiles.ids,
        backoff_until_s=learner.backoff_until_s,
        backoff_reason=learner.backoff_reason,
    )
    return learner, corrections


def scores(learner: Learner) -> Scores | None:
    """Return how well the forecasts have done, over all workloads; None before the first was due."""
    if learner.scored_count == 0:
        return None
    return Scores(
        horizon_s=learner.horizon_s,
        levels=learner.levels,
        scored_count=learner.scored_count,
        covered_ratio=learner.held_count / learner.scored_count,
        pinball_bytes=learner.pinball_sum / learner.scored_count,
    )


def outcomes(learner: Learner) -> tuple[Outcome, ...]:
    """Return what came of the most recent actions, oldest first."""
    return learner.outcomes


def _score(
    learner: Learner, experiences: dict[WorkloadId, Experience], profiles: Profiles, forecasts: Forecasts
) -> tuple[Learner, dict[WorkloadId, Experience]]:
    followed = [scoring.follow(each, profiles) for each in learner.waiting]
    due = [each for each in followed if each.due_s <= profiles.time_s + 1e-6]
    waiting = [each for each in followed if each.due_s > profiles.time_s + 1e-6]
    held, pinball, count = learner.held_count.copy(), learner.pinball_sum.copy(), learner.scored_count
    planned = next((i for i, level in enumerate(learner.levels) if level >= PLANNED_LEVEL), len(learner.levels) - 1)
    for each in due:
        scored = scoring.score(each, learner.levels)
        held += scored.held.sum(axis=0)
        pinball += scored.pinball_bytes.sum(axis=0)
        count += len(scored.ids)
        for row, name in enumerate(scored.ids):
            if name in experiences:
                experiences[name] = experiences[name].after_score(
                    missed=not scored.held[row, planned],
                    covered=bool(scored.held[row, -1]),
                    pinball_bytes=float(scored.pinball_bytes[row, planned]),
                    level=learner.levels[planned],
                )
    # The nearest horizon is the planner's; the longer ones are the forecaster's own business.
    waiting.append(scoring.wait_for(forecasts, profiles, 0))
    learner = replace(
        learner,
        waiting=tuple(waiting),
        held_count=held,
        pinball_sum=pinball,
        scored_count=count,
        horizon_s=forecasts.horizons_s[0],
    )
    return learner, experiences


def _judge(
    learner: Learner,
    experiences: dict[WorkloadId, Experience],
    observation: Observation,
    profiles: Profiles,
    applied: tuple[Applied, ...],
) -> tuple[Learner, dict[WorkloadId, Experience]]:
    row_of = {each: row for row, each in enumerate(profiles.ids)}
    page_bytes = observation.memory.page_bytes
    open_trials: list[Trial] = []
    told: list[Outcome] = []
    for trial in learner.trials:
        brought = learner.brought_bytes.get(trial.workload, 0.0)
        followed = judging.follow(trial, profiles, row_of.get(trial.workload), brought, page_bytes)
        verdict = judging.judge(followed, observation.time_s)
        if verdict is None:
            open_trials.append(followed)
            continue
        told.append(verdict.outcome)
        known = experiences.get(verdict.workload)
        if known is not None and verdict.mistake_weight > 0.0:
            experiences[verdict.workload] = known.after_mistake(observation.time_s, verdict.mistake_weight)
        elif known is not None and verdict.page_in_used is not None:
            experiences[verdict.workload] = known.after_page_in(was_used=verdict.page_in_used)
    brought_now: dict[WorkloadId, float] = {}
    for one in applied:
        brings = isinstance(one.action, SculptPool) and isinstance(one.action.request, Prefetch)
        if isinstance(one.action, PageIn) or (isinstance(one.action, SculptPool) and brings):
            name = one.action.workload
            brought_now[name] = brought_now.get(name, 0.0) + one.done_bytes
    open_trials.extend(judging.trials_of(applied, observation, observation.time_s))
    learner = replace(
        learner,
        trials=tuple(open_trials),
        outcomes=(*learner.outcomes, *told)[-OUTCOMES_KEPT:],
        brought_bytes=MappingProxyType(brought_now),
    )
    return learner, experiences


def _back_off(learner: Learner, observation: Observation, profiles: Profiles, applied: tuple[Applied, ...]) -> Learner:
    now_s, stalled_s = observation.time_s, observation.memory.full_stall_s
    ratio = 0.0
    if stalled_s is not None and learner.full_stall_s is not None and profiles.elapsed_s > 0.0:
        ratio = max(stalled_s - learner.full_stall_s, 0.0) / profiles.elapsed_s
    until_s, reason = learner.backoff_until_s, learner.backoff_reason
    if ratio > BACKOFF_FULL_STALL_RATIO and now_s - learner.took_at_s < BACKOFF_S:
        until_s = now_s + BACKOFF_S
        reason = f"the whole host stalled on memory {ratio:.0%} of the time right after pages were taken"
    took = any(isinstance(one.action, PageOut | SculptPool) and one.done_bytes > 0 for one in applied)
    return replace(
        learner,
        full_stall_s=stalled_s,
        backoff_until_s=until_s,
        backoff_reason=reason,
        took_at_s=now_s if took else learner.took_at_s,
    )
