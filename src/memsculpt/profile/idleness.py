# SPDX-License-Identifier: Apache-2.0
"""Which processes have not run: the one sign of cold memory that is exact and costs nothing.

A process that gets no processor time touches no page. One that wakes for a moment (a timer, a signal)
touches a few; below `IDLE_CPU_RATIO` of the time since the last look it still counts as idle.
"""

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.observation import Processes
from memsculpt.profile.state import ProcessTimes

IDLE_CPU_RATIO = 0.005


def update_times(before: ProcessTimes, processes: Processes, now_s: float, elapsed_s: float) -> ProcessTimes:
    """Compare processor times with those of the tick before; a process never seen counts as just run."""
    keys = np.stack([processes.pids, processes.start_ticks], axis=1)
    rows = _rows(before, keys)
    known = rows >= 0
    used_s = np.full(len(keys), np.inf)
    used_s[known] = processes.cpu_s[known] - before.cpu_s[rows[known]]
    has_run = used_s > IDLE_CPU_RATIO * elapsed_s
    ran_at_s = np.full(len(keys), now_s)
    ran_at_s[known] = np.where(has_run[known], now_s, before.ran_at_s[rows[known]])
    return ProcessTimes(keys=keys, cpu_s=processes.cpu_s.copy(), ran_at_s=ran_at_s)


def idle_of_workloads(idle_s: Float64, processes: Processes, count: int) -> Float64:
    """Return the shortest idle time among each workload's processes; 0 for one without processes."""
    least = np.full(count, np.inf)
    inside = processes.workload_index >= 0
    np.minimum.at(least, processes.workload_index[inside], idle_s[inside])
    least[np.isinf(least)] = 0.0
    return least


def _rows(
    before: ProcessTimes, keys: "np.ndarray[tuple[int, int], np.dtype[np.int64]]"
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    rows = np.full(len(keys), -1, np.int64)
    if len(before.keys) == 0 or len(keys) == 0:
        return rows
    # Both are ordered by pid, which is unique at one moment, so one search finds the candidates.
    place = np.searchsorted(before.keys[:, 0], keys[:, 0])
    place = np.minimum(place, len(before.keys) - 1)
    same = (before.keys[place] == keys).all(axis=1)
    rows[same] = place[same]
    return rows
