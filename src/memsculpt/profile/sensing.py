# SPDX-License-Identifier: Apache-2.0
"""Which memory is looked at in this tick, so that sensing stays within its budget. Pure.

Looking is not free, and most of it is paid by the program that is looked at: after a clear its processor has to set the
accessed bit of every page anew (measured on the reference machine: 0.5 us a page, ten times what the clear itself
takes). So both are counted: the agent's processor time as measured, and a price for every page that was found touched.
Budget that is not used is saved up for some seconds.

The unit is a *slice*: at most 64 MiB of resident memory that is cleared by one call and then looked at again after 1,
10, 60 and 600 s, until it is its turn again. A small process is one slice and has its turn every `interval`; of a large
one as many slices have theirs as can be paid for, and the others wait: intervals stretch by themselves. A clear of one
slice makes few of a program's accesses slower at any moment, which is what keeps its tail latency flat.

Whose turn it is: who has waited longest, measured in its own intervals, weighted by what it matters to know. A workload
that stalls or grows counts several times.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.heat import LookAt, Looked, LookKind, WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Extents, Touches
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import SenseSettings
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.profile import heat
from memsculpt.profile.heat import WINDOWS_S, HeatState

SLICE_BYTES = 64 << 20
# Layouts change: a process is surveyed again after so many intervals, sooner when it has grown or shrunk by a quarter.
SURVEY_INTERVALS = 6.0
CHANGED_RATIO = 0.25
# Unused budget is saved up for so long; more would let it burst.
SAVED_S = 5.0
# Before anything was measured: processor seconds for a GiB, on a machine whose caches others use.
FIRST_SURVEY_S_PER_GIB = 0.001
FIRST_READ_S_PER_GIB = 0.01
FIRST_TURN_S_PER_GIB = 0.05
COST_WEIGHT = 0.2
# Stall and growth that make a workload count twice as much; four times is the most.
STALL_RATIO = 0.02
GROWTH_PER_S = 0.01
MOST_URGENT = 4.0
# Intervals that memory which never had a turn has waited, as it were.
NEVER_SEEN = 1e6
HOT = 0.5
IDLE_LEAST_S = 30.0
TROUBLE_PAUSE_S = 300.0
SHARE_MARKS_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """A stretch of one process that is cleared at once."""

    start: int
    end: int
    resident_pages: int
    touched_pages: int = 0  # at its last turn
    heat: HeatState | None = None  # None: it had no turn yet
    probed: int = 0  # windows that were looked at since the last turn
    hot_rows: int = 0  # as of the last look, of the rows of `heat`
    idle_rows: int = 0
    interval_s: float = float("nan")  # between its last two turns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sensed:
    """What is known of one process."""

    workload: WorkloadId
    surveyed_at_s: float = float("-inf")
    surveyed_bytes: int = 0
    slices: tuple[Slice, ...] = ()
    problem: str = ""  # why it is not looked at
    passed: str = ""  # why it is not the best source that looks
    paused_until_s: float = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SensingState:
    """Everything between ticks."""

    processes: Mapping[Instance, Sensed] = field(default_factory=dict[Instance, Sensed])
    time_s: float | None = None
    saved_s: float = 0.0  # processor time that may be spent now; negative: overdrawn
    survey_s_per_gib: float = FIRST_SURVEY_S_PER_GIB
    read_s_per_gib: float = FIRST_READ_S_PER_GIB
    turn_s_per_gib: float = FIRST_TURN_S_PER_GIB
    spent_s: float = 0.0  # since the start
    paid_s: float = 0.0  # of that, by the programs that were looked at
    marks: tuple[tuple[float, float, float], ...] = ()  # (time, spent, paid) of the last minute


def choose(
    state: SensingState,
    observation: Observation,
    profiles: Profiles,
    settings: SenseSettings,
    *,
    touch_cost_s: float,
    agent_ratio: float = 0.0,
) -> tuple[SensingState, tuple[LookAt, ...]]:
    """Return what to look at now. `touch_cost_s` is what a program pays for a page that it touches after a clear.

    `agent_ratio` is the processor time that the rest of the agent takes: sensing gets what the budget leaves of it, and
    a tenth of the budget in any case.
    """
    now_s = observation.time_s
    elapsed_s = now_s - state.time_s if state.time_s is not None else 0.0
    allowed = max(settings.budget_ratio - agent_ratio, settings.budget_ratio / 10.0)
    saved_s = min(state.saved_s + allowed * elapsed_s, allowed * SAVED_S)
    wanted = _wanted(observation)
    processes = {one: state.processes.get(one, Sensed(workload=name)) for one, (name, _) in wanted.items()}
    state = replace(state, processes=processes, time_s=now_s, saved_s=saved_s, marks=_marks(state, now_s))
    if settings.budget_ratio <= 0.0 or saved_s <= 0.0:
        return state, ()
    urgency = _urgency(profiles)
    tasks: list[LookAt] = []
    offers = sorted(
        _offers(state, wanted, urgency, settings, now_s, touch_cost_s),
        key=lambda offer: (-offer[0], _scattered(offer[2].start)),
    )
    for _, cost_s, task in offers:
        # What costs more than was ever saved up is done when all of that is there, and paid off afterwards.
        if cost_s > saved_s and not (cost_s > allowed * SAVED_S and saved_s >= 0.99 * allowed * SAVED_S):
            break
        saved_s -= cost_s
        tasks.append(task)
    return state, _without_needless(tasks)


def whole(state: SensingState, process: Instance) -> tuple[LookAt, ...]:
    """Return what has to be done for all of a process to be looked at and cleared now; nothing before its survey."""
    sensed = state.processes.get(process)
    if sensed is None or (state.time_s is not None and state.time_s < sensed.paused_until_s):
        return ()
    return tuple(LookAt(kind=LookKind.TURN, process=process, start=one.start, end=one.end) for one in sensed.slices)


def cost_of(results: Iterable[Looked], touch_cost_s: float) -> float:
    """Return the processor time that looks took: the agent's, and what the programs pay for touching pages anew."""
    return sum(
        one.cpu_s + (touch_cost_s * int(one.touches.touched.sum()) if one.touches is not None and one.cleared else 0.0)
        for one in results
    )


