# SPDX-License-Identifier: Apache-2.0
"""Which functions the memory of critical workloads comes from: sampled from tick to tick, told to who asks."""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace

from memsculpt import act, profile
from memsculpt.domain.growth import GrowthSample, GrowthSummary
from memsculpt.domain.observation import Observation
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import MemsculptError, Refused, Unavailable
from memsculpt.host.protocol import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    workload: WorkloadId
    answer: "Future[GrowthSample]"


class GrowthWatch:
    """Used by the agent's thread, but for `ask`."""

    def __init__(self, host: Host, settings: Settings, *, beside: bool) -> None:
        self._settings = settings
        self._state = profile.SamplingState()
        self._sampler = act.FaultSampler(host, beside=beside)
        self._asked: deque[_Asked] = deque()

    @property
    def spent_ratio(self) -> float:
        """What it takes of one processor, whoever pays."""
        return self._state.spent_ratio

    @property
    def agent_ratio(self) -> float:
        """What of that the agent pays."""
        return self._state.agent_ratio

    def ask(self, workload: WorkloadId) -> "Future[GrowthSample]":
        """Put a question into the next tick; safe from any thread."""
        asked = _Asked(workload=workload, answer=Future())
        self._asked.append(asked)
        return asked.answer

    def follow(self, observation: Observation, rest_ratio: float) -> GrowthSummary | None:
        """Fetch what was recorded and set how finely it goes on; None where nobody is sampled.

        `rest_ratio` is what the agent takes of one processor for everything else.
        """
        settings, partitions = self._settings.sense, self._settings.partitions
        if settings.budget_ratio <= 0.0 or not any(one.critical for one in partitions):
            return None
        sampler, now_s = self._sampler, observation.time_s
        self._state = profile.absorb_faults(
            self._state,
            sampler.collect(),
            now_s=now_s,
            record_cost_s=sampler.record_cost_s,
            pass_cost_s=sampler.pass_cost_s,
        )
        self._state, rates = profile.choose_fault_rates(
            self._state, observation, partitions, settings, agent_ratio=rest_ratio
        )
        found = profile.summarize_growth(self._state)
        sampler.watch(rates, now_s, is_on=found.is_on)
        return replace(found, is_on=False, notes=(*found.notes, sampler.problem)) if sampler.problem else found

    def answer(self, now_s: float) -> None:
        """Answer who asked where a workload's memory came from."""
        while self._asked:
            asked = self._asked.popleft()
            if not asked.answer.set_running_or_notify_cancel():
                continue
            if not profile.knows_growth(self._state, asked.workload):
                asked.answer.set_exception(_not_sampled(asked.workload, self._sampler.problem))
                continue
            try:
                held = self._sampler.count_held(
                    profile.page_owners(self._state, asked.workload), len(self._state.log.events)
                )
                asked.answer.set_result(
                    profile.estimate_growth(self._state, asked.workload, held, self._sampler.modules(), now_s=now_s)
                )
            except Exception as problem:
                asked.answer.set_exception(problem)
                raise

    def close(self, why: MemsculptError) -> None:
        """End the sampling; who still waits is told why there is no answer."""
        self._sampler.close()
        while self._asked:
            waiting = self._asked.popleft()
            if waiting.answer.set_running_or_notify_cancel():
                waiting.answer.set_exception(why)


def _not_sampled(workload: WorkloadId, problem: str) -> MemsculptError:
    if problem:
        return Unavailable(place=workload, problem=f"page faults cannot be watched: {problem}", fix="memsculpt doctor")
    return Refused(
        place=workload,
        problem="its page faults are not sampled: it is in no partition that is critical, or sensing is off",
        fix="write critical = true in its [[partition]], or record one process: memsculpt growth PID",
    )
