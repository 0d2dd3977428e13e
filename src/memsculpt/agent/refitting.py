# SPDX-License-Identifier: Apache-2.0
"""Have a model fitted to each workload once a day, in a worker beside the ticks, and keep what came of it.

One workload is one worker, one at a time: what makes one crash, hang or run out of memory costs that workload its model
of the day and nothing else. The agent hands in the history that it has just read for an outlook.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memsculpt import profile, workers
from memsculpt.domain.series import Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import MemsculptError
from memsculpt.forecast import longterm, selection
from memsculpt.forecast.longterm import Choice, Gate, History

log = logging.getLogger(__name__)

AGAIN_S = 86_400.0
GAP_S = 300.0  # between two workers: at some 5 s each they take a sixtieth of a processor while there are any
# Of address space: statsforecast with scipy and pandas maps 1.5 GiB, of which 220 MiB are resident.
BOUNDS = workers.Bounds(timeout_s=120.0, memory_bytes=4 << 30, result_bytes=1 << 20)

Select = Callable[[History, Gate | None], Choice]


@dataclass(slots=True)
class _Job:
    workload: WorkloadId
    thread: threading.Thread
    result: Choice | None = None
    problem: str = ""


class Refitting:
    """Used by one thread, the ticks'. `select` is found by its name in the worker, so it is a function of a module."""

    def __init__(
        self, *, count: int, bounds: workers.Bounds = BOUNDS, gap_s: float = GAP_S, select: Select = selection.select
    ) -> None:
        """Fit models to `count` workloads a day at most, the largest."""
        self._count, self._bounds, self._gap_s, self._select = count, bounds, gap_s, select
        self._choices: dict[WorkloadId, Choice | None] = {}
        self._tried_at_s: dict[WorkloadId, float] = {}
        self._began_at_s = float("-inf")
        self._job: _Job | None = None
        self.problem = ""  # of the last fit

    @property
    def is_busy(self) -> bool:
        """Tell whether a worker is under way."""
        return self._job is not None and self._job.thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the worker that is under way, if any."""
        if self._job is not None:
            self._job.thread.join(timeout_s)

    def choice_for(self, workload: WorkloadId, recorder: profile.Recorder) -> Choice | None:
        """Return what the last fit came to, this agent's or one before; None where there is none."""
        if workload not in self._choices:
            content = recorder.kept(workload, longterm.KIND)
            try:
                self._choices[workload] = None if content is None else longterm.choice_from_bytes(content)
            except MemsculptError as error:
                log.warning("%s of %s: %s", error.place, workload, error.problem)
                self._choices[workload] = None
        return self._choices[workload]

    def collect(self, recorder: profile.Recorder, ids: Sequence[WorkloadId], now_s: float) -> None:
        """Take up what a worker came to, keep it, and forget who is gone."""
        there = frozenset(ids)
        self._choices = {one: choice for one, choice in self._choices.items() if one in there}
        self._tried_at_s = {one: at_s for one, at_s in self._tried_at_s.items() if one in there}
        job = self._job
        if job is None or job.thread.is_alive():
            return
        self._job = None
        if job.problem and job.problem != self.problem:
            log.warning("no model was fitted to %s: %s", job.workload, job.problem)
        self.problem = job.problem
        if job.result is not None:
            recorder.keep(job.workload, longterm.KIND, job.result.to_bytes(), now_s=now_s)
            if job.workload in there:
                self._choices[job.workload] = job.result

    def offer(
        self, series: Series, capacity_bytes: int, gate: Gate | None, sizes: Mapping[WorkloadId, int], now_s: float
    ) -> None:
        """Begin to fit a model to the workload of a history, if it is its turn; `sizes` are of all who may have one."""
        workload = series.workload
        if self._job is not None or now_s - self._began_at_s < self._gap_s or not self._is_due(series, now_s):
            return
        if workload not in sorted(sizes, key=lambda one: (-sizes[one], one))[: self._count]:
            return
        history = longterm.history_from(
            series, capacity_bytes, longterm.COVARIATES if gate is None else gate.covariates
        )
        self._tried_at_s[workload] = self._began_at_s = now_s
        # A daemon: the agent does not wait for it at its end, and the worker ends with this process.
        thread = threading.Thread(target=self._run, args=(history, gate), name="memsculpt-refit", daemon=True)
        self._job = _Job(workload=workload, thread=thread)
        thread.start()

    def _is_due(self, series: Series, now_s: float) -> bool:
        tried_at_s = self._tried_at_s.get(series.workload)
        if tried_at_s is not None and now_s - tried_at_s < AGAIN_S:
            return False
        choice = self._choices.get(series.workload)
        if choice is None:
            return True
        last_step = series.start_s // longterm.RESOLUTION_S + len(series.values) - 1
        # One from the future was made by a clock that was wrong.
        return not 0 <= last_step - choice.made_step < AGAIN_S / longterm.RESOLUTION_S

    def _run(self, history: History, gate: Gate | None) -> None:
        job = self._job
        if job is None:
            return
        try:
            job.result = workers.run(self._bounds, self._select, history, gate)
        except MemsculptError as error:
            job.problem = f"{error.place}: {error.problem}"
        except Exception as error:  # noqa: BLE001  a thread's border: told like what a worker does, in the next tick
            job.problem = repr(error)