def absorb(
    state: SensingState, results: Iterable[Looked], *, touch_cost_s: float, is_budgeted: bool = True
) -> SensingState:
    """Return the state after what came of the tasks; of looks that somebody else pays for: not `is_budgeted`."""
    processes = dict(state.processes)
    saved_s, spent_s, paid_s = state.saved_s, state.spent_s, state.paid_s
    read_cost, turn_cost, survey_cost = state.read_s_per_gib, state.turn_s_per_gib, state.survey_s_per_gib
    for one in results:
        sensed = processes.get(one.task.process)
        cost_s = one.cpu_s
        if sensed is None:
            continue
        if one.extents is not None:
            gib = _gib(one.extents.present)
            survey_cost += COST_WEIGHT * (one.cpu_s / gib - survey_cost)
            processes[one.task.process] = replace(_surveyed(sensed, one.extents, one.at_s), passed=one.problem)
        elif one.touches is None:
            if one.is_gone:
                del processes[one.task.process]
            else:
                processes[one.task.process] = replace(
                    sensed, problem=one.problem, paused_until_s=one.at_s + TROUBLE_PAUSE_S
                )
        else:
            gib = _gib(one.touches.present)
            if one.cleared:
                touch_s = touch_cost_s * int(one.touches.touched.sum())
                cost_s += touch_s
                paid_s += touch_s
                turn_cost += COST_WEIGHT * (one.cpu_s / gib - turn_cost)
            else:
                read_cost += COST_WEIGHT * (one.cpu_s / gib - read_cost)
            processes[one.task.process] = _absorbed(sensed, one)
        saved_s -= cost_s if is_budgeted else 0.0
        spent_s += cost_s
    return replace(
        state,
        processes=processes,
        saved_s=saved_s,
        spent_s=spent_s,
        paid_s=paid_s,
        read_s_per_gib=read_cost,
        survey_s_per_gib=survey_cost,
        turn_s_per_gib=turn_cost,
    )


def summarize(state: SensingState, *, source: str, now_s: float) -> WorkloadHeat:
    """Return what is known by workload."""
    groups: dict[WorkloadId, list[Sensed]] = {}
    for sensed in state.processes.values():
        if sensed.slices:
            groups.setdefault(sensed.workload, []).append(sensed)
    ids = tuple(sorted(groups))
    rows = [_summary([part for one in groups[name] for part in one.slices]) for name in ids]
    first_s, first_spent_s, first_paid_s = state.marks[0] if state.marks else (now_s, state.spent_s, state.paid_s)
    elapsed_s = now_s - first_s
    problems = sorted({one.problem for one in state.processes.values() if one.problem})
    passed = sorted({one.passed for one in state.processes.values() if one.passed})
    return WorkloadHeat(
        ids=ids,
        windows_s=WINDOWS_S,
        resident_bytes=np.array([row[0] for row in rows], np.int64),
        hot_bytes=np.array([row[1] for row in rows], np.int64),
        idle_bytes=np.array([row[2] for row in rows], np.int64),
        working_set_bytes=np.array([row[3] for row in rows], np.float64).reshape(len(ids), len(WINDOWS_S)),
        covered_ratio=np.array([row[4] for row in rows], np.float64),
        interval_s=np.array([row[5] for row in rows], np.float64),
        source=source,
        spent_ratio=(state.spent_s - first_spent_s) / elapsed_s if elapsed_s > 0.0 else 0.0,
        paid_ratio=(state.paid_s - first_paid_s) / elapsed_s if elapsed_s > 0.0 else 0.0,
        notes=(
            *(f"pages are not looked at: {problem}" for problem in problems),
            *(f"pages are looked at by a lesser source: {problem}" for problem in passed),
        ),
    )


