# SPDX-License-Identifier: Apache-2.0
"""One tick of the flow, and the loop around it. The only file that knows every room; it decides nothing.

    observe -> profile -> forecast -> plan -> act -> learn

Two doors stand open to other threads: `report`, the last tick's results, replaced as a whole, and
`ask`, which puts a request into the next tick. Whatever fails inside a tick ends that tick, not the
agent; after `MAX_FAILURES` in a row everything that was changed is undone and the agent only observes.
"""

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from memsculpt import act, forecast, learn, plan, profile
from memsculpt.agent.ballooning import Ballooning, notes_of
from memsculpt.agent.foresight import Foresight
from memsculpt.agent.growth_watch import GrowthWatch
from memsculpt.agent.pace import Pace
from memsculpt.agent.refitting import Refitting
from memsculpt.agent.sculpting import Sculpting
from memsculpt.agent.sharing import Sharing
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.growth import GrowthSample, GrowthSummary
from memsculpt.domain.heat import LookAt, LookKind, WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import Abilities, CreateCgroup, Grant, Plan, Request
from memsculpt.domain.pool import PoolSummary, SculptRequest, SculptStats
from memsculpt.domain.profile import Profiles
from memsculpt.domain.report import CapabilityFact, Report
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import MemsculptError, Refused
from memsculpt.forecast import longterm
from memsculpt.host.protocol import Host

log = logging.getLogger(__name__)

