# SPDX-License-Identifier: Apache-2.0
"""Carry out what profile/sampling.py asks: watch page faults, fetch what was recorded, look up what is held."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.growth import FaultRate, FaultSamples, Module
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.protocol import FaultWatch, Looker

RETRY_S = 300.0
IDLE_S = 30.0  # programs that run for moments come again, and loading ours takes some 50 ms
DRAINS_MOST = 64  # between two ticks: an agent that does not tick must not pile them up


class FaultSampler:
    """Keeps one watch open while anybody is to be watched.

    With `beside` a thread fetches records as soon as there are many; without, each `collect` does it. All methods are
    for one thread.
    """

    def __init__(self, host: Looker, *, beside: bool = False) -> None:
        self._host, self._beside = host, beside
        self._watch: FaultWatch | None = None
        self._lock = threading.Lock()  # one drain at a time
        self._drained: list[FaultSamples] = []
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._retry_at_s = self._busy_at_s = float("-inf")
        self._opening_s = 0.0  # processor time, until it was told
        self._modules: tuple[Module, ...] = ()
        self.problem = ""  # why nothing can be watched here

    @property
    def record_cost_s(self) -> float:
        """Return what a recorded fault costs a program."""
        return 0.0 if self._watch is None else self._watch.record_cost_s

    @property
    def pass_cost_s(self) -> float:
        """Return what every other fault of the machine costs."""
        return 0.0 if self._watch is None else self._watch.pass_cost_s

    def watch(self, rates: Mapping[Instance, FaultRate], now_s: float, *, is_on: bool = True) -> None:
        """Watch these and nobody else; nothing stays in the kernel where it is off, or nobody was there for a while."""
        if rates:
            self._busy_at_s = now_s
        elif not is_on or now_s - self._busy_at_s >= IDLE_S:
            self.close()
            return
        if self._watch is None:
            if now_s < self._retry_at_s or not rates:
                return
            begin_cpu_s = time.thread_time()
            try:
                self._watch = self._host.open_faults()
            except Unavailable as error:
                self.problem, self._retry_at_s = f"{error.place}: {error.problem}", now_s + RETRY_S
                return
            self.problem = ""
            self._opening_s = time.thread_time() - begin_cpu_s
            if self._beside:
                self._thread = threading.Thread(target=self._run, args=(self._watch,), name="memsculpt-faults")
                self._thread.daemon = True
                self._thread.start()
        with self._lock:
            self._watch.watch(rates)

    def collect(self) -> tuple[FaultSamples, ...]:
        """Return what came since the last call. Raises what ended the thread early, if anything did."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self.close()
            raise failure
        if self._watch is None:
            return ()
        with self._lock:
            last = self._watch.drain()
            drained, self._drained = [*self._drained, replace(last, cpu_s=last.cpu_s + self._opening_s)], []
        self._opening_s = 0.0
        return tuple(drained)

    def count_held(self, owners: Mapping[Instance, tuple[Int64, Int64, Int64]], rows: int) -> Int64:
        """Return how many pages of each event are held, shape (rows,); `owners` as profile.page_owners gives them."""
        held = np.zeros(rows, np.int64)
        if self._watch is not None:
            for process, (events, pages, sizes) in owners.items():
                held[events] = self._watch.count_held(process, pages, sizes)
        return held

    def modules(self) -> tuple[Module, ...]:
        """Return the modules that places in code are in."""
        if self._watch is not None:
            self._modules = self._watch.modules()
        return self._modules

    def close(self) -> None:
        """Take everything out of the kernel; a later `watch` begins anew."""
        self.modules()
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        watch.close()
        self._drained = []

    def _run(self, watch: FaultWatch) -> None:
        try:
            while watch.wait():
                with self._lock:
                    # What is not fetched is counted in the kernel, as dropped.
                    if len(self._drained) < DRAINS_MOST:
                        self._drained.append(watch.drain())
        except Exception as failure:  # noqa: BLE001  handed to the tick, whose border it then meets
            self._failure = failure