def slices_from(extents: Extents) -> tuple[Slice, ...]:
    """Return the slices of an address space: runs of regions with at most SLICE_BYTES of resident memory."""
    starts, pages = extents.regions, extents.present
    if not len(starts):
        return ()
    groups = np.cumsum(pages) * PAGE_BYTES // SLICE_BYTES
    edges = np.flatnonzero(np.diff(groups, prepend=-1))
    ends = [*(starts[edges[1:] - 1] + REGION_BYTES).tolist(), int(starts[-1]) + REGION_BYTES]
    sums = np.add.reduceat(pages, edges)
    return tuple(
        Slice(start=start, end=end, resident_pages=count)
        for start, end, count in zip(starts[edges].tolist(), ends, sums.tolist(), strict=True)
    )


def _wanted(observation: Observation) -> dict[Instance, tuple[WorkloadId, int]]:
    """Return the processes of partitions, each with its workload and resident bytes: only those are ever touched."""
    processes, workloads = observation.processes, observation.workloads
    resident = processes.anon_bytes + processes.file_bytes + processes.shmem_bytes
    columns = (processes.pids, processes.start_ticks, processes.workload_index, resident)
    return {
        Instance(pid=pid, start_ticks=start_ticks): (workloads.ids[index], resident_bytes)
        for pid, start_ticks, index, resident_bytes in zip(*(one.tolist() for one in columns), strict=True)
        if workloads.partitions[index] and resident_bytes > 0
    }


def _urgency(profiles: Profiles) -> dict[WorkloadId, float]:
    held = np.maximum(profiles.needed_bytes + profiles.cold_bytes, 1)
    score = 1.0 + profiles.some_stall_ratio / STALL_RATIO + profiles.growth_bytes_per_s / held / GROWTH_PER_S
    return dict(zip(profiles.ids, np.minimum(score, MOST_URGENT).tolist(), strict=True))


def _offers(
    state: SensingState,
    wanted: Mapping[Instance, tuple[WorkloadId, int]],
    urgency: Mapping[WorkloadId, float],
    settings: SenseSettings,
    now_s: float,
    touch_cost_s: float,
) -> Iterable[tuple[float, float, LookAt]]:
    """Yield (how urgent, what it will cost, the task) of everything that may be done now."""
    for process, sensed in state.processes.items():
        if now_s < sensed.paused_until_s:
            continue
        name, resident_bytes = wanted[process]
        weight = urgency.get(name, 1.0)
        if _needs_survey(sensed, resident_bytes, settings, now_s):
            cost_s = state.survey_s_per_gib * max(resident_bytes, REGION_BYTES) / (1 << 30)
            # Nothing else can be done before; later it can wait for those whose turn it is.
            urgent = NEVER_SEEN * MOST_URGENT * 2.0 if not sensed.slices else weight
            yield urgent, cost_s, LookAt(kind=LookKind.SURVEY, process=process)
        for one in sensed.slices:
            size_gib = max(one.resident_pages * PAGE_BYTES, REGION_BYTES) / (1 << 30)
            waited_s = now_s - one.heat.cleared_at_s if one.heat is not None else float("inf")
            if one.heat is not None and one.probed < len(WINDOWS_S):
                window_s = WINDOWS_S[one.probed]
                if waited_s >= window_s * heat.PASSED_RATIO:  # cheap, and its moment passes
                    task = LookAt(kind=LookKind.PROBE, process=process, start=one.start, end=one.end)
                    yield weight * NEVER_SEEN * 2.0, state.read_s_per_gib * size_gib, task
            if waited_s >= settings.interval_s:
                touched = one.touched_pages if one.heat is not None else one.resident_pages  # never seen: the worst
                cost_s = state.turn_s_per_gib * size_gib + touch_cost_s * touched
                urgent = weight * min(waited_s / settings.interval_s, NEVER_SEEN)
                task = LookAt(kind=LookKind.TURN, process=process, start=one.start, end=one.end)
                yield urgent, cost_s, task


def _without_needless(tasks: Sequence[LookAt]) -> tuple[LookAt, ...]:
    """Return the tasks without probes of what has its turn now, which reads it as well."""
    turns = {(task.process, task.start) for task in tasks if task.kind is LookKind.TURN}
    return tuple(task for task in tasks if task.kind is not LookKind.PROBE or (task.process, task.start) not in turns)


