# SPDX-License-Identifier: Apache-2.0
"""Which processes have not run: the one sign of cold memory that is exact and costs nothing.

A process that gets no processor time touches no page. One that wakes for a moment (a timer, a signal)
touches a few; below `IDLE_CPU_RATIO` of the time since the last look it still counts as idle, unless it
waits for its pages: on a slow swap device a process that works as hard as it can uses next to no processor.
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.observation import Processes
from memsculpt.profile.state import ProcessTimes

IDLE_CPU_RATIO = 0.005
# A disk gives a hundred pages a second at worst. The kernel counts a fault to the thread that caused it
# (mm_account_fault), so pages that the agent itself brings back for a process are not among these.
WAITING_FAULTS_PER_S = 64.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """Who ran, columns aligned with the processes of the observation."""

    times: ProcessTimes
    idle_s: Float64
    lacks_bytes: Int64  # of one that wakes just now: what it had when it ran last, and is still in swap


def follow(before: ProcessTimes, processes: Processes, *, now_s: float, elapsed_s: float, idle_after_s: float) -> Ran:
    """Compare counters with those of the tick before; a process never seen counts as just run."""
    keys = np.stack([processes.pids, processes.start_ticks], axis=1)
    rows = _rows(before, keys)
    known = rows >= 0
    past = rows[known]
    used_s = np.full(len(keys), np.inf)
    used_s[known] = processes.cpu_s[known] - before.cpu_s[past]
    faults = np.zeros(len(keys))
    faults[known] = processes.major_faults_count[known] - before.major_faults_count[past]
    has_run = (used_s > IDLE_CPU_RATIO * elapsed_s) | (faults > WAITING_FAULTS_PER_S * max(elapsed_s, 1.0))
    ran_at_s = np.full(len(keys), now_s)
    ran_at_s[known] = np.where(has_run[known], now_s, before.ran_at_s[past])
    ran_with = np.zeros(len(keys), np.int64)
    ran_with[known] = before.ran_with_bytes[past]
    has_woken = np.zeros(len(keys), np.bool_)
    has_woken[known] = has_run[known] & (now_s - elapsed_s - before.ran_at_s[past] >= idle_after_s)
    lacks = np.where(has_woken, np.clip(ran_with - processes.anon_bytes, 0, processes.swapped_bytes), 0)
    has = processes.anon_bytes + processes.swapped_bytes
    ran_with = np.where(has_run, np.minimum(np.maximum(ran_with, processes.anon_bytes), has), ran_with)
    times = ProcessTimes(
        keys=keys,
        cpu_s=processes.cpu_s.copy(),
        major_faults_count=processes.major_faults_count.copy(),
        ran_at_s=ran_at_s,
        ran_with_bytes=ran_with,
    )
    return Ran(times=times, idle_s=now_s - ran_at_s, lacks_bytes=lacks)


def idle_of_workloads(idle_s: Float64, processes: Processes, count: int) -> Float64:
    """Return the shortest idle time among each workload's processes; 0 for one without processes."""
    least = np.full(count, np.inf)
    inside = processes.workload_index >= 0
    np.minimum.at(least, processes.workload_index[inside], idle_s[inside])
    least[np.isinf(least)] = 0.0
    return least


def _rows(before: ProcessTimes, keys: Int64) -> Int64:
    """Return for each (pid, start) its row among those of the tick before, -1 for none."""
    rows = np.full(len(keys), -1, np.int64)
    if len(before.keys) == 0 or len(keys) == 0:
        return rows
    # Both are ordered by pid, which is unique at one moment, so one search finds the candidates.
    place = np.searchsorted(before.keys[:, 0], keys[:, 0])
    place = np.minimum(place, len(before.keys) - 1)
    same = (before.keys[place] == keys).all(axis=1)
    rows[same] = place[same]
    return rows
