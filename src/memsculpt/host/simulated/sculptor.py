# SPDX-License-Identifier: Apache-2.0
"""The simulated twin of host.protocol.Sculptor: chunks that leave, come back, and are gathered in huge pages."""

import math
from collections.abc import Sequence

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.pool import Tier
from memsculpt.domain.vm import GuestRam
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient
from memsculpt.host.protocol import Frames, Ranges, Sculpted
from memsculpt.host.simulated.cgroups import PAGE_BYTES
from memsculpt.host.simulated.living import Process
from memsculpt.host.simulated.looking import HEAP_START
from memsculpt.host.simulated.machine import Machine
from memsculpt.host.simulated.pages import ABSENT, RESIDENT, SWAPPED, Chunks, Region

RETRY_IN_S = 1.0
PACKED_RATIO = 0.35  # as design.md's measurements of zram have it, about


class SimulatedSculptor:
    """Fulfils host.protocol.Sculptor. All of a simulated process's private memory lies behind HEAP_START."""

    _machine: Machine
    _guests: dict[Instance, GuestRam]

    def know_guest(self, ram: GuestRam) -> None:
        """Note a guest's RAM: what cannot be done with its backing is not done. See the protocol."""
        self._guests[ram.process] = ram

    def forget_guest(self, process: Instance) -> None:
        """Forget it; see the protocol."""
        self._guests.pop(process, None)

    def _reach(self, process: Instance) -> Process:
        """Return the process; the host says how."""
        raise NotImplementedError

    def _spend(self, chunks: int, page_s: float) -> float:
        """Let the host run for as long as moving `chunks` takes; the host says how."""
        raise NotImplementedError

    def collapse(self, process: Instance, ranges: Ranges, holes_most_bytes: int = 0) -> Sculpted:
        """Gather whole regions in huge pages; see the protocol."""
        machine, found = self._machine, self._reach(process)
        memory, each, chunk_bytes = found.memory, machine.chunks_per_huge, machine.chunk_bytes
        problems = self._outside(memory, ranges)
        if each < 1 or REGION_BYTES % chunk_bytes:
            problems["no huge pages with chunks of this size"] = _size_of(ranges)
            nothing = np.zeros(memory.chunks, np.bool_)
            return self._sculpted(memory, ranges, nothing, 0, machine.costs.collapse_page_s, problems)
        if process in self._guests and (why := self._guests[process].why_not_gathered):
            return self._sculpted(memory, ranges, np.zeros(memory.chunks, np.bool_), 0, 0.0, {why: _size_of(ranges)})
        inside = self._inside(memory, ranges)
        whole = memory.chunks // each
        regions = np.flatnonzero(inside[: whole * each].reshape(-1, each).all(axis=1))
        part = int(inside.sum()) * chunk_bytes - len(regions) * REGION_BYTES
        leave(problems, "no whole region of 2 MiB in one mapping", part)
        held = (memory.state[: whole * each] != ABSENT).reshape(-1, each)[regions].sum(axis=1)
        is_huge = memory.is_huge[: whole * each].reshape(-1, each)[regions, 0]
        is_sparse = ~is_huge & ((each - held) * chunk_bytes > holes_most_bytes)
        leave(problems, "is huge already", int(is_huge.sum()) * REGION_BYTES)
        leave(problems, "sparse: it would be filled with zeros", int(is_sparse.sum()) * REGION_BYTES)
        done = np.zeros(memory.chunks, np.bool_)
        grown = 0
        for region in regions[~is_huge & ~is_sparse].tolist():
            chunks: Chunks = np.arange(region * each, (region + 1) * each, dtype=np.intp)
            missing = chunks[memory.state[chunks] != RESIDENT]
            absent = int((memory.state[missing] == ABSENT).sum())
            if not self._load(found, missing):
                leave(problems, "its cgroup is at the limit", REGION_BYTES)
                continue
            memory.is_huge[chunks] = done[chunks] = True
            grown += absent
        return self._sculpted(memory, ranges, done, grown, machine.costs.collapse_page_s, problems)

    def split(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Make huge pages small again; see the protocol."""
        memory = self._reach(process).memory
        problems = self._outside(memory, ranges)
        inside = self._inside(memory, ranges)
        done = inside & memory.is_huge
        memory.split(np.flatnonzero(done), self._machine.chunks_per_huge)
        leave(problems, "not a huge page", int((inside & ~done).sum()) * self._machine.chunk_bytes)
        return self._sculpted(memory, ranges, done, 0, 0.0, problems)

    def page_out_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Send resident chunks out; see the protocol."""
        machine, memory = self._machine, self._reach(process).memory
        if machine.swap_free_chunks == 0 and len(ranges):
            raise Transient(place=f"process {process.pid}", problem="swap is full", retry_in_s=RETRY_IN_S)
        problems = self._outside(memory, ranges)
        movable = np.flatnonzero(self._inside(memory, ranges) & (memory.state == RESIDENT))
        leaving = movable[: machine.swap_free_chunks]
        leave(problems, "no room in the swap", (len(movable) - len(leaving)) * machine.chunk_bytes)
        machine.evict(memory, leaving)
        return self._sculpted(memory, ranges, _flags(memory, leaving), 0, machine.costs.reclaim_page_s, problems)

    def bring_in_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Bring swapped chunks back; see the protocol. It stops before anybody would have to be killed."""
        found = self._reach(process)
        memory = found.memory
        problems = self._outside(memory, ranges)
        coming = np.flatnonzero(self._inside(memory, ranges) & (memory.state == SWAPPED))
        came = 0
        for at in range(0, len(coming), 64):
            if not self._load(found, coming[at : at + 64]):
                break
            came += len(coming[at : at + 64])
        leave(problems, "no room in its cgroup", (len(coming) - came) * self._machine.chunk_bytes)
        page_s = self._machine.costs.page_in_page_s
        return self._sculpted(memory, ranges, _flags(memory, coming[:came]), 0, page_s, problems)

    def frames(self, process: Instance, ranges: Ranges) -> Frames:
        """Return what lies behind ranges; small pages lie scattered. See the protocol."""
        memory = self._reach(process).memory
        huge = self._measure(memory, ranges, memory.is_huge)
        resident = self._measure(memory, ranges, memory.state == RESIDENT)
        return Frames(
            resident_bytes=resident,
            swapped_bytes=self._measure(memory, ranges, memory.state == SWAPPED),
            huge_bytes=huge,
            longest_run_bytes=np.where(huge > 0, REGION_BYTES, np.where(resident > 0, PAGE_BYTES, 0)).astype(np.int64),
        )

    def swap_tier(self) -> Tier:
        """Return where chunks go: as the costs have it, to compressed memory."""
        return Tier.COMPRESSED

    def packed_ratio(self, process: Instance, addresses: Int64) -> Float64:
        """Return how well pages compress: all alike. See the protocol."""
        memory = self._reach(process).memory
        chunks = (addresses - HEAP_START) // self._machine.chunk_bytes
        inside = (chunks >= 0) & (chunks < memory.chunks)
        resident = np.zeros(len(addresses), np.bool_)
        resident[inside] = memory.state[chunks[inside]] == RESIDENT
        return np.where(resident, PACKED_RATIO, math.nan)

    def _load(self, found: Process, chunks: Chunks) -> bool:
        machine = self._machine
        if not len(chunks):
            return True
        home = machine.tree.by_number[int(found.memory.owner[chunks[0]])]
        if not machine.make_room(home, len(chunks), 0.0, may_kill=False):
            return False
        machine.load(found.memory, chunks, machine.now_s)
        return True

    def _inside(self, memory: Region, ranges: Ranges) -> Bool:
        """Return which chunks lie wholly in the ranges."""
        inside = np.zeros(memory.chunks, np.bool_)
        for start, end in ranges:
            low = -((HEAP_START - start) // self._machine.chunk_bytes)
            inside[max(0, low) : max(0, (end - HEAP_START) // self._machine.chunk_bytes)] = True
        return inside

    def _outside(self, memory: Region, ranges: Ranges) -> dict[str, int]:
        heap_end = HEAP_START + memory.chunks * self._machine.chunk_bytes
        mapped = sum(max(0, min(end, heap_end) - max(start, HEAP_START)) for start, end in ranges)
        problems: dict[str, int] = {}
        leave(problems, "not mapped", _size_of(ranges) - mapped)
        return problems

    def _measure(self, memory: Region, ranges: Ranges, flags: Bool) -> Int64:
        counts = [int((self._inside(memory, (one,)) & flags).sum()) for one in ranges]
        return np.array(counts, np.int64) * self._machine.chunk_bytes

    def _sculpted(
        self, memory: Region, ranges: Ranges, done: Bool, grown: int, page_s: float, problems: dict[str, int]
    ) -> Sculpted:
        done_bytes = self._measure(memory, ranges, done)
        duration_s = self._spend(int(done.sum()), page_s)
        return Sculpted(
            asked_bytes=_size_of(ranges),
            moved_bytes=int(done_bytes.sum()),
            done_bytes=done_bytes,
            duration_s=duration_s,
            cpu_s=duration_s,
            grown_bytes=grown * self._machine.chunk_bytes,
            problems=problems,
        )


def _flags(memory: Region, chunks: Chunks) -> Bool:
    flags = np.zeros(memory.chunks, np.bool_)
    flags[chunks] = True
    return flags


def _size_of(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


def leave(problems: dict[str, int], cause: str, size_bytes: int) -> None:
    """Note what was left as it is."""
    if size_bytes > 0:
        problems[cause] = problems.get(cause, 0) + size_bytes
