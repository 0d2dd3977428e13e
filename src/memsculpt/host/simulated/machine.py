# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory: processes, faults, charges against nested limits, reclaim, swap, stall times, OOM kills.

Time advances in steps (0.25 s unless told otherwise). In a step each running process touches chunks; what is
absent costs a zero-fill, what is in swap a major fault, and what does not fit under a limit first costs a
reclaim. These costs are taken from the process's time, so it gets less done: that is its stall. The costs are
the reference machine's (design.md): 2 GiB out to zram in 1.9 s, faulted back one by one in 5.8 s, brought back
ahead in bulk at 1 GiB in 0.76 s.

A second memory node without processors is filled when the first one is full, and what lies there is read more slowly.

Left out, knowingly: the processor (everybody who wants to run runs), kernel memory, memory nodes with processors,
the background reclaim of kswapd, and that parts of a chunk may differ. A huge page saves no time here: only that
there is one is known.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from memsculpt.host.simulated.cgroups import PAGE_BYTES, CgroupTree, Node
from memsculpt.host.simulated.living import Costs, Process, Record
from memsculpt.host.simulated.pages import ABSENT, RESIDENT, SWAPPED, Chunks, Region
from memsculpt.host.simulated.reclaim import ReclaimRules, choose_victims
from memsculpt.host.simulated.workloads import Demand, Program

FIRST_PID = 1000
TICKS_PER_S = 100
SLOW_RESERVE_RATIO = 1 / 16  # of the slow node, as on Linux
BATCH_CHUNKS = 64  # room is made for so many at once, so that a large growth reclaims as it goes