def _scattered(address: int) -> int:
    """Return a place in a fixed order that jumps about: the first few slices stand for the whole (Knuth's hash)."""
    return (address // REGION_BYTES) * 2_654_435_761 % (1 << 32)


def _needs_survey(sensed: Sensed, resident_bytes: int, settings: SenseSettings, now_s: float) -> bool:
    if now_s - sensed.surveyed_at_s >= settings.interval_s * SURVEY_INTERVALS:
        return True
    change = abs(resident_bytes - sensed.surveyed_bytes)
    return now_s - sensed.surveyed_at_s >= settings.interval_s / 2 and change > CHANGED_RATIO * sensed.surveyed_bytes


def _gib(pages: Int64) -> float:
    return max(int(pages.sum()) * PAGE_BYTES, REGION_BYTES) / (1 << 30)


def _surveyed(sensed: Sensed, extents: Extents, at_s: float) -> Sensed:
    return replace(
        sensed,
        surveyed_at_s=at_s,
        surveyed_bytes=int(extents.present.sum()) * PAGE_BYTES,
        slices=_kept(sensed.slices, slices_from(extents)),
        problem="",
    )


def _absorbed(sensed: Sensed, one: Looked) -> Sensed:
    touches = one.touches
    if touches is None:
        raise ValueError("nothing was read")
    slices = tuple(
        _looked_at(part, touches, one) if part.start == one.task.start and part.end == one.task.end else part
        for part in sensed.slices
    )
    return replace(sensed, slices=slices, problem="", passed=one.problem)


def _kept(before: Sequence[Slice], now: tuple[Slice, ...]) -> tuple[Slice, ...]:
    """Return the new slices, with what is known of those that have not changed."""
    known = {(one.start, one.end): one for one in before}
    return tuple(
        replace(known[one.start, one.end], resident_pages=one.resident_pages) if (one.start, one.end) in known else one
        for one in now
    )


def _looked_at(part: Slice, touches: Touches, one: Looked) -> Slice:
    if part.heat is None:
        # Before the first clear the bits tell nothing but that a page was touched at some time.
        return replace(part, heat=heat.begin(one.at_s)) if one.cleared else part
    if one.is_first:
        return replace(part, heat=heat.resume(part.heat, one.at_s)) if one.cleared else part
    began_s = part.heat.cleared_at_s
    known = heat.update(part.heat, touches, one.at_s, cleared=one.cleared)
    least_s = np.maximum(np.minimum(WINDOWS_S[-1], one.at_s - known.known_since_s), IDLE_LEAST_S)
    part = replace(
        part,
        hot_rows=int((known.heat >= HOT).sum()),
        idle_rows=int((known.idle_s(one.at_s) >= least_s).sum()),
    )
    probed = sum(one.at_s - began_s >= window_s * heat.PASSED_RATIO for window_s in WINDOWS_S)
    if not one.cleared:
        return replace(part, heat=known, probed=probed)
    return replace(
        part,
        heat=known,
        probed=0,
        touched_pages=int(touches.touched.sum()),
        resident_pages=int(touches.present.sum()),
        interval_s=one.at_s - began_s,
    )


def _summary(slices: Sequence[Slice]) -> tuple[int, int, int, list[float], float, float]:
    resident = sum(one.resident_pages for one in slices)
    hot = idle = 0
    measured = [0] * len(WINDOWS_S)
    touched = [0] * len(WINDOWS_S)
    covered = 0
    intervals: list[float] = []
    for one in slices:
        state = one.heat
        if state is None or not len(state.starts):
            continue
        covered += one.resident_pages
        share = one.resident_pages / max(len(state.starts), 1)  # rows are alike: a row stands for so many pages
        hot += int(share * one.hot_rows)
        idle += int(share * one.idle_rows)
        if one.interval_s == one.interval_s:
            intervals.append(one.interval_s)
        for number, found in enumerate(state.working_sets):
            if found is not None:
                measured[number] += one.resident_pages
                touched[number] += found.touched_pages
    sets = [
        touched[number] / measured[number] * resident * PAGE_BYTES if measured[number] else float("nan")
        for number in range(len(WINDOWS_S))
    ]
    return (
        resident * PAGE_BYTES,
        hot * PAGE_BYTES,
        idle * PAGE_BYTES,
        sets,
        covered / resident if resident else 0.0,
        sum(intervals) / len(intervals) if intervals else float("nan"),
    )


def _marks(state: SensingState, now_s: float) -> tuple[tuple[float, float, float], ...]:
    kept = tuple(mark for mark in state.marks if mark[0] > now_s - SHARE_MARKS_S)
    return (*kept, (now_s, state.spent_s, state.paid_s))
