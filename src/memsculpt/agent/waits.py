# SPDX-License-Identifier: Apache-2.0
"""What processes wait for pages, as a share of wall time: what looking at their phases is paid from."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.observation import Observation
from memsculpt.domain.workload import Instance

FAULT_S = 25e-6  # a page that comes back by a fault, as in learn/sculpt.py
QUICK_S, SLOW_S = 10.0, 300.0  # over which it is averaged; the higher of both counts


@dataclass(frozen=True, slots=True)
class _Waited:
    faults_count: int
    quick_ratio: float = 0.0
    slow_ratio: float = 0.0


class Waits:
    """The waits of some processes, from their major faults."""

    def __init__(self) -> None:
        self._known: dict[Instance, _Waited] = {}
        self._at_s = math.nan

    def follow(self, observation: Observation, processes: Iterable[Instance]) -> None:
        """Take note of these processes' faults; whoever is not among them, or gone, is forgotten."""
        passed_s = observation.time_s - self._at_s
        self._at_s = observation.time_s
        rows = {process: row_of(observation, process) for process in processes}
        counts = observation.processes.major_faults_count
        self._known = {
            process: _after(self._known.get(process), int(counts[row]), passed_s)
            for process, row in rows.items()
            if row is not None
        }

    def ratio(self, process: Instance) -> float:
        """Return the share of its time, 0 of who is not known."""
        known = self._known.get(process)
        return 0.0 if known is None else max(known.quick_ratio, known.slow_ratio)

    def spare(self, process: Instance, pages: float) -> None:
        """Count pages that came without a fault because they were brought back: the wait was real, and is spared."""
        known = self._known.get(process)
        if known is not None:
            waited_s = pages * FAULT_S
            self._known[process] = replace(
                known,
                quick_ratio=known.quick_ratio + waited_s / QUICK_S,
                slow_ratio=known.slow_ratio + waited_s / SLOW_S,
            )


def row_of(observation: Observation, process: Instance) -> int | None:
    """Return the row of a process, None where it is gone."""
    processes = observation.processes
    row = int(np.searchsorted(processes.pids, process.pid))
    is_it = row < len(processes.pids) and processes.pids[row] == process.pid
    return row if is_it and processes.start_ticks[row] == process.start_ticks else None


def _after(before: _Waited | None, faults_count: int, passed_s: float) -> _Waited:
    if before is None or not passed_s > 0.0:
        return _Waited(faults_count) if before is None else replace(before, faults_count=faults_count)
    now = (faults_count - before.faults_count) / passed_s * FAULT_S
    quick, slow = (1.0 - math.exp(-passed_s / over_s) for over_s in (QUICK_S, SLOW_S))
    return _Waited(
        faults_count=faults_count,
        quick_ratio=before.quick_ratio + quick * (now - before.quick_ratio),
        slow_ratio=before.slow_ratio + slow * (now - before.slow_ratio),
    )