MAX_FAILURES = 5
RECENT_COUNT = 256
EARLY_TICK_GAP_RATIO = 0.25  # of the interval: pressure may call a tick early, but not more often than this


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What one tick came to."""

    number: int
    observation: Observation
    profiles: Profiles
    forecasts: Forecasts
    plan: Plan
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    request: Request
    answer: "Future[Grant]"


class Agent:
    """The flow on one host. Used by one thread, but for `report`, `ask` and `ask_growth`.

    `on_tick` is called with the host's time after every tick that did not fail: the lease is renewed there. With
    `looks_beside` a thread looks at pages between the ticks; without, each tick does it itself, as in simulated time.
    With a `pace` the ticks of `run` are as far apart as that says.
    """

    def __init__(
        self,
        *,
        host: Host,
        settings: Settings,
        journal: act.Journal | None = None,
        recorder: profile.Recorder | None = None,
        gate: longterm.Gate | None = None,
        refitting: Refitting | None = None,
        looks_beside: bool = False,
        pace: Pace | None = None,
        sharing_seat: act.SharingSeat | None = None,
    ) -> None:
        self._host = host
        self._settings = settings
        self._pace = pace
        self._journal = journal
        self._recorder = recorder
        self._refitting = refitting
        self._foresight = None if recorder is None else Foresight(recorder, gate, refitting, settings)
        self._ids = act.ActionIds()
        self._profile_state = profile.ProfileState()
        self._sensing = profile.SensingState()
        self._sensor = act.Sensor(host, settings.interval_s if looks_beside else 0.0)
        self._touch_cost_s: float | None = None
        self._sculpting = Sculpting(host, settings, journal=journal)
        self._ballooning = Ballooning(host, settings, self._sculpting)
        self._sharing = Sharing(host, settings, seat=sharing_seat)
        self._growth = GrowthWatch(host, settings, beside=looks_beside)
        self._forecaster = forecast.Forecaster()
        if self._foresight is not None:
            self._foresight.recall(self._forecaster)
        self._planner = plan.PlannerState(abilities=_abilities_of(host))
        self._learner = learn.Learner()
        self._corrections = learn.neutral_corrections(())
        self._asked: deque[_Asked] = deque()
        self._acted = True
        self._answering: list[_Asked] = []  # taken up in the tick under way
        self.on_tick: Callable[[float], None] = _nothing
        self._recent: deque[Applied] = deque(maxlen=RECENT_COUNT)
        self._counts: Counter[str] = Counter()
        self._failures_in_a_row = 0
        self._gave_up = False
        self._made: set[str] = set()  # partitions whose cgroups were made here
        self._watched: tuple[PartitionSettings, ...] = ()  # of those, made for requests
        self._self_use = act.SelfMeter()
        started_at_s = host.now_s()
        self.report = Report(
            mode=settings.mode,
            settings=settings,
            started_at_s=started_at_s,
            now_s=started_at_s,
            pid=os.getpid(),
            host_name=host.name,
            capabilities=_facts_of(host),
        )

    def ask(self, request: Request) -> "Future[Grant]":
        """Put a request into the next tick; safe from any thread."""
        asked = _Asked(request=request, answer=Future())
        self._asked.append(asked)
        self._host.wake()
        return asked.answer

    def ask_growth(self, workload: WorkloadId) -> "Future[GrowthSample]":
        """Have the next tick tell where a workload's memory came from; safe from any thread.

        The answer is Refused where that is not sampled.
        """
        answer = self._growth.ask(workload)
        self._host.wake()
        return answer

    def ask_sculpt(self, pool: str, request: SculptRequest) -> "Future[SculptStats]":
        """Have the next tick sculpt a pool; safe from any thread. Raises UsageError for what has no meaning."""
        answer = self._sculpting.ask(pool, request)
        self._host.wake()
        return answer

    def tick(self) -> Tick:
        """Go once around the flow. Raises what a room raises; `run` keeps that from ending the agent."""
        try:
            return self._go_round()
        except Exception as problem:
            # Who asked must not wait for an answer that this tick can no longer give.
            while self._answering:
                self._answering.pop().answer.set_exception(problem)
            raise

    def _go_round(self) -> Tick:
        settings = self._settings
        observation = self._host.observe()
        if observation.vms:
            self._profile_state = replace(self._profile_state, overheads=self._ballooning.measure(observation))
        self._profile_state, profiles = profile.update(self._profile_state, observation, settings)
        self._forecaster, forecasts = forecast.step(self._forecaster, profiles, settings.forecast)
        if self._foresight is not None:
            forecasts = replace(forecasts, outlooks=self._foresight.outlooks)
        growth = self._growth.follow(observation, self._rest_ratio(observation.time_s))
        warmth = self._sense(observation, profiles)
        self._growth.answer(observation.time_s)
        self._sculpt(observation)
        pools = self._sculpting.summaries(observation)
        answered = self._answer(observation, profiles, forecasts, pools)
        self._planner, chosen = plan.choose(
            self._planner,
            observation,
            profiles,
            forecasts,
            self._corrections,
            settings,
            pools=pools,
        )
        self._ballooning.follow(observation, self._planner.balloons, self._journal, may_act=self._may_act())
        chosen = self._sharing.choose(chosen, observation)
        applied = self._carry_out(observation, chosen)
        self._sharing.note(applied)
        if self._planner.balloons:
            self._planner = replace(self._planner, balloons=plan.after_asking(self._planner.balloons, applied))
        self._watch_created(applied)
        for asked, grant in answered:
            asked.answer.set_result(grant)
        self._answering.clear()
        self._learner, self._corrections = learn.step(self._learner, observation, profiles, forecasts, applied)
        if self._foresight is not None:
            self._foresight.follow(observation, profiles, warmth, forecasts, self._forecaster)
        self._publish(observation, profiles, forecasts, chosen, applied, warmth, growth)
        return Tick(
            number=self.report.tick_count,
            observation=observation,
            profiles=profiles,
            forecasts=forecasts,
            plan=chosen,
            applied=applied,
        )

    def run(self, stop: threading.Event, duration_s: float | None = None) -> None:
        """Tick until `stop` is set or `duration_s` is over. `close` undoes; this does not."""
        interval_s = self._settings.interval_s
        begin_s = self._host.now_s()
        next_s = begin_s
        while not stop.is_set() and (duration_s is None or self._host.now_s() < begin_s + duration_s):
            started_s = self._host.now_s()
            self._tick_safely(is_late=started_s > next_s + interval_s / 2)
            interval_s = self._keep_pace(interval_s)
            # a tick that overran is not made up for: the next one keeps its distance
            next_s = max(next_s + interval_s, self._host.now_s() + interval_s * EARLY_TICK_GAP_RATIO)
            if duration_s is not None:
                next_s = min(next_s, begin_s + duration_s)
            if not stop.is_set() and self._host.wait_until(next_s):
                next_s = self._host.now_s()

    def _keep_pace(self, interval_s: float) -> float:
        """Return how far apart ticks are to be from now on."""
        if self._pace is None or self._pace.follow() == interval_s:
            return interval_s
        self._host.pace(self._pace.interval_s)
        return self._pace.interval_s

    def close(self) -> "act.RestoreReport | None":
        """Undo everything that was changed; the host itself stays open."""
        self._sensor.close()
        self._growth.close(_ending())
        self._sculpting.close(may_act=self._may_act())
        self._sharing.close()
        if self._foresight is not None:
            self._foresight.close(self.report.observation, self._forecaster)
        while self._asked:
            asked = self._asked.popleft()
            if asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(_ending())
        if self._journal is None or self._settings.mode is not Mode.APPLY:
            return None
        return act.restore(self._host, self._journal)

    def _tick_safely(self, *, is_late: bool) -> None:
        if is_late:
            self.report = replace(self.report, late_count=self.report.late_count + 1)
        try:
            self.tick()
        except Exception as problem:
            self._failures_in_a_row += 1
            log.exception("tick failed")
            self.report = replace(
                self.report,
                failed_count=self.report.failed_count + 1,
                last_problem=str(problem) if isinstance(problem, MemsculptError) else repr(problem),
            )
            if self._failures_in_a_row == MAX_FAILURES:
                self._give_up()
            if self._gave_up:  # nothing is held any more, so the lease may be renewed for observing on
                self.on_tick(self._host.now_s())
        else:
            self._failures_in_a_row = 0
            self.on_tick(self._host.now_s())

    def _give_up(self) -> None:
        """Undo everything and only observe from now on: an agent that cannot tick must not hold limits."""
        log.error("%d ticks failed in a row: undoing every change, observing only", MAX_FAILURES)
        self._gave_up = True
        self.close()
        self._settings = replace(self._settings, mode=Mode.OBSERVE)
        self.report = replace(self.report, mode=Mode.OBSERVE)

    def _answer(
        self,
        observation: Observation,
        profiles: Profiles,
        forecasts: Forecasts,
        pools: tuple[PoolSummary, ...],
    ) -> list[tuple[_Asked, Grant]]:
        """Answer what was asked since the tick before; the grants' actions join this tick's plan."""
        answered: list[tuple[_Asked, Grant]] = []
        while self._asked:
            asked = self._asked.popleft()
            if not asked.answer.set_running_or_notify_cancel():
                continue  # who asked has given up; from here on it cannot be cancelled any more
            self._answering.append(asked)
            self._planner, grant = plan.answer_request(
                self._planner, asked.request, observation, profiles, forecasts, self._settings, pools=pools
            )
            answered.append((asked, grant))
        return answered

    def _sense(self, observation: Observation, profiles: Profiles) -> WorkloadHeat | None:
        """Look at the pages of the partitions' processes, as far as the budget goes; None where it is switched off."""
        settings = self._settings.sense
        if settings.budget_ratio <= 0.0 or not self._settings.partitions:
            return None
        if self._touch_cost_s is None:
            self._touch_cost_s = self._host.touch_cost_s()
        if self._sensor.is_busy:
            return self.report.heat
        looked = self._sensor.collect()
        self._sculpting.kept.absorb(looked)
        self._sensing = profile.absorb_looks(self._sensing, looked, touch_cost_s=self._touch_cost_s)
        self._look_at_whole_pools(observation, self._touch_cost_s)
        rest_ratio = self._rest_ratio(observation.time_s) + self._growth.spent_ratio
        self._sensing, tasks = profile.choose_looks(
            self._sensing,
            observation,
            profiles,
            settings,
            touch_cost_s=self._touch_cost_s,
            agent_ratio=rest_ratio,
        )
        self._sensor.start(tasks)
        return profile.summarize_heat(self._sensing, source=self._sensor.source, now_s=observation.time_s)

    def _look_at_whole_pools(self, observation: Observation, touch_cost_s: float) -> None:
        """Look at the pools whose phases are learnt, which pay for it themselves."""
        for process, is_changed in self._sculpting.kept.wanted(observation):
            if is_changed:
                surveyed = self._sensor.look((LookAt(kind=LookKind.SURVEY, process=process),))
                self._sculpting.kept.absorb(surveyed)
                self._sensing = profile.absorb_looks(
                    self._sensing, surveyed, touch_cost_s=touch_cost_s, is_budgeted=False
                )
            looked = self._sensor.look(profile.whole_looks(self._sensing, process))
            if looked:
                self._sensing = profile.absorb_looks(
                    self._sensing, looked, touch_cost_s=touch_cost_s, is_budgeted=False
                )
                cost_s = profile.cost_of_looks(looked, touch_cost_s)
                self._sculpting.kept.see(process, looked, observation, cost_s)

    def _sculpt(self, observation: Observation) -> None:
        """Take back what did not pay, and do what was asked."""
        may_act = self._may_act()
        self._sculpting.settle(observation, may_act=may_act)
        self._sculpting.answer(observation, may_act=may_act)

    def _rest_ratio(self, now_s: float) -> float:
        """Return the processor time that the agent takes for everything but pages and faults."""
        return max(0.0, self.report.agent.cpu_share - self._sensor.used_ratio(now_s) - self._growth.agent_ratio)

    def _watch_created(self, applied: tuple[Applied, ...]) -> None:
        """Have the host observe partitions that were made for requests, too, once their cgroups are there."""
        self._made |= {
            one.action.partition
            for one in applied
            if isinstance(one.action, CreateCgroup) and one.status is Status.DONE
        }
        created = tuple(one for one in self._planner.created if one.name in self._made)
        if created != self._watched:
            self._watched = created
            self._host.watch(self._settings.partitions + created)

    def _may_act(self) -> bool:
        return self._settings.mode is Mode.APPLY and self._journal is not None and self._journal.writable

    def _carry_out(self, observation: Observation, chosen: Plan) -> tuple[Applied, ...]:
        may_act = self._may_act()
        self._tell_of_journal(may_act=may_act)
        if may_act and self._journal is not None:
            # The planner saves up rates over two ticks at most; that is checked once more at the last moment.
            budget = act.Budget.for_tick(self._settings.plan, observation.memory, 2.0 * self._settings.interval_s)
            sculptor = partial(self._sculpting.carry_out, observation=observation)
            return act.apply(self._host, self._journal, chosen, self._ids, budget=budget, sculptor=sculptor)
        return act.rehearse(chosen, self._host.now_s(), self._ids)

    def _tell_of_journal(self, *, may_act: bool) -> None:
        """Log once when a disk fills up, and once when it is well again."""
        if self._journal is not None and self._settings.mode is Mode.APPLY and may_act != self._acted:
            self._acted = may_act
            if may_act:
                log.warning("the journal can be written again: acting")
            else:
                log.warning("not acting, because the journal cannot be written: %s", self._journal.problem)

    def _publish(
        self,
        observation: Observation,
        profiles: Profiles,
        forecasts: Forecasts,
        chosen: Plan,
        applied: tuple[Applied, ...],
        warmth: WorkloadHeat | None,
        growth: GrowthSummary | None,
    ) -> None:
        self._recent.extend(applied)
        self._counts.update(done.status.value for done in applied)
        before = self.report
        self.report = replace(
            before,
            now_s=observation.time_s,
            tick_count=before.tick_count + 1,
            agent=self._self_use.measure(observation),
            observation=observation,
            profiles=profiles,
            heat=warmth,
            growth=growth,
            forecasts=forecasts,
            outlooks=tuple(forecasts.outlooks.values()),
            pools=self._sculpting.pools(),
            sharing=self._sharing.report,
            plan=chosen,
            planned=applied,
            applied=tuple(self._recent),
            applied_counts=dict(self._counts),
            plan_count=before.plan_count + bool(chosen.actions),
            corrections=self._corrections,
            scores=learn.scores(self._learner),
            outcomes=learn.outcomes(self._learner),
            notes=self._notes(observation),
        )

    def _notes(self, observation: Observation) -> tuple[str, ...]:
        notes = list(observation.notes)
        if self._pace is not None and self._pace.note:
            notes.append(self._pace.note)
        if observation.vms and self.report.profiles is not None:
            notes.extend(notes_of(observation, self.report.profiles))
        if self.report.heat is not None:
            notes.extend(self.report.heat.notes)
        if self.report.growth is not None:
            notes.extend(f"growth by function: {note}" for note in self.report.growth.notes)
        if self._recorder is not None:
            notes.extend(self._recorder.notes)
        if self._refitting is not None and self._refitting.problem:
            notes.append(f"the last model was not fitted: {self._refitting.problem}")
        if self._gave_up:
            notes.append(f"{MAX_FAILURES} ticks failed in a row: every change was undone, observing only")
        if self._settings.mode is Mode.APPLY and self._journal is not None and not self._journal.writable:
            notes.append(f"not acting, because the journal cannot be written: {self._journal.problem}")
        return tuple(notes)


def _abilities_of(host: Host) -> Abilities:
    capabilities = host.capabilities()

    def can(name: str) -> bool:
        return name in capabilities and capabilities[name].available

    return Abilities(
        page_out=can("page_out"),
        page_in=can("page_in"),
        slow_node=can("slow_node"),
        gather=can("collapse"),
        reclaim=can("memory_reclaim"),
        drop_cache=can("memory_reclaim") or (can("cgroup_limits") and not can("cgroup_v2_memory")),
        limits=can("cgroup_limits"),
        groups=can("cgroup_limits"),
        protects_by="min" if can("cgroup_v2_memory") else "soft",
    )


def _facts_of(host: Host) -> tuple[CapabilityFact, ...]:
    return tuple(
        CapabilityFact(name=one.name, available=one.available, reason=one.reason, fix=one.fix)
        for one in host.capabilities().values()
    )


def _nothing(_now_s: float) -> None:
    return


def _ending() -> MemsculptError:
    return Refused(place="agent", problem="is ending", fix="ask again when it runs")
