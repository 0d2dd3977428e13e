# SPDX-License-Identifier: Apache-2.0
"""Whose page faults are sampled how finely, and what the samples come to. Pure.

The budget is that of sensing. Every fault of the machine passes the program in the kernel at a price, each recorded one
costs the program more, and the agent its own time: all of it is counted. What is dearer than allowed is sampled more
coarsely; where passing alone is too dear it is switched off for some minutes, and that is said. What the log cannot
hold is thinned out (fault_log.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from memsculpt.domain.growth import (
    FaultCount,
    FaultRate,
    FaultSamples,
)
from memsculpt.domain.observation import Observation
from memsculpt.domain.settings import PartitionSettings, SenseSettings
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.profile import fault_log
from memsculpt.profile.fault_log import LOG_MOST, SHIFT_MOST, FaultLog

WINDOW_S = 300.0  # how far back the log reaches, where there is room
PROCESSES_MOST = 256
# Of what the agent's own needs leave of the budget, and a tenth of the whole in any case; the rest is for looking at
# pages.
GROWTH_RATIO = 0.5
SPENT_OVER_S = 10.0
# A record is thought to cost the agent this much before it is known, and no less or more afterwards.
FIRST_RECORD_S, RECORD_MOST_S = 20e-6, 200e-6
REFILL_LEAST, REFILL_MOST = 8, 8192
SLOWER_RATIO, FINER_RATIO = 1.0, 0.4  # of what is allowed: above it is coarser, below it finer
FINER_AFTER_S = 5.0
OFF_S = 300.0
OFF_AFTER_S = 5.0
MARK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What is known of one process that is watched, or was lately."""

    number: int  # in the log
    workload: WorkloadId
    shift: int = 0
    seen_count: int = 0
    dropped_count: int = 0
    record_count: float = 0.0  # a tick, lately
    finer_at_s: float = float("-inf")  # when its shift last changed
    is_alive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingState:
    """Everything between ticks."""

    processes: Mapping[Instance, Sampled] = field(default_factory=dict[Instance, Sampled])
    log: FaultLog = field(default_factory=FaultLog)
    time_s: float | None = None
    passed_count: int = 0
    pass_ratio: float = 0.0  # what passing takes of a processor, lately
    record_s: float = FIRST_RECORD_S  # what a record takes the agent
    costs: tuple[tuple[float, float, float], ...] = ()  # (time, seconds spent, of these the agent's), of SPENT_OVER_S
    allowed_ratio: float = 0.0
    dear_since_s: float | None = None
    off_until_s: float = float("-inf")
    why_off: str = ""
    # From then on the log is whole.
    since_s: Mapping[WorkloadId, float] = field(default_factory=dict[WorkloadId, float])
    own_bytes: Mapping[WorkloadId, tuple[tuple[float, int], ...]] = field(
        default_factory=dict[WorkloadId, tuple[tuple[float, int], ...]]
    )
    notes: tuple[str, ...] = ()
    host_notes: tuple[str, ...] = ()

    @property
    def spent_ratio(self) -> float:
        """Return what all of it took of a processor, lately."""
        return self._ratio([one[1] for one in self.costs])

    @property
    def agent_ratio(self) -> float:
        """Return what of it was the agent's own time."""
        return self._ratio([one[2] for one in self.costs])

    def _ratio(self, costs_s: Sequence[float]) -> float:
        if len(costs_s) < 2:
            return 0.0
        elapsed_s = self.costs[-1][0] - self.costs[0][0]
        return sum(costs_s[1:]) / elapsed_s if elapsed_s > 0.0 else 0.0


def tell(state: SamplingState) -> tuple[str, ...]:
    """Return what limits the sampling now, for people."""
    notes = [*state.notes, *state.host_notes]
    if (state.time_s or 0.0) < state.off_until_s:
        notes.append(state.why_off)
    elif state.spent_ratio > SLOWER_RATIO * state.allowed_ratio > 0.0:
        notes.append(
            f"sampled more coarsely: it took {100 * state.spent_ratio:.2g} % of a processor, "
            f"{100 * state.allowed_ratio:.2g} % are left for it"
        )
    if state.log.forgotten_count:
        notes.append(
            f"{state.log.forgotten_count} samples had too many different stacks: the smallest are told as [unknown]"
        )
    return tuple(notes)


def knows(state: SamplingState, workload: WorkloadId) -> bool:
    """Tell whether a workload is sampled, or was within the window."""
    return any(one.workload == workload for one in state.processes.values())


