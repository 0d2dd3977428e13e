# SPDX-License-Identifier: Apache-2.0
"""The sculptor: pools, what is known of their blocks, and the one way to rearrange them.

    sculpt(pool, HotZone(size) | ColdZone(size) | Prefetch(window)) -> SculptStats        stats(pool) -> SculptStats

`Sculpting` puts the rooms together: blocks from profile (`kept`, agent/pools.py), orders from plan, done by act, judged
by learn. The agent feeds `kept` what sensing looked at, and calls `settle` in every tick; without an agent `look` looks
itself:

    host = open_host(settings)
    sculpting = Sculpting(host, settings)
    host.watch(settings.partitions)
    for _ in range(6):                          # a minute of looks: what is not known is not moved
        sculpting.look(host.observe())
        host.wait_until(host.now_s() + 10.0)
    stats = sculpting.sculpt("web.service", ColdZone(size_bytes=256 << 20), host.observe(), may_act=True)

Only workloads in a partition are pools. A VM's pool is its guest's RAM, and nothing else of its process
(agent/guests.py); it goes by the VM's name or UUID. Not for two threads at once.
"""

import logging
import math
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from operator import is_

import numpy as np

from memsculpt import act, learn, plan
from memsculpt.agent.known_pool import KnownPool, OpenSculpt
from memsculpt.agent.phasing import PhaseOutcome
from memsculpt.agent.pools import Pools
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import (
    ColdTo,
    ColdZone,
    HotZone,
    PoolSummary,
    Prefetch,
    Promote,
    SculptDone,
    SculptOrder,
    SculptRequest,
    SculptStats,
    Verdict,
    Zone,
    check_request,
)
from memsculpt.domain.settings import Sculpt, Settings
from memsculpt.domain.units import format_bytes
from memsculpt.errors import MemsculptError, Refused, Transient, UsageError, Vanished
from memsculpt.host.protocol import Host

log = logging.getLogger(__name__)

SUMMED_EVERY_S = 10.0  # what may leave a pool or be gathered is found out anew
SUMMED_MOST_BLOCKS = 32_768  # in a tick, and 8 pools: some 5 ms; a pool that is larger is alone in its tick
PLANNED_MOST_RATIO = 0.05  # of time that planned sculpts of a pool take: each looks through all of it twice


@dataclass(slots=True)
class _Asked:
    pool: str
    request: SculptRequest
    answer: "Future[SculptStats]"


