# SPDX-License-Identifier: Apache-2.0
"""What sampled page faults come to, by workload and stack, and how far off that may be. Pure."""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.growth import KINDS, GrowthSample, GrowthSummary, Module, SampledStack, WorkloadGrowth
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.profile import fault_log, sampling
from memsculpt.profile.growth import error_bytes
from memsculpt.profile.sampling import Sampled, SamplingState


def owners(state: SamplingState, workload: WorkloadId) -> Mapping[Instance, tuple[Int64, Int64, Int64]]:
    """Return, for each living process, the last fault of each page: (row of the log, page, size).

    What of it is held is then looked up. Who brought a page last is whose it is.
    """
    events = state.log.events
    found: dict[Instance, tuple[Int64, Int64, Int64]] = {}
    for process, known in state.processes.items():
        if known.workload != workload or not known.is_alive:
            continue
        rows = np.flatnonzero(events["process"] == known.number)
        if len(rows):
            backwards = rows[::-1]
            _, first = np.unique(events["page"][backwards], return_index=True)
            last = np.sort(backwards[first])
            found[process] = (last, events["page"][last].astype(np.int64), events["pages"][last].astype(np.int64))
    return found


def estimate(
    state: SamplingState, workload: WorkloadId, held_pages: Int64, modules: tuple[Module, ...], *, now_s: float
) -> GrowthSample:
    """Return what is known of one workload. `held_pages` has a row for each of the log's: what is held of its size."""
    members = [one for one in state.processes.values() if one.workload == workload]
    chosen = state.log.rows_of([one.number for one in members])
    events, held, weights = state.log.events[chosen], held_pages[chosen], state.log.weights[chosen]
    pairs = events["stack"].astype(np.int64) * len(KINDS) + events["kind"].astype(np.int64)
    found, group = np.unique(pairs, return_inverse=True)
    keys: list[int] = found.tolist()
    touched, touched_variance = fault_log.sum_up(group, len(keys), events["pages"].astype(np.float64), weights)
    lasting = _lasting_weights(events, {one.number: process.start_ticks for process, one in state.processes.items()})
    kept, kept_variance = fault_log.sum_up(group, len(keys), held.astype(np.float64), lasting)
    known = tuple(state.log.stacks)
    counts = np.bincount(group, minlength=len(keys))
    stacks: list[SampledStack] = []
    for row, key in enumerate(keys):
        frames, words = fault_log.parse_stack(known[key // len(KINDS)])
        stacks.append(
            SampledStack(
                frames=frames,
                words=words,
                kind=KINDS[key % len(KINDS)],
                touched_bytes=int(touched[row]) * PAGE_BYTES,
                held_bytes=int(kept[row]) * PAGE_BYTES,
                sample_count=int(counts[row]),
                touched_variance=float(touched_variance[row]) * PAGE_BYTES**2,
                held_variance=float(kept_variance[row]) * PAGE_BYTES**2,
            )
        )
    marks = state.own_bytes.get(workload, ())
    shifts: list[int] = [*events["shift"].tolist(), *(one.shift for one in members if one.is_alive)]
    return GrowthSample(
        workload=workload,
        interval_s=now_s - state.since_s.get(workload, now_s),
        sampled_every=1 << max(shifts, default=0),
        seen_count=sum(one.seen_count for one in members),
        dropped_count=sum(one.dropped_count for one in members),
        grown_bytes=marks[-1][1] - marks[0][1] if len(marks) > 1 else None,
        stacks=tuple(sorted(stacks, key=lambda one: (-one.touched_bytes, one.frames))),
        modules=modules,
        notes=sampling.tell(state),
    )


def _lasting_weights(events: fault_log.Events, seeds: Mapping[int, int]) -> Float64:
    """Return for how many pages each event's page stands among what is held, shape (n_events,).

    Pages that the coarsest step of their process leaves out have no say: since it was set, others may have brought them
    anew without being seen, and what is held now would count for both.
    """
    weights = np.zeros(len(events))
    for number in np.unique(events["process"]).tolist():
        rows = np.flatnonzero(events["process"] == number)
        shift = int(events["shift"][rows].max())
        stays = fault_log.is_chosen(events["page"][rows].astype(np.int64), seeds[number], shift)
        weights[rows[stays]] = float(1 << shift)
    return weights


def summarize(state: SamplingState) -> GrowthSummary:
    """Return what doors show of it at every tick."""
    now_s = state.time_s or 0.0
    groups: dict[WorkloadId, list[Sampled]] = {}
    for one in state.processes.values():
        if one.is_alive:
            groups.setdefault(one.workload, []).append(one)
    size = max([one.number for one in state.processes.values()], default=-1) + 1
    events = state.log.events
    process: Int64 = events["process"].astype(np.int64)
    pages = np.where(events["kind"] == KINDS.index("file"), 0.0, events["pages"].astype(np.float64))
    counts = np.bincount(process, minlength=size)
    touched, variance = fault_log.sum_up(process, size, pages, state.log.weights)
    rows: list[WorkloadGrowth] = []
    for name, members in sorted(groups.items()):
        numbers = [one.number for one in state.processes.values() if one.workload == name]
        rows.append(
            WorkloadGrowth(
                id=name,
                process_count=len(members),
                sampled_every=1 << max(one.shift for one in members),
                interval_s=now_s - state.since_s.get(name, now_s),
                sample_count=int(counts[numbers].sum()),
                seen_count=sum(one.seen_count for one in members),
                touched_bytes=int(touched[numbers].sum()) * PAGE_BYTES,
                touched_error_bytes=error_bytes(float(variance[numbers].sum()) * PAGE_BYTES**2),
            )
        )
    return GrowthSummary(
        workloads=tuple(rows),
        is_on=now_s >= state.off_until_s,
        spent_ratio=state.spent_ratio,
        allowed_ratio=state.allowed_ratio,
        notes=sampling.tell(state),
    )
