# SPDX-License-Identifier: Apache-2.0
"""The sculptor: pools, what is known of their blocks, and the one way to rearrange them.

    sculpt(pool, HotZone(size) | ColdZone(size) | Prefetch(window)) -> SculptStats        stats(pool) -> SculptStats

`Sculpting` puts the rooms together: blocks from profile, orders from plan, done by act, judged by learn. The agent
feeds it what sensing looked at, and calls `settle` in every tick; without an agent `look` looks itself:

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
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from memsculpt import act, learn, plan, profile
from memsculpt.agent.guests import Guests
from memsculpt.agent.known_pool import KnownPool, OpenSculpt
from memsculpt.agent.phasing import PhaseOutcome, Phasing
from memsculpt.domain.heat import Looked
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES, Extents, Touches
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import (
    ColdTo,
    ColdZone,
    HotZone,
    Pool,
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
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Refused, Transient, Unavailable, UsageError, Vanished
from memsculpt.host.protocol import Host, PageReader

log = logging.getLogger(__name__)

SUMMED_EVERY_S = 10.0  # what may leave a pool or be gathered is found out anew
SUMMED_MOST_BLOCKS = 32_768  # in a tick, and 8 pools: some 5 ms; a pool that is larger is alone in its tick
SLOW_LOOKED_FOR_EVERY_S = 60.0  # in pools of which nothing lies on a slow node as far as is known
PLANNED_MOST_RATIO = 0.05  # of time that planned sculpts of a pool take: each looks through all of it twice
READINGS_S = 30.0  # what is known of a pool's faults before a sculpt


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
        self._known: dict[Instance, KnownPool] = {}
        self._readers: dict[Instance, PageReader] = {}
        self._asked: deque[_Asked] = deque()
        self._phasing = Phasing(settings)
        self._guests = Guests(host)

    # --- what is known ------------------------------------------------------------------------------------------------

    def watch(self, observation: Observation) -> None:
        """Take note of the partitions' processes, and of their faults and stalls."""
        self._guests.follow(observation)
        self._name_pools(observation)
        self._guests.find_ram(self._known.keys(), observation.time_s)
        for known in self._known.values():
            pool = known.blocks.pool if known.blocks is not None else known.empty_pool()
            reading = learn.read_pool(observation, pool)
            if reading is not None:
                known.readings.append(reading)
            while known.readings and known.readings[0].at_s < observation.time_s - READINGS_S:
                known.readings.popleft()

    def wanted(self, observation: Observation) -> tuple[tuple[Instance, bool], ...]:
        """Choose whose phases are learnt; return who is to be looked at as a whole now, and whether surveyed before."""
        sizes = {process: one.blocks.pool.count for process, one in self._known.items() if one.blocks is not None}
        self._phasing.follow(observation, sizes)
        return self._phasing.due(observation)

    def see(self, process: Instance, results: tuple[Looked, ...], observation: Observation, cost_s: float) -> None:
        """Take in a look at all of a process, which has cost so much processor time."""
        self._absorb(results)
        known, slow = self._known.get(process), None
        if known is not None and known.blocks is not None and known.stats.on_slow_node_bytes:
            slow = plan.slow_by_block(known.blocks)
        self._phasing.see(process, results, observation, cost_s, slow)

    def absorb(self, results: Iterable[Looked]) -> None:
        """Take in what sensing looked at: where there is memory, and what was touched between two clears."""
        results = tuple(results)
        self._phasing.note(results)
        self._absorb(results)

    def _absorb(self, results: Iterable[Looked]) -> None:
        for one in results:
            known = self._known.get(one.task.process)
            if known is None:
                continue
            known.stats = replace(known.stats, cpu_s=known.stats.cpu_s + one.cpu_s)
            if one.extents is not None:
                self._reshape(known, one.extents, one.at_s)
            if one.touches is not None and one.cleared and not one.is_first and known.blocks is not None:
                self._update(known, one.touches, one.at_s, (one.task.start, one.task.end))

    def _update(self, known: KnownPool, touches: Touches, at_s: float, stretch: tuple[int, int]) -> None:
        """Bring blocks up to date; what a pool that is looked at often shows is kept until its interval has passed.

        Ages count looks, and what they are worth is known for the sensing's interval.
        """
        if known.blocks is None:
            return
        if known.process in self._phasing:
            since_s, before = known.merged.get(stretch, (-math.inf, None))
            touches = profile.merged_touches(before, touches)
            if at_s - since_s < self._settings.sense.interval_s:
                known.merged[stretch] = since_s, touches
                return
            known.merged[stretch] = at_s, None
        elif known.merged:
            self._flush(known, at_s)
        tier = self._host.swap_tier()
        known.blocks = profile.update_blocks(known.blocks, touches, at_s, stretch=stretch, swap_tier=tier)

    def _flush(self, known: KnownPool, at_s: float) -> None:
        """Bring blocks up to date with what was kept: stretches change, or looks come no longer in quick succession."""
        tier = self._host.swap_tier()
        for stretch, (_, touches) in known.merged.items():
            if touches is not None and known.blocks is not None:
                known.blocks = profile.update_blocks(known.blocks, touches, at_s, stretch=stretch, swap_tier=tier)
        known.merged.clear()

    def look(self, observation: Observation) -> None:
        """Look at all pools at once, without an agent that does it bit by bit. Who is gone is dropped."""
        self.watch(observation)
        for process, known in tuple(self._known.items()):
            begin_s = time.thread_time()
            try:
                reader = self._readers.get(process) or self._host.open_pages(process)
                self._readers[process] = reader
                self._reshape(known, reader.survey(), self._host.now_s())
                touches = reader.read()
                reader.clear()
            except Vanished:
                self._forget(process)
                continue
            if known.blocks is not None:
                now_s, tier = self._host.now_s(), self._host.swap_tier()
                known.blocks = profile.update_blocks(known.blocks, touches, now_s, swap_tier=tier)
            known.stats = replace(known.stats, cpu_s=known.stats.cpu_s + time.thread_time() - begin_s)

    def pools(self) -> tuple[SculptStats, ...]:
        """Return what is known of each pool, by id."""
        return tuple(self._told(known) for known in sorted(self._known.values(), key=lambda one: one.id))

    def stats(self, pool: str) -> SculptStats:
        """Return what is known of a pool; of a VM, by name or UUID, also where its zones lie for the guest.

        Raises UsageError where there is none of that id.
        """
        known = self._find(pool)
        return replace(self._told(known), guest=self._guests.told(known.process, known.blocks))

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
        self._guests.follow(observation)  # one may have been paused, or begun to migrate
        try:
            check_request(request)
            known = self._find(pool)
        except UsageError as error:
            log.warning("not sculpted: %s", error)
            raise
        told = self._sculpted(known, request, observation, may_act=may_act)
        return replace(told, guest=self._guests.told(known.process, known.blocks))

    def _sculpted(
        self, known: KnownPool, request: SculptRequest, observation: Observation, *, may_act: bool
    ) -> SculptStats:
        begin_s = time.thread_time()
        refusal = self._refusal(known, request, observation)
        choice: plan.PrefetchChoice | None = None
        if refusal:
            order = SculptOrder(reason=refusal)
        elif isinstance(request, Prefetch) and self._phasing.knows(known.process):
            room = plan.room_below_limit_bytes(observation, known.workload, self._settings)
            order, choice = self._phasing.order(known.process, request, observation.time_s, room)
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
        known = self._known.get(action.process)
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
        for known in sorted(self._known.values(), key=lambda one: one.summed_at_s):
            if left <= 0 or now_s - known.summed_at_s < SUMMED_EVERY_S:
                break
            if known.blocks is not None and known.blocks.interval_s > 0.0 and now_s >= known.rests_until_s:
                left -= known.blocks.pool.count + SUMMED_MOST_BLOCKS // 8
                begin_s = time.thread_time()
                self._look_for_slow(known, observation)
                known.summary, known.summed_at_s = self._summed(known, observation), now_s
                known.stats = replace(known.stats, cpu_s=known.stats.cpu_s + time.thread_time() - begin_s)
        self._forget_returned(observation)
        return tuple(
            replace(
                known.summary or PoolSummary(pool=known.id, workload=known.workload, process=known.process),
                gone_bytes=known.gone_bytes,
                left_at_s=known.paged_out_at_s,
                gathered_at_s=known.gathered_at_s,
                coming=self._phasing.coming(known.process, now_s),
                has_phases=self._phasing.has_several(known.process, now_s),
            )
            for known in self._known.values()
            if known.summary is not None or known.gone_bytes or known.process in self._phasing
        )

    def settle(self, observation: Observation, *, may_act: bool) -> tuple[SculptStats, ...]:
        """Judge what was done before, take back what did not pay; return the pools that something came of."""
        self.watch(observation)
        settled = [self._settled(one) for one in self._phasing.settle(observation.time_s) if one.process in self._known]
        for known in tuple(self._known.values()):
            for one in () if self._guests.is_left_alone(known.process) else tuple(known.open):
                if known.readings and known.blocks is not None and self._settle(known, one, may_act=may_act):
                    known.open.remove(one)
                    settled.append(self._told(known))
        return tuple(settled)

    def close(self, *, may_act: bool) -> None:
        """Split the huge pages that were made here, bring back what lies on a slow node, release every process."""
        for known in self._known.values():
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
        while self._readers:
            self._readers.popitem()[1].close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _name_pools(self, observation: Observation) -> None:
        rows, processes = observation.workloads, observation.processes
        named = [row for row, partition in enumerate(rows.partitions) if partition is not None]
        members: Mapping[int, list[Instance]] = {row: [] for row in named}
        for pid, ticks, row in zip(
            processes.pids.tolist(), processes.start_ticks.tolist(), processes.workload_index.tolist(), strict=True
        ):
            if row in members:
                members[row].append(Instance(pid=pid, start_ticks=ticks))
        living: set[Instance] = set()
        for row, instances in members.items():
            for process in instances:
                living.add(process)
                name = rows.ids[row] if len(instances) == 1 else f"{rows.ids[row]}#{process.pid}"
                name = self._guests.name_of(process) if self._guests.is_guest(process) else name
                known = self._known.setdefault(process, KnownPool(rows.ids[row], process, name))
                known.id = name
        for process in self._known.keys() - living:
            self._forget(process)

    def _forget(self, process: Instance) -> None:
        self._known.pop(process, None)
        if self._journal is not None:
            act.forget_slow(self._journal, process)
        self._phasing.forget(process)
        if process in self._readers:
            self._readers.pop(process).close()

    def _find(self, pool: str) -> KnownPool:
        guest = self._guests.find(pool)
        for known in self._known.values():
            if known.process == guest or pool in {known.id, f"{known.workload}#{known.process.pid}"}:
                return known
        if guest is not None:
            raise UsageError(
                place=f"VM {pool}",
                problem="is in no partition, and only what the configuration names is touched",
                fix='name it in a [[partition]]: match = { vm = "NAME" }',
            )
        raise UsageError(
            place=f"pool {pool}",
            problem="there is none of this name or UUID: pools are the VMs and processes of workloads in a partition",
            fix="memsculpt pools lists them",
        )

    def _reshape(self, known: KnownPool, extents: Extents, now_s: float) -> None:
        self._flush(known, now_s)
        ranges, is_guest = profile.pool_ranges(extents), self._guests.is_guest(known.process)
        if is_guest:
            ranges = self._guests.ranges(known.process, ranges)
        pool = Pool(id=known.id, workload=known.workload, process=known.process, ranges=ranges, is_guest=is_guest)
        blocks = known.blocks
        known.blocks = profile.begin_blocks(pool, now_s) if blocks is None else profile.move_blocks(blocks, pool)

    def _refusal(self, known: KnownPool, request: SculptRequest, observation: Observation) -> str:
        """Return why nothing is done, "" where something may be."""
        if why := self._guests.refusal(known.process, type(request)):
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
        faults_per_s, _, cpu_ratio = known.rates()
        match request:
            case HotZone():
                cpu = 0.0 if math.isnan(cpu_ratio) else cpu_ratio
                return plan.choose_hot(blocks, request.size_bytes, now_s, cpu_ratio=cpu, rules=self._rules)
            case ColdZone():
                slow_room_bytes = self._slow_room_bytes(observation)
                size_bytes = min(request.size_bytes, self._may_leave_bytes(known, request, observation))
                if size_bytes == 0:
                    return SculptOrder(reason="the swap is as full as it may be, or the rate is spent for now")
                loss = 0.0 if math.isnan(faults_per_s) else faults_per_s * self._rules.fault_s
                return plan.choose_cold(
                    blocks,
                    size_bytes,
                    now_s,
                    loss_ratio=loss,
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
        faults_per_s, _, cpu_ratio = known.rates()
        if size_bytes and not self._refusal(known, ColdZone(size_bytes=size_bytes), observation):
            loss = 0.0 if math.isnan(faults_per_s) else faults_per_s * self._rules.fault_s
            cold = plan.weigh_cold(blocks, size_bytes, now_s, loss_ratio=loss, to=ColdTo.SWAP, rules=self._rules)
            summary = replace(
                summary, cold_bytes=cold.size_bytes, idle_least_s=cold.idle_least_s, loss_ratio=cold.loss_ratio
            )
            if room_bytes := self._slow_room_bytes(observation):
                near = plan.weigh_cold(
                    blocks,
                    size_bytes,
                    now_s,
                    loss_ratio=loss,
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
            cpu = 0.0 if math.isnan(cpu_ratio) else cpu_ratio
            hot = plan.choose_hot(blocks, size_bytes, now_s, cpu_ratio=cpu, rules=self._rules)
            summary = replace(
                summary, hot_bytes=hot.size_bytes, fills_bytes=hot.fills_bytes, gain_s_per_s=hot.gain_s_per_s
            )
        return summary

    def _forget_returned(self, observation: Observation) -> None:
        """Count as gone no more than is in swap still."""
        processes = observation.processes
        for known in self._known.values():
            if known.gone_bytes and known.blocks is not None and self._guests.is_shared(known.process):
                swapped = int(known.blocks.swapped.sum(dtype=np.int64)) * PAGE_BYTES
                known.gone_bytes = min(known.gone_bytes, swapped)
            elif known.gone_bytes:
                is_it = (processes.pids == known.process.pid) & (processes.start_ticks == known.process.start_ticks)
                known.gone_bytes = min(known.gone_bytes, int(processes.swapped_bytes[is_it].sum()))

    def _slow_room_bytes(self, observation: Observation) -> int:
        return observation.memory.slow_room_bytes if self._settings.plan.slow_node else 0

    def _look_for_slow(self, known: KnownPool, observation: Observation) -> None:
        """Keep up to date which pages lie on a slow node: there the kernel puts new ones once fast memory is full."""
        is_used = self._settings.plan.slow_node and observation.memory.fast_total_bytes > 0
        waits_s = 0.0 if known.stats.on_slow_node_bytes else SLOW_LOOKED_FOR_EVERY_S
        if is_used and observation.time_s - known.slow_seen_at_s >= waits_s:
            known.slow_seen_at_s = observation.time_s
            self._see_slow(known)

    def _see_slow(self, known: KnownPool) -> None:
        """Ask the page tables which pages of a pool lie on a slow node."""
        if known.blocks is None:
            return
        try:
            known.note_slow(self._host.slow_runs(known.process, known.blocks.pool.ranges))
        except (Vanished, Transient, Unavailable) as problem:  # what was known holds until it can be read again
            log.debug("pool %s: where its pages lie was not read: %s", known.id, problem)

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
            self._phasing.moved(known.process, choice, done, began_s)
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
            self._drop_bits(known.process, done.order)
        known.note(done)
        if done.demoted_bytes or done.promoted_bytes:
            self._see_slow(known)

    def _drop_bits(self, process: Instance, order: SculptOrder) -> None:
        """Clear the accessed bits that bringing back has set: they are nobody's touches."""
        reader = self._readers.get(process)
        if reader is None:
            reader = self._readers[process] = self._host.open_pages(process)
        reader.clear(act.listed(order.come))

    def _settled(self, judged: PhaseOutcome) -> SculptStats:
        """Put what came of a prefetch ahead of a phase into its pool's figures."""
        known, means = self._known[judged.process], judged.experience
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
        zones = (0, 0, 0, 0)
        if known.blocks is not None:
            first, second, third, fourth = (known.blocks.zone_bytes(zone) for zone in Zone)
            zones = (first, second, third, fourth)
        return replace(known.stats, pool=known.id, zone_bytes=zones, guest=self._guests.told(known.process))


def _asked_bytes(request: SculptRequest) -> int:
    return request.size_bytes or 0