def choose(
    state: SamplingState,
    observation: Observation,
    partitions: Sequence[PartitionSettings],
    settings: SenseSettings,
    *,
    agent_ratio: float,
) -> tuple[SamplingState, Mapping[Instance, FaultRate]]:
    """Return how finely each process is to be sampled from now on; nobody: it is switched off.

    `agent_ratio` is the processor time that the rest of the agent takes.
    """
    now_s = observation.time_s
    allowed = max((settings.budget_ratio - agent_ratio) * GROWTH_RATIO, settings.budget_ratio / 10.0)
    wanted, notes = _wanted(observation, partitions)
    state = _switched(replace(state, time_s=now_s, allowed_ratio=allowed, notes=notes), now_s)
    if settings.budget_ratio <= 0.0 or now_s < state.off_until_s:
        return _left(state, {}), {}
    state = _remembered(_left(state, wanted), observation)
    spent = state.spent_ratio
    busy = [one for one in state.processes.values() if one.is_alive and one.record_count >= 1.0]
    refill = _refill(state, allowed, len(busy))
    processes = dict(state.processes)
    finest = _finest(state)
    for process in wanted:
        known = processes[process]
        shift = known.shift
        if spent > SLOWER_RATIO * allowed and known.record_count >= 1.0:
            shift += 1
        elif (
            spent < FINER_RATIO * allowed
            and known.record_count < refill / 4.0
            and now_s - known.finer_at_s >= FINER_AFTER_S
        ):
            shift -= 1
        shift = min(max(shift, finest.get(known.workload, 0)), SHIFT_MOST)
        if shift != known.shift:
            processes[process] = replace(known, shift=shift, finer_at_s=now_s)
    rates = {one: FaultRate(shift=processes[one].shift, refill=refill) for one in wanted}
    return replace(state, processes=processes), rates


def absorb(
    state: SamplingState, drained: Sequence[FaultSamples], *, now_s: float, record_cost_s: float, pass_cost_s: float
) -> SamplingState:
    """Return the state after what came, thinned out where it is too much to keep."""
    processes = dict(state.processes)
    cost_s, notes = 0.0, set[str]()
    new_records: dict[Instance, int] = {}
    for one in drained:
        cost_s += one.cpu_s
        notes.update(one.notes)
        for process, times in zip(one.processes, np.bincount(one.process, minlength=len(one.processes)), strict=True):
            new_records[process] = new_records.get(process, 0) + int(times)
    records = sum(new_records.values())
    counts: Mapping[Instance, FaultCount] = drained[-1].counts if drained else {}
    for process, before in processes.items():
        recent = 0.5 * before.record_count + 0.5 * new_records.get(process, 0)
        found = counts.get(process)
        if found is None:
            processes[process] = replace(before, record_count=recent)
            continue
        processes[process] = replace(
            before,
            shift=max(before.shift, found.shift),
            seen_count=found.seen_count,
            dropped_count=found.dropped_count,
            record_count=recent,
            finer_at_s=now_s if found.shift > before.shift else before.finer_at_s,
        )
    passed = drained[-1].passed_count - state.passed_count if drained else 0
    pass_s = max(0, passed) * pass_cost_s
    spent_s = cost_s + records * record_cost_s + pass_s
    elapsed_s = now_s - state.costs[-1][0] if state.costs else 0.0
    each_s = min(cost_s / records, RECORD_MOST_S) if records else state.record_s
    state = replace(
        state,
        processes=processes,
        log=fault_log.add(state.log, drained, {process: one.number for process, one in processes.items()}),
        passed_count=drained[-1].passed_count if drained else state.passed_count,
        pass_ratio=0.7 * state.pass_ratio + 0.3 * pass_s / elapsed_s if elapsed_s > 0.0 else state.pass_ratio,
        record_s=0.8 * state.record_s + 0.2 * (each_s + record_cost_s),
        costs=(*(one for one in state.costs if one[0] >= now_s - SPENT_OVER_S), (now_s, spent_s, cost_s)),
        host_notes=tuple(sorted(notes)) if drained else state.host_notes,
    )
    return _bounded(state, now_s)


def _wanted(
    observation: Observation, partitions: Sequence[PartitionSettings]
) -> tuple[dict[Instance, WorkloadId], tuple[str, ...]]:
    """Return the processes of critical partitions, the largest where there are too many."""
    names = {one.name for one in partitions if one.critical}
    processes, workloads = observation.processes, observation.workloads
    resident = processes.anon_bytes + processes.file_bytes + processes.shmem_bytes
    is_named = np.array([*(one in names for one in workloads.partitions), False], np.bool_)  # index -1: in no workload
    inside = np.flatnonzero(is_named[processes.workload_index] & (resident > 0))
    notes: tuple[str, ...] = ()
    if len(inside) > PROCESSES_MOST:
        notes = (f"of {len(inside)} critical processes only the {PROCESSES_MOST} largest are sampled",)
        inside = inside[np.argsort(-resident[inside], kind="stable")[:PROCESSES_MOST]]
    wanted = {
        Instance(pid=int(processes.pids[row]), start_ticks=int(processes.start_ticks[row])): workloads.ids[
            int(processes.workload_index[row])
        ]
        for row in inside.tolist()
    }
    return wanted, notes


