# SPDX-License-Identifier: Apache-2.0
"""Which pools there are, and what is known of their blocks: from where they have memory and what of it is touched.

Workloads in a partition have pools, one for each process; a VM's is its guest's RAM. Nothing is moved here.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from memsculpt import act, learn, plan, profile
from memsculpt.agent.guests import Guests
from memsculpt.agent.known_pool import KnownPool
from memsculpt.agent.phasing import Phasing
from memsculpt.domain.heat import Looked
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES, Extents, Touches
from memsculpt.domain.pool import Pool, SculptOrder
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient, Unavailable, UsageError, Vanished
from memsculpt.host.protocol import Host, PageReader

log = logging.getLogger(__name__)

SLOW_LOOKED_FOR_EVERY_S = 60.0  # in pools of which nothing lies on a slow node as far as is known
READINGS_S, READINGS_APART_S = 30.0, 3.0  # what is known of a pool's faults before a sculpt


class Pools:
    """The pools of one host, with the VMs (`guests`) and the phases (`phasing`) among them."""

    def __init__(self, host: Host, settings: Settings, journal: act.Journal | None) -> None:
        self._host, self._settings, self._journal = host, settings, journal
        self._known: dict[Instance, KnownPool] = {}
        self._readers: dict[Instance, PageReader] = {}
        self._rows: dict[Instance, int] = {}  # of the pools' processes, in the observations
        self._named_of: object = None  # of what those and the names were made
        self.phasing = Phasing(settings)
        self.guests = Guests(host)

    def __iter__(self) -> Iterator[KnownPool]:
        """Go through those that there are now; they may be forgotten meanwhile."""
        return iter(tuple(self._known.values()))

    def __contains__(self, process: Instance) -> bool:
        """Tell whether a process has a pool."""
        return process in self._known

    def get(self, process: Instance) -> KnownPool | None:
        """Return the pool of a process; None where it has none."""
        return self._known.get(process)

    def find(self, pool: str) -> KnownPool:
        """Return the pool of that id, or of the VM of that name or UUID. Raises UsageError where there is none."""
        guest = self.guests.find(pool)
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

    def watch(self, observation: Observation) -> None:
        """Take note of the partitions' processes, and of their faults and stalls."""
        self.guests.follow(observation)
        self._name_pools(observation)
        self.guests.find_ram(self._known.keys(), observation.time_s)
        readings = learn.readings_of(observation, list(self._rows.values()))
        for process, reading in zip(self._rows, readings, strict=True):
            known = self._known[process]
            if len(known.readings) > 1 and reading.at_s - known.readings[-2].at_s < READINGS_APART_S:
                known.readings.pop()  # the newest is wanted as well, and of those between not every one
            known.readings.append(reading)
            while known.readings and known.readings[0].at_s < observation.time_s - READINGS_S:
                known.readings.popleft()

    def wanted(self, observation: Observation) -> tuple[tuple[Instance, bool], ...]:
        """Choose whose phases are learnt; return who is to be looked at as a whole now, and whether surveyed before."""
        if not self.phasing.is_wanted:
            return ()
        sizes = {process: one.blocks.pool.count for process, one in self._known.items() if one.blocks is not None}
        self.phasing.follow(observation, sizes)
        return self.phasing.due(observation)

    def see(self, process: Instance, results: tuple[Looked, ...], observation: Observation, cost_s: float) -> None:
        """Take in a look at all of a process, which has cost so much processor time."""
        self._absorb(results)
        known, slow = self._known.get(process), None
        if known is not None and known.blocks is not None and known.stats.on_slow_node_bytes:
            slow = plan.slow_by_block(known.blocks)
        self.phasing.see(process, results, observation, cost_s, slow)

    def absorb(self, results: Iterable[Looked]) -> None:
        """Take in what sensing looked at: where there is memory, and what was touched between two clears."""
        results = tuple(results)
        self.phasing.note(results)
        self._absorb(results)

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

    def look_for_slow(self, known: KnownPool, observation: Observation) -> None:
        """Keep up to date which pages lie on a slow node: there the kernel puts new ones once fast memory is full."""
        is_used = self._settings.plan.slow_node and observation.memory.fast_total_bytes > 0
        waits_s = 0.0 if known.stats.on_slow_node_bytes else SLOW_LOOKED_FOR_EVERY_S
        if is_used and observation.time_s - known.slow_seen_at_s >= waits_s:
            known.slow_seen_at_s = observation.time_s
            self.see_slow(known)

    def see_slow(self, known: KnownPool) -> None:
        """Ask the page tables which pages of a pool lie on a slow node."""
        if known.blocks is None:
            return
        try:
            known.note_slow(self._host.slow_runs(known.process, known.blocks.pool.ranges))
        except (Vanished, Transient, Unavailable) as problem:  # what was known holds until it can be read again
            log.debug("pool %s: where its pages lie was not read: %s", known.id, problem)

    def forget_returned(self, observation: Observation) -> None:
        """Count as gone no more than is in swap still."""
        processes = observation.processes
        for known in self._known.values():
            if known.gone_bytes and known.blocks is not None and self.guests.is_shared(known.process):
                swapped = int(known.blocks.swapped.sum(dtype=np.int64)) * PAGE_BYTES
                known.gone_bytes = min(known.gone_bytes, swapped)
            elif known.gone_bytes:
                is_it = (processes.pids == known.process.pid) & (processes.start_ticks == known.process.start_ticks)
                known.gone_bytes = min(known.gone_bytes, int(processes.swapped_bytes[is_it].sum()))

    def drop_bits(self, process: Instance, order: SculptOrder) -> None:
        """Clear the accessed bits that bringing back has set: they are nobody's touches."""
        reader = self._readers.get(process)
        if reader is None:
            reader = self._readers[process] = self._host.open_pages(process)
        reader.clear(act.listed(order.come))

    def close(self) -> None:
        """Release every process."""
        while self._readers:
            self._readers.popitem()[1].close()

    # ---- inside

    def _name_pools(self, observation: Observation) -> None:
        """Find the partitions' processes, and what their pools are called; from one tick to the next few come or go."""
        rows, processes = observation.workloads, observation.processes
        is_named = np.array([partition is not None for partition in rows.partitions], np.bool_)
        inside = np.flatnonzero(is_named[processes.workload_index])
        columns = [column[inside] for column in (processes.pids, processes.start_ticks, processes.workload_index)]
        vms = tuple((one.process, one.workload) for one in observation.vms)
        named_of = (rows.ids, rows.partitions, vms, *(column.tobytes() for column in columns))
        if named_of == self._named_of:
            self._rows = dict(zip(self._rows, inside.tolist(), strict=True))
            return
        self._named_of, self._rows = named_of, {}
        members: dict[int, list[Instance]] = {}
        for number, pid, ticks, row in zip(inside.tolist(), *(column.tolist() for column in columns), strict=True):
            process = Instance(pid=pid, start_ticks=ticks)
            members.setdefault(row, []).append(process)
            self._rows[process] = number
        living: set[Instance] = set()
        for row, instances in members.items():
            for process in instances:
                living.add(process)
                name = rows.ids[row] if len(instances) == 1 else f"{rows.ids[row]}#{process.pid}"
                name = self.guests.name_of(process) if self.guests.is_guest(process) else name
                known = self._known.setdefault(process, KnownPool(rows.ids[row], process, name))
                if known.id != name:
                    known.id = name
        for process in self._known.keys() - living:
            self._drop(process)

    def _forget(self, process: Instance) -> None:
        """Drop a process that was found to be gone before an observation told."""
        self._rows.pop(process, None)
        self._named_of = None
        self._drop(process)

    def _drop(self, process: Instance) -> None:
        self._known.pop(process, None)
        if self._journal is not None:
            act.forget_slow(self._journal, process)
        self.phasing.forget(process)
        if process in self._readers:
            self._readers.pop(process).close()

    def _reshape(self, known: KnownPool, extents: Extents, now_s: float) -> None:
        self._flush(known, now_s)
        ranges, is_guest = profile.pool_ranges(extents), self.guests.is_guest(known.process)
        if is_guest:
            ranges = self.guests.ranges(known.process, ranges)
        pool = Pool(id=known.id, workload=known.workload, process=known.process, ranges=ranges, is_guest=is_guest)
        blocks = known.blocks
        known.blocks = profile.begin_blocks(pool, now_s) if blocks is None else profile.move_blocks(blocks, pool)

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
        if known.process in self.phasing:
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
