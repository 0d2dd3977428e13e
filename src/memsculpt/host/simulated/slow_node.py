# SPDX-License-Identifier: Apache-2.0
"""The simulated twin of host.protocol.SlowNode: chunks that lie on a node without processors, and are used there."""

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.protocol import Ranges, Sculpted
from memsculpt.host.simulated.looking import HEAP_START
from memsculpt.host.simulated.pages import RESIDENT, Region
from memsculpt.host.simulated.sculptor import SimulatedSculptor, leave

NO_NODE = "this host has one memory node: there is no slower one"
NODE_FIX = "build it with slow_bytes"


class SimulatedSlowNode(SimulatedSculptor):
    """Fulfils host.protocol.SlowNode."""

    def slow_room_bytes(self) -> int:
        """Return how much may still go there; see the protocol."""
        return self._machine.slow_room_chunks * self._machine.chunk_bytes

    def to_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move resident chunks there; see the protocol."""
        memory = self._reach_slow(process)
        problems = self._outside(memory, ranges)
        inside = self._inside(memory, ranges) & (memory.state == RESIDENT)
        leave(problems, "lies on the slow node already", self._size_of(inside & memory.is_slow))
        wanted = inside & ~memory.is_slow
        moving = np.flatnonzero(self._whole(memory, wanted))
        leave(
            problems,
            "part of a huge page, which moves as a whole or not at all",
            self._size_of(wanted) - len(moving) * self._machine.chunk_bytes,
        )
        chosen = moving[: self._machine.slow_room_chunks]
        leave(
            problems, "no room on the node beyond its reserve", (len(moving) - len(chosen)) * self._machine.chunk_bytes
        )
        memory.is_slow[chosen] = True
        self._machine.slow_chunks += len(chosen)
        done = np.zeros(memory.chunks, np.bool_)
        done[chosen] = True
        return self._sculpted(memory, ranges, done, 0, self._machine.costs.migrate_page_s, problems)

    def from_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move chunks back; see the protocol."""
        machine, memory = self._machine, self._reach_slow(process)
        problems = self._outside(memory, ranges)
        there = np.flatnonzero(self._inside(memory, ranges) & memory.is_slow)
        chosen = there[: max(0, machine.fast_free_chunks)]
        leave(problems, "no room on the node beyond its reserve", (len(there) - len(chosen)) * machine.chunk_bytes)
        memory.is_slow[chosen] = False
        machine.slow_chunks -= len(chosen)
        done = np.zeros(memory.chunks, np.bool_)
        done[chosen] = True
        return self._sculpted(memory, ranges, done, 0, machine.costs.migrate_page_s, problems)

    def slow_runs(self, process: Instance, ranges: Ranges) -> Int64:
        """Return which chunks lie there; see the protocol."""
        memory = self._reach_slow(process)
        edges = np.flatnonzero(
            np.diff((self._inside(memory, ranges) & memory.is_slow).astype(np.int8), prepend=0, append=0)
        )
        return (edges.reshape(-1, 2) * self._machine.chunk_bytes + HEAP_START).astype(np.int64)

    def _reach_slow(self, process: Instance) -> Region:
        if not self._machine.slow_total_chunks:
            raise Unavailable(place="slow memory node", problem=NO_NODE, fix=NODE_FIX)
        return self._reach(process).memory

    def _size_of(self, flags: Bool) -> int:
        return int(flags.sum()) * self._machine.chunk_bytes

    def _whole(self, memory: Region, wanted: Bool) -> Bool:
        """Return `wanted` without what is a part of a huge page of which not all is wanted."""
        if not memory.is_huge.any():
            return wanted
        region = np.arange(memory.chunks) // self._machine.chunks_per_huge
        is_cut = np.isin(region, np.unique(region[memory.is_huge & ~wanted]))
        return wanted & ~(memory.is_huge & is_cut)