def _switched(state: SamplingState, now_s: float) -> SamplingState:
    """Switch off where every fault that merely passes costs more than all of it may, for some seconds already."""
    if state.pass_ratio <= state.allowed_ratio or now_s < state.off_until_s:
        return replace(state, dear_since_s=None)
    since_s = now_s if state.dear_since_s is None else state.dear_since_s
    if now_s - since_s < OFF_AFTER_S:
        return replace(state, dear_since_s=since_s)
    passing, left = 100 * state.pass_ratio, 100 * state.allowed_ratio
    why = (
        f"switched off for {OFF_S / 60:g} min: the machine's page faults passing by take {passing:.2g} % of a "
        f"processor, and {left:.2g} % are left for it (raise [sense] budget)"
    )
    return replace(
        state, dear_since_s=None, off_until_s=now_s + OFF_S, why_off=why, pass_ratio=0.0, passed_count=0, costs=()
    )


def _left(state: SamplingState, wanted: Mapping[Instance, WorkloadId]) -> SamplingState:
    """Return the state with new processes, and with those that have ended marked, until the log forgets them."""
    processes: dict[Instance, Sampled] = {}
    since_s = dict(state.since_s)
    kept = set(np.unique(state.log.events["process"]).tolist())
    for process, known in state.processes.items():
        if process in wanted:
            processes[process] = replace(known, is_alive=True)
        elif known.number in kept:
            processes[process] = replace(known, is_alive=False, record_count=0.0)
    coarsest: dict[WorkloadId, int] = {}
    for known in processes.values():
        coarsest[known.workload] = max(coarsest.get(known.workload, 0), known.shift)
    used = {known.number for known in processes.values()}
    free = (number for number in count() if number not in used)
    for process, name in wanted.items():
        if process not in processes:
            processes[process] = Sampled(number=next(free), workload=name, shift=coarsest.get(name, 0))
        since_s.setdefault(name, state.time_s or 0.0)
    names = {one.workload for one in processes.values()}
    return replace(
        state,
        processes=processes,
        since_s={name: at_s for name, at_s in since_s.items() if name in names},
    )


def _remembered(state: SamplingState, observation: Observation) -> SamplingState:
    """Note every MARK_S what each sampled workload holds of its own."""
    names = {one.workload for one in state.processes.values()}
    workloads, now_s = observation.workloads, observation.time_s
    marks: dict[WorkloadId, tuple[tuple[float, int], ...]] = {}
    for row, name in enumerate(workloads.ids):
        if name not in names:
            continue
        before = state.own_bytes.get(name, ())
        own = int(workloads.anon_bytes[row] + workloads.shmem_bytes[row] + workloads.swapped_bytes[row])
        # The last one is always of now; before it those of the window, a step apart.
        steps = before[:-1] if len(before) > 1 and before[-1][0] - before[-2][0] < MARK_S else before
        since_s = max(now_s - WINDOW_S, state.since_s.get(name, now_s)) - MARK_S
        marks[name] = (*(one for one in steps if one[0] >= since_s), (now_s, own))
    return replace(state, own_bytes=marks)


def _refill(state: SamplingState, allowed: float, busy_count: int) -> int:
    left_s = max(0.0, allowed - state.pass_ratio)
    return int(min(max(left_s / state.record_s / max(busy_count, 1), REFILL_LEAST), REFILL_MOST))


def _finest(state: SamplingState) -> dict[WorkloadId, int]:
    """Return the finest shift that makes sense: what a full log would be thinned out to anyway."""
    share = LOG_MOST // max(1, len({one.workload for one in state.processes.values()}))
    numbers: dict[WorkloadId, list[int]] = {}
    for one in state.processes.values():
        numbers.setdefault(one.workload, []).append(one.number)
    found: dict[WorkloadId, int] = {}
    for name, members in numbers.items():
        inside = state.log.rows_of(members)
        if int(inside.sum()) > share // 4:
            found[name] = int(state.log.events["shift"][inside].max())
    return found


def _bounded(state: SamplingState, now_s: float) -> SamplingState:
    """Forget what is old, thin out what is too much, and drop the stacks that nobody needs any more."""
    log = fault_log.forget(state.log, now_s - WINDOW_S)
    names = {one.workload for one in state.processes.values()}
    share = LOG_MOST // max(1, len(names))
    if len(log.events) > share:
        seeds = {one.number: process.start_ticks for process, one in state.processes.items()}
        for name in names:
            members = [one.number for one in state.processes.values() if one.workload == name]
            log = fault_log.thin_out(log, members, seeds, share)
    since_s = {name: max(at_s, now_s - WINDOW_S) for name, at_s in state.since_s.items()}
    return replace(state, log=fault_log.drop_stacks(log), since_s=since_s)
