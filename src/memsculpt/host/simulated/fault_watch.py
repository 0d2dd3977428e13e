# SPDX-License-Identifier: Apache-2.0
"""Page faults of simulated programs: the twin of the program in the kernel. A chunk stands for its pages.

A simulated program has no code, so its stacks are made up, the same ones every time: three chunks in four are brought
by `fill` on behalf of `serve`, the fourth by `grow`. What came and went between two calls is not seen.
"""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.growth import KINDS, MODULE_SHIFT, FaultCount, FaultRate, FaultSamples, Module
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from memsculpt.host.simulated.looking import HEAP_START
from memsculpt.host.simulated.machine import Machine
from memsculpt.host.simulated.pages import ABSENT

FUNCTIONS = ((0x1000, 0x1100, "main"), (0x1100, 0x1200, "serve"), (0x1200, 0x1300, "fill"), (0x1300, 0x1400, "grow"))
IN_MAIN, IN_SERVE, IN_FILL, IN_GROW = (start + 8 for start, _, _ in FUNCTIONS)
GROWS_EVERY = 4  # chunks
MASK = (1 << 64) - 1


class SimulatedFaultWatch:
    """Compares what each process has with what it had. Fulfils host.protocol.FaultWatch."""

    record_cost_s = pass_cost_s = 0.0

    def __init__(self, machine: Machine, modules: dict[str, int]) -> None:
        self._machine, self._modules = machine, modules
        self._rates: dict[Instance, FaultRate] = {}
        self._had: dict[Instance, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
        self._seen: dict[Instance, int] = {}

    def watch(self, rates: Mapping[Instance, FaultRate]) -> None:
        """Watch these and nobody else."""
        self._rates = dict(rates)
        self._had = {process: had for process, had in self._had.items() if process in rates}
        self._seen = {process: seen for process, seen in self._seen.items() if process in rates}
        for process in rates:
            if process not in self._had:
                self._had[process] = self._has(process)

    def drain(self) -> FaultSamples:
        """Return what came since the last call."""
        rows: list[tuple[int, int, int, int, int]] = []
        keys: dict[bytes, int] = {}
        counts: dict[Instance, FaultCount] = {}
        pages_per_chunk = self._machine.chunk_bytes // PAGE_BYTES
        for number, (process, rate) in enumerate(self._rates.items()):
            has, had = self._has(process), self._had[process]
            is_new = has.copy()
            is_new[: len(had)] &= ~had[: len(has)]
            self._had[process] = has
            new: list[int] = np.flatnonzero(is_new).tolist()
            self._seen[process] = self._seen.get(process, 0) + len(new) * pages_per_chunk
            counts[process] = FaultCount(shift=rate.shift, seen_count=self._seen[process], dropped_count=0)
            for chunk in new:
                page = HEAP_START // PAGE_BYTES + chunk * pages_per_chunk
                if _is_chosen(page, process.start_ticks, rate.shift):
                    stack = keys.setdefault(self._stack(process, chunk), len(keys))
                    rows.append((number, page, pages_per_chunk, rate.shift, stack))
        columns = np.array(rows, np.int64).reshape(-1, 5)
        return FaultSamples(
            at_s=np.full(len(columns), self._machine.now_s),
            process=columns[:, 0].copy(),
            page=columns[:, 1].copy(),
            size_pages=columns[:, 2].copy(),
            shift=columns[:, 3].copy(),
            kind=np.full(len(columns), KINDS.index("anonymous"), np.int64),
            stack=columns[:, 4].copy(),
            processes=tuple(self._rates),
            stacks=tuple(keys),
            counts=counts,
            passed_count=sum(self._seen.values()),
            cpu_s=0.0,
        )

    def count_held(self, process: Instance, pages: Int64, sizes: Int64) -> Int64:
        """Return how many of `sizes` pages from each of `pages` on have content."""
        has = self._has(process)
        chunks = (pages - HEAP_START // PAGE_BYTES) // (self._machine.chunk_bytes // PAGE_BYTES)
        inside = (chunks >= 0) & (chunks < len(has))
        return np.where(inside & has[np.where(inside, chunks, 0)], sizes, 0) if len(has) else np.zeros_like(sizes)

    def modules(self) -> tuple[Module, ...]:
        """Return the programs that were met."""
        names = [Module(name=name, functions=FUNCTIONS) for name in self._modules]
        return (Module(name="[unknown]"), *names)

    def wait(self) -> bool:
        """Return at once: in simulated time nobody drains in between."""
        return False

    def wake(self) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Watch nobody."""
        self.watch({})

    def _has(self, process: Instance) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        try:
            state = self._machine.find(process).memory.state
        except Vanished:
            return np.zeros(0, np.bool_)
        return np.asarray(state != ABSENT, np.bool_)

    def _stack(self, process: Instance, chunk: int) -> bytes:
        name = self._machine.find(process).program.exe
        module = self._modules.setdefault(name, len(self._modules) + 1) << MODULE_SHIFT
        frames = (IN_GROW, IN_MAIN) if chunk % GROWS_EVERY == 0 else (IN_FILL, IN_SERVE, IN_MAIN)
        return np.array([len(frames), *(module | offset for offset in frames)], np.int64).tobytes()


def _is_chosen(page: int, seed: int, shift: int) -> bool:
    """Tell whether a page is among one in 2**shift, as native/bpf/faults.bpf.c does."""
    if shift == 0:
        return True
    mixed = (page + seed) & MASK
    mixed ^= mixed >> 33
    mixed = mixed * 0xFF51AFD7ED558CCD & MASK
    mixed ^= mixed >> 33
    mixed = mixed * 0xC4CEB9FE1A85EC53 & MASK
    mixed ^= mixed >> 33
    return mixed >> (64 - shift) == 0