class Machine:
    """The simulated kernel and what runs on it."""

    def __init__(
        self,
        *,
        seed: int,
        tree: CgroupTree,
        swap_bytes: int,
        slow_bytes: int,
        programs: Sequence[Program],
        chunk_bytes: int,
        start_s: float,
        costs: Costs,
        rules: ReclaimRules,
    ) -> None:
        self.tree, self.costs, self.rules = tree, costs, rules
        self.chunk_bytes, self.pages_per_chunk = chunk_bytes, chunk_bytes // PAGE_BYTES
        self.chunks_per_huge = REGION_BYTES // chunk_bytes  # below 1 there are no huge pages
        self.swap_total_chunks = swap_bytes // chunk_bytes
        self.slow_total_chunks = slow_bytes // chunk_bytes  # of the machine's memory, on a node without processors
        self.slow_chunks = 0  # that are in use there
        self.swap_is_full = False  # a fault: nothing more goes out
        self.now_s = start_s
        self.some_stall_s = self.full_stall_s = 0.0
        self.processes: dict[int, Process] = {}  # by pid, ascending: pids only grow here
        self.records = {program.name: Record() for program in programs}
        self.evictions_count = 0
        self._seed = seed
        self._rng = np.random.default_rng([seed, 1])
        self._next_pid = FIRST_PID
        self._due: list[tuple[float, Program]] = [(start_s + program.begins_at_s, program) for program in programs]
        self._files: dict[str, Region] = {}  # the page cache outlives whoever reads it
        self._stalls: list[tuple[Process, float]] = []  # of this step, for everybody who runs

    # ---- time

    def step(self, until_s: float) -> float:
        """Let everybody run until `until_s`; return the seconds in which somebody was stalled."""
        step_s = until_s - self.now_s
        self.begin_lives()
        self._stalls.clear()
        for process in list(self.processes.values()):
            if process.instance.pid in self.processes:  # not killed meanwhile for another's sake
                self._run(process, step_s)
        some_s = self._book_stalls()
        self.now_s = until_s
        for process in list(self.processes.values()):
            lifetime_s = process.program.lifetime_s
            if lifetime_s is not None and until_s >= process.began_at_s + lifetime_s:
                self.end(process)
        return some_s

    # ---- processes

    def begin_lives(self) -> None:
        """Start the programs that are due: new ones, and those that come back after they ended."""
        due = [(at_s, program) for at_s, program in self._due if at_s <= self.now_s]
        if not due:
            return
        self._due = [(at_s, program) for at_s, program in self._due if at_s > self.now_s]
        for _, program in due:
            record = self.records[program.name]
            record.lives_count += 1
            # Seeded by the name and the count of lives: nobody's chance depends on what others do.
            rng = np.random.default_rng([self._seed, crc32(program.name.encode()), record.lives_count])
            life = program.start(self.now_s, self.chunk_bytes, rng)
            node = self.tree.create(program.path, is_own=False)
            for above in node.lineage:
                above.process_count += 1
            file = None
            if life.file_chunks:
                file = self._files.setdefault(
                    program.name, Region(chunks=life.file_chunks, is_file=True, home=node.number)
                )
            pid = self._next_pid
            self._next_pid += 1
            self.processes[pid] = Process(
                instance=Instance(pid=pid, start_ticks=int(self.now_s * TICKS_PER_S)),
                program=program,
                life=life,
                node=node,
                began_at_s=self.now_s,
                memory=Region(chunks=0, is_file=False, home=node.number),
                file=file,
                record=record,
            )

    def find(self, instance: Instance) -> Process:
        """Return a living process; Vanished when it is gone, or its pid is another's by now."""
        process = self.processes.get(instance.pid)
        if process is None or process.instance != instance:
            raise Vanished(place=f"process {instance.pid}")
        return process

    def end(self, process: Process) -> None:
        """End a process: its private memory is freed, its page cache stays, and it may come back."""
        self.release(process.memory, np.flatnonzero(process.memory.state != ABSENT))
        for node in process.node.lineage:
            node.process_count -= 1
        del self.processes[process.instance.pid]
        if process.program.remakes_cgroup and process.node.process_count == 0 and not process.node.children:
            self.tree.forget(process.node)
        back_s = process.program.comes_back_after_s
        if back_s is not None:
            self._due.append((self.now_s + back_s, process.program))

    def move(self, process: Process, node: Node) -> None:
        """Put a process into another cgroup; what it has stays charged where it was first touched."""
        for old in process.node.lineage:
            old.process_count -= 1
        for new in node.lineage:
            new.process_count += 1
        process.node = node
        process.memory.adopt_absent(node.number)

    # ---- memory

    @property
    def swap_free_chunks(self) -> int:
        """Return what the swap device can still take."""
        return 0 if self.swap_is_full else self.swap_total_chunks - self.tree.root.swapped_chunks

    @property
    def slow_room_chunks(self) -> int:
        """Return what may still be moved to the slow node."""
        return max(0, self.slow_total_chunks - self.slow_chunks - int(SLOW_RESERVE_RATIO * self.slow_total_chunks))

    @property
    def fast_free_chunks(self) -> int:
        """Return what is free on the node with processors."""
        total = self.tree.hard_bytes(self.tree.root) // self.chunk_bytes - self.slow_total_chunks
        return total - (self.tree.root.charged_chunks - self.slow_chunks)

    def regions(self) -> list[Region]:
        """Return every region there is, in a fixed order."""
        return [process.memory for process in self.processes.values()] + list(self._files.values())

    def evict(self, region: Region, chunks: Chunks) -> None:
        """Send resident chunks out: anonymous ones to swap, page cache to nowhere."""
        region.split(chunks, self.chunks_per_huge)
        self._leave_slow(region, chunks)
        region.state[chunks] = ABSENT if region.is_file else SWAPPED
        region.left_order[chunks] = self.evictions_count + 1 + np.arange(len(chunks))
        self.evictions_count += len(chunks)
        region.resident_chunks -= len(chunks)
        if region.is_file:
            self._book(region, chunks, file=-1)
        else:
            region.swapped_chunks += len(chunks)
            self._book(region, chunks, anon=-1, swapped=1)

    def load(self, region: Region, chunks: Chunks, at_s: float) -> None:
        """Make chunks resident; who calls has made room."""
        from_swap = chunks[region.state[chunks] == SWAPPED]
        if self.slow_total_chunks:  # what does not fit on the near node comes to the other one
            beyond = chunks[max(0, self.fast_free_chunks) :]
            region.is_slow[beyond] = True
            self.slow_chunks += len(beyond)
        region.state[chunks] = RESIDENT
        region.touched_at_s[chunks] = at_s
        region.resident_chunks += len(chunks)
        if region.is_file:
            self._book(region, chunks, file=1)
            return
        region.swapped_chunks -= len(from_swap)
        self._book(region, chunks, anon=1)
        self._book(region, from_swap, swapped=-1)

    def release(self, region: Region, chunks: Chunks) -> None:
        """Forget chunks and their content."""
        region.split(chunks, self.chunks_per_huge)
        self._leave_slow(region, chunks)
        resident = chunks[region.state[chunks] == RESIDENT]
        swapped = chunks[region.state[chunks] == SWAPPED]
        region.state[chunks] = ABSENT
        region.resident_chunks -= len(resident)
        region.swapped_chunks -= len(swapped)
        self._book(region, resident, **({"file": -1} if region.is_file else {"anon": -1}))
        self._book(region, swapped, swapped=-1)

    def reclaim(self, node: Node, wanted: int, *, only_cache: bool = False) -> tuple[int, int]:
        """Take up to `wanted` chunks from a cgroup's subtree; return how many left, and how many were in use."""
        victims = choose_victims(
            self.regions(),
            wanted,
            swap_room=0 if only_cache else self.swap_free_chunks,
            now_s=self.now_s,
            numbers=self._reclaimable_numbers(node),
            rules=self.rules,
            rng=self._rng,
        )
        for region, chunks in victims.by_region:
            self.evict(region, chunks)
        return victims.count, victims.in_use_count

    def excess_chunks(self, node: Node, coming: int, kind: LimitKind) -> int:
        """Return by how many chunks a cgroup with `coming` more would be above its budget; 0 when it fits."""
        budget_bytes = self.tree.hard_bytes(node) if kind is LimitKind.HARD else self.tree.limit_bytes(node, kind)
        over_bytes = (node.charged_chunks + coming) * self.chunk_bytes - budget_bytes
        return max(0, -(-over_bytes // self.chunk_bytes))

    def make_room(self, node: Node, coming: int, step_s: float, *, may_kill: bool = True) -> bool:
        """Reclaim along the cgroup's ancestors until `coming` chunks fit everywhere; False when they do not.

        Kills the largest process below the limit that gives nothing, if `may_kill`.
        """
        fits = True
        for level in node.lineage:
            if self.tree.version == 2 and level is not self.tree.root:
                self.reclaim(level, self.excess_chunks(level, coming, LimitKind.LIMIT))
            excess = self.excess_chunks(level, coming, LimitKind.HARD)
            if excess == 0:
                continue
            level.limit_hits_count += 1
            got, in_use = self.reclaim(level, excess)
            is_stuck = got < excess or in_use * 2 > got
            level.stuck_s = level.stuck_s + step_s * coming / (coming + BATCH_CHUNKS) if is_stuck else 0.0
            gives_up = got < excess or level.stuck_s >= self.rules.give_up_after_s
            if gives_up and may_kill:
                level.stuck_s = 0.0
                self._kill_largest(level)
            fits = fits and self.excess_chunks(level, coming, LimitKind.HARD) == 0
        return fits

    # ---- inside

    def _run(self, process: Process, step_s: float) -> None:
        demand = process.life.demand(self.now_s, step_s)
        if demand is None:
            if process.life.is_dead:
                self.end(process)
            return
        memory = process.memory
        memory.widen(demand.chunks, process.node.number)
        if memory.present_chunks > demand.chunks:
            above = np.arange(demand.chunks, memory.chunks, dtype=np.intp)
            self.release(memory, above[memory.state[above] != ABSENT])
        missing = self._missing(memory, demand)
        if len(missing) == 0 and len(demand.file_touched) == 0:
            done_ratio = 1.0
        else:
            done_ratio = self._fault(process, demand, missing, step_s)
            if process.instance.pid not in self.processes:
                return
        touched = demand.touched
        if self.slow_chunks:
            slow_pages = int(memory.is_slow[touched].sum()) * self.pages_per_chunk
            done_ratio *= demand.run_s / (demand.run_s + slow_pages * self.costs.slow_page_s)
        memory.touched_at_s[touched[memory.state[touched] == RESIDENT]] = self.now_s + step_s
        self._account(process, demand, done_ratio)

    def _leave_slow(self, region: Region, chunks: Chunks) -> None:
        if self.slow_chunks:
            self.slow_chunks -= int(region.is_slow[chunks].sum())
            region.is_slow[chunks] = False

    def _missing(self, memory: Region, demand: Demand) -> Chunks:
        """Return what must be made resident: chunks never touched first, then those in swap."""
        new = memory.absent_below(demand.chunks) if memory.present_chunks < demand.chunks else demand.touched[:0]
        if memory.swapped_chunks == 0:
            return new
        swapped = demand.touched[memory.state[demand.touched] == SWAPPED]
        return np.concatenate([new, self._rng.permutation(swapped)])

    def _fault(self, process: Process, demand: Demand, missing: Chunks, step_s: float) -> float:
        """Bring in what the time suffices for; return the share of the demand that got done."""
        memory, file = process.memory, process.file
        unread = demand.file_touched
        if file is not None:
            file.touched_at_s[unread] = self.now_s + step_s
            unread = unread[file.state[unread] != RESIDENT]
        is_major = memory.state[missing] == SWAPPED
        reclaim_s = self.costs.reclaim_page_s * self._share_to_reclaim(process.node, len(missing) + len(unread))
        fault_s = np.where(is_major, self.costs.fault_in_page_s, self.costs.zero_fill_page_s) + reclaim_s
        read_s = (self.costs.read_page_s + reclaim_s) * self.pages_per_chunk * len(unread)
        wait_s = float(fault_s.sum()) * self.pages_per_chunk + read_s
        done_ratio = demand.run_s / (demand.run_s + wait_s)
        taken = max(1, round(done_ratio * len(missing))) if len(missing) else 0
        if not self._bring_in(process, memory, missing[:taken], step_s):
            return 0.0
        if file is not None and not self._bring_in(process, file, unread[: round(done_ratio * len(unread))], step_s):
            return 0.0
        majors = int(is_major[:taken].sum())
        # A read of the disk is a wait for I/O, not for memory; what a first touch costs is plain work.
        memory_wait_s = (fault_s - np.where(is_major, 0.0, self.costs.zero_fill_page_s)).sum() * self.pages_per_chunk
        self._stalls.append((process, done_ratio * float(memory_wait_s)))
        process.read_bytes += round(done_ratio * len(unread)) * self.chunk_bytes
        self._count_faults(process, minors=taken - majors, majors=majors)
        return done_ratio

    def _share_to_reclaim(self, node: Node, coming: int) -> float:
        """Return for which share of `coming` chunks another one must leave first."""
        most = max((self.excess_chunks(level, coming, LimitKind.HARD) for level in node.lineage), default=0)
        return min(1.0, most / coming) if coming else 0.0

    def _bring_in(self, process: Process, region: Region, chunks: Chunks, step_s: float) -> bool:
        """Load chunks in batches, making room for each; False when the process was killed for it."""
        for home in sorted(region.homes):
            mine = chunks if len(region.homes) == 1 else chunks[region.owner[chunks] == home]
            for first in range(0, len(mine), BATCH_CHUNKS):
                batch = mine[first : first + BATCH_CHUNKS]
                fits = self.make_room(self.tree.by_number[home], len(batch), step_s)
                if process.instance.pid not in self.processes:
                    return False
                if fits:
                    self.load(region, batch, self.now_s + step_s)
        return True

    def _count_faults(self, process: Process, *, minors: int, majors: int) -> None:
        minor_pages, major_pages = minors * self.pages_per_chunk, majors * self.pages_per_chunk
        process.minor_faults_count += minor_pages
        process.major_faults_count += major_pages
        process.refaults_count += major_pages
        process.record.major_faults_count += major_pages
        process.record.refaults_count += major_pages
        for node in process.node.lineage:
            node.minor_faults_count += minor_pages
            node.major_faults_count += major_pages
            node.refaults_count += major_pages

    def _account(self, process: Process, demand: Demand, done_ratio: float) -> None:
        cpu_s = demand.run_s * demand.cpu_ratio
        process.cpu_s += cpu_s
        for node in process.node.lineage:
            node.cpu_s += cpu_s
        process.record.work_done_s += done_ratio * demand.run_s
        finished = process.life.progress(done_ratio)
        if finished is not None:
            process.record.phases.append(finished)
        if not self._stalls or self._stalls[-1][0] is not process:
            self._stalls.append((process, 0.0))

    def _book_stalls(self) -> float:
        """Add this step's stalls: "some" is the longest below a cgroup, "full" the shortest of those who ran."""
        if not any(stall_s > 0.0 for _, stall_s in self._stalls):
            return 0.0
        below: dict[int, list[float]] = {}
        for process, stall_s in self._stalls:
            process.some_stall_s += stall_s
            process.record.stall_s += stall_s
            for node in process.node.lineage:
                below.setdefault(node.number, []).append(stall_s)
        for number, stalls_s in below.items():
            node = self.tree.by_number[number]
            node.some_stall_s += max(stalls_s)
            node.full_stall_s += min(stalls_s)
        self.some_stall_s, self.full_stall_s = self.tree.root.some_stall_s, self.tree.root.full_stall_s
        return max(stall_s for _, stall_s in self._stalls)

    def _kill_largest(self, level: Node) -> None:
        below = [process for process in self.processes.values() if level in process.node.lineage]
        if not below:
            return
        victim = max(below, key=lambda process: (process.memory.present_chunks, process.instance.pid))
        victim.record.oom_kills_count += 1
        for node in victim.node.lineage:
            node.oom_kills_count += 1
        self.end(victim)

    def _reclaimable_numbers(self, node: Node) -> frozenset[int]:
        """Return the cgroups at or below `node` that may be taken from: v2 spares those within memory.min."""
        numbers = {below.number for below in self.tree.subtree(node) if not self._is_protected(below, node)}
        return frozenset(n for n, here in enumerate(self.tree.by_number) if here.number in numbers)

    def _is_protected(self, below: Node, limit: Node) -> bool:
        if self.tree.version == 1 or below is limit:
            return False
        return 0 < below.charged_chunks * self.chunk_bytes <= self.tree.limit_bytes(below, LimitKind.GUARANTEE)

    def _book(self, region: Region, chunks: Chunks, *, anon: int = 0, file: int = 0, swapped: int = 0) -> None:
        if len(chunks) == 0:
            return
        if len(region.homes) == 1:
            counts = {next(iter(region.homes)): len(chunks)}
        else:
            numbers, lengths = np.unique(region.owner[chunks], return_counts=True)
            counts = dict(zip(numbers.tolist(), lengths.tolist(), strict=True))
        for number, count in counts.items():
            node = self.tree.by_number[number]
            node.book(anon=anon * count, file=file * count, swapped=swapped * count)