class Sculpting:
    """The pools of one host."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        rules: plan.SculptRules | None = None,
        journal: act.Journal | None = None,
    ) -> None:
        """`journal` keeps whose pages went to a slow node; without one only `close` brings them back."""
        self._host, self._settings, self._rules = host, settings, rules or plan.SculptRules()
        self._journal = journal
        self.kept = Pools(host, settings, journal)
        self._asked: deque[_Asked] = deque()

    def look(self, observation: Observation) -> None:
        """Look at all pools at once, without an agent that does it bit by bit. Who is gone is dropped."""
        self.kept.look(observation)

    def pools(self) -> tuple[SculptStats, ...]:
        """Return what is known of each pool, by id."""
        return tuple(self._told(known) for known in sorted(self.kept, key=lambda one: one.id))

    def stats(self, pool: str) -> SculptStats:
        """Return what is known of a pool; of a VM, by name or UUID, also where its zones lie for the guest.

        Raises UsageError where there is none of that id.
        """
        known = self.kept.find(pool)
        return replace(self._told(known), guest=self.kept.guests.told(known.process, known.blocks))

    def ask(self, pool: str, request: SculptRequest) -> "Future[SculptStats]":
        """Put a request into the next `answer`; safe from any thread. Raises UsageError where it has no meaning."""
        try:
            check_request(request)
        except UsageError as error:
            log.warning("not sculpted: %s", error)
            raise
        asked = _Asked(pool, request, Future())
        self._asked.append(asked)
        return asked.answer

    def answer(self, observation: Observation, *, may_act: bool) -> None:
        """Do what was asked since the last time, one after another."""
        while self._asked:
            asked = self._asked.popleft()
            if not asked.answer.set_running_or_notify_cancel():
                continue
            try:
                asked.answer.set_result(self.sculpt(asked.pool, asked.request, observation, may_act=may_act))
            except MemsculptError as problem:  # who asked is told; it is no failure of the tick
                asked.answer.set_exception(problem)
            except Exception as problem:
                asked.answer.set_exception(problem)
                raise

    # --- what is done -------------------------------------------------------------------------------------------------

    def sculpt(self, pool: str, request: SculptRequest, observation: Observation, *, may_act: bool) -> SculptStats:
        """Rearrange a pool, or without `may_act` say what would be done.

        Raises UsageError (no such pool, type or size; nothing is moved), and what the host raises: Vanished,
        Unavailable, Transient.
        """
        self.kept.guests.follow(observation)  # one may have been paused, or begun to migrate
        try:
            check_request(request)
            known = self.kept.find(pool)
        except UsageError as error:
            log.warning("not sculpted: %s", error)
            raise
        told = self._sculpted(known, request, observation, may_act=may_act)
        return replace(told, guest=self.kept.guests.told(known.process, known.blocks))

    def _sculpted(
        self, known: KnownPool, request: SculptRequest, observation: Observation, *, may_act: bool
    ) -> SculptStats:
        begin_s = time.thread_time()
        refusal = self._refusal(known, request, observation)
        choice: plan.PrefetchChoice | None = None
        if refusal:
            order = SculptOrder(reason=refusal)
        elif isinstance(request, Prefetch) and self.kept.phasing.knows(known.process):
            room = plan.room_below_limit_bytes(observation, known.workload, self._settings)
            order, choice = self.kept.phasing.order(known.process, request, observation.time_s, room)
            if known.stats.on_slow_node_bytes:
                order = replace(order, promote=order.come)
        else:
            order = self._order(known, request, observation)
        verdict = Verdict.REFUSED if refusal else Verdict.NOTHING
        known.stats = replace(known.stats, cpu_s=known.stats.cpu_s + time.thread_time() - begin_s)
        if order.size_bytes or len(order.split):
            if may_act:
                return self._carry_out(known, request, order, observation, choice)
            verdict = Verdict.REHEARSED
        known.stats = replace(
            known.stats,
            verdict=verdict,
            reason=plan.explain_sculpt(request, order),
            asked_bytes=_asked_bytes(request),
        )
        return self._told(known)

    def carry_out(self, action: SculptPool, size_bytes: int, observation: Observation) -> act.PoolMoved:
        """Do what a plan asks of a pool, up to `size_bytes`. Raises Vanished, Unavailable, Transient.

        Of a prefetch that is what comes; what leaves for it comes on top.
        """
        known = self.kept.get(action.process)
        if known is None:
            raise Vanished(place=f"pool {action.pool}")
        before = known.stats
        request = replace(action.request, size_bytes=size_bytes)
        told = self.sculpt(f"{known.workload}#{action.process.pid}", request, observation, may_act=True)
        left_bytes = told.paged_out_bytes - before.paged_out_bytes
        match request:
            case ColdZone():
                moved_bytes = left_bytes + told.to_slow_node_bytes - before.to_slow_node_bytes
            case Promote():
                moved_bytes = told.from_slow_node_bytes - before.from_slow_node_bytes
            case HotZone():
                moved_bytes = told.collapsed_bytes - before.collapsed_bytes
            case Prefetch():
                moved_bytes = told.brought_in_bytes - before.brought_in_bytes
                moved_bytes += told.from_slow_node_bytes - before.from_slow_node_bytes
        if moved_bytes <= 0 and not isinstance(request, Prefetch):  # what stands in the way may last
            known.summary, known.rests_until_s = None, observation.time_s + SUMMED_EVERY_S
        is_done = told.verdict is Verdict.UNDER_WAY
        left = [f"{format_bytes(size)} {cause}" for cause, size in told.problems] if is_done else []
        reason = "; left: ".join(filter(None, (told.reason, ", ".join(left))))
        return act.PoolMoved(
            moved_bytes=moved_bytes,
            left_bytes=left_bytes,
            cpu_s=told.cpu_s - before.cpu_s,
            reason=reason,
        )

    def summaries(self, observation: Observation) -> tuple[PoolSummary, ...]:
        """Return what a plan has to know of the pools; a few of them are looked through anew, the stalest first."""
        now_s, left = observation.time_s, SUMMED_MOST_BLOCKS
        for known in sorted(self.kept, key=lambda one: one.summed_at_s):
            if left <= 0 or now_s - known.summed_at_s < SUMMED_EVERY_S:
                break
            if known.blocks is not None and known.blocks.interval_s > 0.0 and now_s >= known.rests_until_s:
                left -= known.blocks.pool.count + SUMMED_MOST_BLOCKS // 8
                begin_s = time.thread_time()
                self.kept.look_for_slow(known, observation)
                known.summary, known.summed_at_s = self._summed(known, observation), now_s
                known.stats = replace(known.stats, cpu_s=known.stats.cpu_s + time.thread_time() - begin_s)
        self.kept.forget_returned(observation)
        return tuple(
            replace(
                known.summary or PoolSummary(pool=known.id, workload=known.workload, process=known.process),
                gone_bytes=known.gone_bytes,
                left_at_s=known.paged_out_at_s,
                gathered_at_s=known.gathered_at_s,
                coming=self.kept.phasing.coming(known.process, now_s),
                has_phases=self.kept.phasing.has_several(known.process, now_s),
            )
            for known in self.kept
            if known.summary is not None or known.gone_bytes or known.process in self.kept.phasing
        )

    def settle(self, observation: Observation, *, may_act: bool) -> tuple[SculptStats, ...]:
        """Judge what was done before, take back what did not pay; return the pools that something came of."""
        self.kept.watch(observation)
        settled = [
            self._settled(known, one)
            for one in self.kept.phasing.settle(observation.time_s)
            if (known := self.kept.get(one.process)) is not None
        ]
        for known in self.kept:
            for one in () if self.kept.guests.is_left_alone(known.process) else tuple(known.open):
                if known.readings and known.blocks is not None and self._settle(known, one, may_act=may_act):
                    known.open.remove(one)
                    settled.append(self._told(known))
        return tuple(settled)

    def close(self, *, may_act: bool) -> None:
        """Split the huge pages that were made here, bring back what lies on a slow node, release every process."""
        for known in self.kept:
            if not may_act or known.blocks is None:
                continue
            ours = plan.ranges_of_rows(known.blocks, known.blocks.zone == Zone.HOT)
            there = known.blocks.pool.ranges if known.stats.to_slow_node_bytes else ()
            order = SculptOrder(split=ours, promote=np.array(there, np.int64).reshape(-1, 2))
            try:
                done = act.sculpt(self._host, known.blocks.pool, order)
            except MemsculptError as error:  # on the way out: said, and the others have their turn
                log.warning("huge pages stay, and what lies on a slow node: %s", error)
                continue
            for cause, size_bytes in done.problems if len(order.promote) else ():
                log.info("pool %s: %s stay where they are: %s", known.id, format_bytes(size_bytes), cause)
        while self._asked:
            asked = self._asked.popleft()
            if asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(
                    Refused(place=f"pool {asked.pool}", problem="the agent is ending", fix="ask again when it runs")
                )
        self.kept.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _refusal(self, known: KnownPool, request: SculptRequest, observation: Observation) -> str:
        """Return why nothing is done, "" where something may be."""
        if why := self.kept.guests.refusal(known.process, type(request)):
            return why
        left_s = known.refused_until_s.get(type(request), -math.inf) - observation.time_s
        if left_s > 0.0:
            return f"the last one did not pay; refused for another {left_s:.0f} s"
        if known.blocks is None or not known.blocks.interval_s > 0.0:
            return ""
        _, stall_ratio, _ = known.rates()
        most = self._settings.plan.pressure_max_ratio
        if isinstance(request, ColdZone) and stall_ratio > most:
            return f"it stalls for {stall_ratio:.1%} of the time, and above {most:.0%} nothing is taken"
        return ""

    def _order(self, known: KnownPool, request: SculptRequest, observation: Observation) -> SculptOrder:
        blocks, now_s = known.blocks, observation.time_s
        if blocks is None or not blocks.interval_s > 0.0:
            return SculptOrder(reason="its pages have not been looked at twice yet: what is hot or cold is not known")
        loss_ratio, cpu_ratio = known.loss_ratio(self._rules.fault_s), known.cpu_ratio
        match request:
            case HotZone():
                return plan.choose_hot(blocks, request.size_bytes, now_s, cpu_ratio=cpu_ratio, rules=self._rules)
            case ColdZone():
                slow_room_bytes = self._slow_room_bytes(observation)
                size_bytes = min(request.size_bytes, self._may_leave_bytes(known, request, observation))
                if size_bytes == 0:
                    return SculptOrder(reason="the swap is as full as it may be, or the rate is spent for now")
                return plan.choose_cold(
                    blocks,
                    size_bytes,
                    now_s,
                    loss_ratio=loss_ratio,
                    slow_room_bytes=slow_room_bytes,
                    to=request.to,
                    rules=self._rules,
                )
            case Promote():
                return plan.choose_returned(blocks, request.size_bytes, now_s, rules=self._rules)
            case Prefetch():
                return plan.choose_due(blocks, request.window_s, now_s)

    def _summed(self, known: KnownPool, observation: Observation) -> PoolSummary:
        """Return what may leave a pool or be gathered now, however much that is."""
        blocks, now_s = known.blocks, observation.time_s
        summary = PoolSummary(pool=known.id, workload=known.workload, process=known.process)
        if blocks is None or self._settings.plan.sculpt is Sculpt.OFF:
            return summary
        size_bytes = int(blocks.present.sum(dtype=np.int64)) * PAGE_BYTES
        loss_ratio, cpu_ratio = known.loss_ratio(self._rules.fault_s), known.cpu_ratio
        if size_bytes and not self._refusal(known, ColdZone(size_bytes=size_bytes), observation):
            cold = plan.weigh_cold(blocks, size_bytes, now_s, loss_ratio=loss_ratio, to=ColdTo.SWAP, rules=self._rules)
            summary = replace(
                summary, cold_bytes=cold.size_bytes, idle_least_s=cold.idle_least_s, loss_ratio=cold.loss_ratio
            )
            if room_bytes := self._slow_room_bytes(observation):
                near = plan.weigh_cold(
                    blocks,
                    size_bytes,
                    now_s,
                    loss_ratio=loss_ratio,
                    slow_room_bytes=room_bytes,
                    to=ColdTo.SLOW_NODE,
                    rules=self._rules,
                )
                summary = replace(summary, demotable_bytes=near.size_bytes, demotable_idle_s=near.idle_least_s)
        if known.stats.on_slow_node_bytes:
            returned = plan.choose_returned(blocks, known.stats.on_slow_node_bytes, now_s, rules=self._rules)
            summary = replace(summary, returned_bytes=returned.size_bytes)
        is_wanted = self._settings.plan.sculpt is Sculpt.ALL
        if is_wanted and size_bytes and not self._refusal(known, HotZone(size_bytes=size_bytes), observation):
            hot = plan.choose_hot(blocks, size_bytes, now_s, cpu_ratio=cpu_ratio, rules=self._rules)
            summary = replace(
                summary, hot_bytes=hot.size_bytes, fills_bytes=hot.fills_bytes, gain_s_per_s=hot.gain_s_per_s
            )
        return summary

    def _slow_room_bytes(self, observation: Observation) -> int:
        return observation.memory.slow_room_bytes if self._settings.plan.slow_node else 0

    def _may_leave_bytes(self, known: KnownPool, request: ColdZone, observation: Observation) -> int:
        """Return what may leave now: at the configured rate, and as far as slow node and swap may be filled."""
        settings, memory = self._settings.plan, observation.memory
        used_bytes = memory.swap_total_bytes - memory.swap_free_bytes
        room_bytes = int(settings.swap_fill_max_ratio * memory.swap_total_bytes) - used_bytes
        if request.to is ColdTo.SLOW_NODE:
            room_bytes = self._slow_room_bytes(observation)
        elif request.to is ColdTo.NEAREST:
            room_bytes = max(room_bytes, 0) + self._slow_room_bytes(observation)
        saved_s = min(observation.time_s - known.paged_out_at_s, 2.0 * self._settings.interval_s)
        return max(0, min(room_bytes, int(settings.page_out_bytes_per_s * saved_s)))

    def _carry_out(
        self,
        known: KnownPool,
        request: SculptRequest,
        order: SculptOrder,
        observation: Observation,
        choice: plan.PrefetchChoice | None,
    ) -> SculptStats:
        blocks = known.blocks
        if blocks is None:
            raise Refused(place=f"pool {known.id}", problem="nothing is known of it", fix="ask again later")
        began_s = self._host.now_s()
        done = act.sculpt(self._host, blocks.pool, order, self._journal)
        self._note(known, done)
        before = known.rates()
        if choice is not None:
            self.kept.phasing.moved(known.process, choice, done, began_s)
        elif done.moved_bytes:
            known.open.append(OpenSculpt(type(request), done, before, None))
        if choice is None:
            known.summary, known.summed_at_s = None, -math.inf
            known.rests_until_s = observation.time_s + done.duration_s / PLANNED_MOST_RATIO
        if (done.left_bytes or done.demoted_bytes) and choice is None:
            known.paged_out_at_s = observation.time_s
        if done.collapsed_bytes or len(order.collapse):
            known.gathered_at_s = observation.time_s
        known.stats = replace(
            known.stats,
            verdict=Verdict.UNDER_WAY,
            reason=plan.explain_sculpt(request, order),
            asked_bytes=_asked_bytes(request),
            faults_before_per_s=before[0],
            stall_before_ratio=before[1],
            faults_after_per_s=math.nan,
            stall_after_ratio=math.nan,
            latency_saved_s_per_s=known.stats.latency_saved_s_per_s + order.gain_s_per_s - order.loss_ratio,
        )
        return self._told(known)

    def _note(self, known: KnownPool, done: SculptDone) -> None:
        if done.came_bytes:
            self.kept.drop_bits(known.process, done.order)
        known.note(done)
        if done.demoted_bytes or done.promoted_bytes:
            self.kept.see_slow(known)

    def _settled(self, known: KnownPool, judged: PhaseOutcome) -> SculptStats:
        """Put what came of a prefetch ahead of a phase into its pool's figures."""
        means = judged.experience
        known.stats = replace(
            known.stats,
            verdict=Verdict.PAID if judged.has_paid else Verdict.REFUSED,
            reason=judged.reason,
            precision=means.precision,
            recall=means.recall,
            timeliness=means.timeliness,
        )
        if not judged.has_paid:
            log.info("pool %s: %s", known.id, judged.reason)
        return self._told(known)

    def _settle(self, known: KnownPool, one: OpenSculpt, *, may_act: bool) -> bool:
        """Judge one sculpt; return whether that was its end."""
        blocks, now = known.blocks, known.readings[-1]
        if blocks is None:
            return True
        if one.since is None:
            one.since = now if now.at_s > one.done.at_s else None
            return False
        left_bytes = sum(other.done.left_bytes for other in known.open)
        found = learn.judge_sculpt(one.done, blocks, one.before, one.since, now, left_bytes)
        if found.verdict is Verdict.UNDER_WAY:
            return False
        stats = replace(
            known.stats,
            verdict=found.verdict,
            reason=found.reason,
            faults_after_per_s=found.faults_per_s,
            stall_after_ratio=found.stall_ratio,
            precision=found.precision if found.precision == found.precision else known.stats.precision,
            recall=found.recall if found.recall == found.recall else known.stats.recall,
        )
        known.stats = stats
        if found.verdict is Verdict.PAID:
            known.mistakes[one.kind] = 0
            return True
        known.mistakes[one.kind] += 1
        known.refused_until_s[one.kind] = now.at_s + learn.refused_for_s(known.mistakes[one.kind])
        log.info("pool %s: a sculpt did not pay, %s", known.id, found.reason)
        if may_act:
            try:
                undone = act.sculpt(self._host, blocks.pool, act.reversed_order(one.done.order))
            except (Vanished, Transient) as error:
                known.stats = replace(known.stats, reason=f"{found.reason}; not taken back: {error.problem}")
                return True
            self._note(known, undone)
            bytes_before = stats.undone_bytes
            known.stats = replace(
                known.stats, undone_bytes=bytes_before + undone.moved_bytes, verdict=Verdict.UNDONE, reason=found.reason
            )
        return True

    def _told(self, known: KnownPool) -> SculptStats:
        """Return what is said of a pool; of most nothing has changed since it was last asked for."""
        guest = self.kept.guests.told(known.process)
        told_of = (known.blocks, known.stats, known.id)
        if known.told is None or guest != known.told.guest or not all(map(is_, told_of, known.told_of)):
            zones = (0, 0, 0, 0)
            if known.blocks is not None:
                first, second, third, fourth = (known.blocks.zone_bytes(zone) for zone in Zone)
                zones = (first, second, third, fourth)
            known.told = replace(known.stats, pool=known.id, zone_bytes=zones, guest=guest)
            known.told_of = told_of
        return known.told


def _asked_bytes(request: SculptRequest) -> int:
    return request.size_bytes or 0
