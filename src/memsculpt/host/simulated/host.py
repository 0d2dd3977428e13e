# SPDX-License-Identifier: Apache-2.0
"""`SimulatedHost`: the whole host protocol on a machine in memory, deterministic from a seed.

Its clock stands still while somebody thinks and moves in `wait_until` and in calls that take time (a page-out
of 512 MiB takes half a second, in which everybody else goes on running).
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence

from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.vm import GuestRam
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.errors import Refused, Transient, Unavailable, Vanished
from memsculpt.host.protocol import Capability, LimitValue, Moved
from memsculpt.host.simulated.cgroups import PAGE_BYTES, CgroupTree
from memsculpt.host.simulated.fault_watch import SimulatedFaultWatch
from memsculpt.host.simulated.faults import Fault, FaultSchedule
from memsculpt.host.simulated.hypervisor import SimulatedHypervisor
from memsculpt.host.simulated.living import Costs, Process, Record
from memsculpt.host.simulated.looking import SOURCES, SimulatedReader
from memsculpt.host.simulated.machine import Machine
from memsculpt.host.simulated.merger import SimulatedMerger
from memsculpt.host.simulated.observing import check_rules, observe_machine
from memsculpt.host.simulated.reclaim import ReclaimRules
from memsculpt.host.simulated.slow_node import NO_NODE, NODE_FIX, SimulatedSlowNode
from memsculpt.host.simulated.workloads import Program

GIB = 1 << 30
OWN_FOLDER = "memsculpt"  # only memsculpt makes cgroups below it
START_S = 1000.0  # the host's clock when it begins: like a real one it does not start at 0
PRESSURE_WINDOW_S, PRESSURE_STALL_S = 1.0, 0.15  # as a PSI trigger "some 150000 1000000"
RETRY_IN_S = 1.0
V2_FIX = "build it with cgroup_version=2"


class SimulatedHost(SimulatedSlowNode, SimulatedHypervisor, SimulatedMerger):
    """A host for tests, for learning, and for trying out: no privilege, no hardware, no waiting."""

    name = "simulated"

    def __init__(
        self,
        seed: int = 0,
        *,
        total_bytes: int = 8 * GIB,
        swap_bytes: int = 4 * GIB,
        slow_bytes: int = 0,
        workloads: Sequence[Program] = (),
        limits: Mapping[str, int] | None = None,
        faults: Sequence[Fault] = (),
        cgroup_version: int = 1,
        step_s: float = 0.25,
        chunk_bytes: int = 256 << 10,
        costs: Costs | None = None,
        rules: ReclaimRules | None = None,
    ) -> None:
        """Build a host on which `workloads` begin to run as its clock advances.

        `limits` names cgroups that exist from the start, with their hard limits in bytes. `slow_bytes` of the memory
        are on a node without processors. `chunk_bytes` (whole pages) is the granule of memory and `step_s` that of
        time: smaller is finer and slower.
        """
        if chunk_bytes % PAGE_BYTES or chunk_bytes <= 0 or step_s <= 0:
            raise ValueError(f"need whole pages a chunk and time that advances, got {chunk_bytes} and {step_s}")
        names = [program.name for program in workloads]
        if len(set(names)) != len(names):
            raise ValueError(f"every simulated program needs a name of its own, got {names}")
        tree = CgroupTree(version=cgroup_version, capacity_bytes=total_bytes)
        for program in workloads:
            tree.create(program.path, is_own=False)
        for path, size_bytes in (limits or {}).items():
            tree.create(CgroupPath(path), is_own=False)
            tree.write(CgroupPath(path), LimitKind.HARD, tree.text_of(size_bytes))
        self._machine = Machine(
            seed=seed,
            tree=tree,
            swap_bytes=swap_bytes,
            slow_bytes=slow_bytes,
            programs=workloads,
            chunk_bytes=chunk_bytes,
            start_s=START_S,
            costs=costs or Costs(),
            rules=rules or ReclaimRules(),
        )
        self._faults = FaultSchedule(faults)
        self._partitions: tuple[PartitionSettings, ...] = ()
        self._step_s = step_s
        self._stalls: deque[tuple[float, float]] = deque()  # (at_s, stalled_s) within the pressure window
        self._quiet_until_s = START_S
        self._woken = threading.Event()
        self._guests: dict[Instance, GuestRam] = {}
        self._last_readings = {}
        self._modules: dict[str, int] = {}  # of programs whose faults were watched
        self._machine.begin_lives()
        self.begin_merging(total_bytes // 2)

    # ---- Clock

    def now_s(self) -> float:
        """Return the host's own time in seconds."""
        return self._machine.now_s

    def wait_until(self, deadline_s: float) -> bool:
        """Let the host run until the deadline, or until its stalls cross the pressure threshold (True)."""
        while self._machine.now_s < deadline_s:
            if self._woken.is_set():
                self._woken.clear()
                return True
            self._advance(deadline_s)
            if self._feels_pressure():
                return True
        return False

    def pace(self, interval_s: float) -> None:
        """Do nothing: what is known of a VM here is as of now."""

    def wake(self) -> None:
        """End the wait that is under way, or else the next one."""
        self._woken.set()

    # ---- Observer

    def observe(self) -> Observation:
        """Read all workloads at once."""
        return observe_machine(self._machine, self._partitions, self.read_vms())

    def capabilities(self) -> Mapping[str, Capability]:
        """Tell what this host offers now; a denied paging shows."""
        denied = self._faults.is_paging_denied(self._at_s())
        why, fix = ("denied by an injected fault", "wait until the fault ends") if denied else ("simulated", "")
        has_swap = self._machine.swap_total_chunks > 0
        has_slow_node = self._machine.slow_total_chunks > 0
        is_v2 = self._machine.tree.version == 2
        offered = {
            "page_out": (not denied, why, fix),
            "page_in": (not denied, why, fix),
            "collapse": (not denied, why, fix),
            "cgroup_limits": (True, f"simulated cgroup v{self._machine.tree.version}", ""),
            "cgroup_v2_memory": (is_v2, "simulated" if is_v2 else "simulated cgroup v1", "" if is_v2 else V2_FIX),
            "memory_reclaim": (True, "simulated", ""),
            "psi": (True, "simulated", ""),
            "slow_node": (has_slow_node, "simulated" if has_slow_node else NO_NODE, "" if has_slow_node else NODE_FIX),
            "swap": (has_swap, "simulated" if has_swap else "no swap", "" if has_swap else "build it with swap_bytes"),
        }
        return {
            name: Capability(name=name, available=available, reason=reason, fix=mend)
            for name, (available, reason, mend) in offered.items()
        }

    # ---- Looker

    def open_pages(self, process: Instance, below: str | None = None) -> SimulatedReader:
        """Open a process; its chunks tell when they were touched."""
        offered = SOURCES if below is None else SOURCES[SOURCES.index(below) + 1 :]
        if not offered:
            raise Unavailable(place="sources of touched pages", problem="there is no other", fix="see `faults`")

        def reach() -> Process:
            if self._faults.is_looking_denied(offered[0], self._at_s()):
                raise Unavailable(
                    place=f"process {process.pid}", problem="may not be looked at (simulated)", fix="wait for its end"
                )
            return self._machine.find(process)

        reach()
        return SimulatedReader(reach, self._machine.chunk_bytes, lambda: self._machine.now_s, offered[0])

    def page_source(self) -> str:
        """Return the name of the best source."""
        return SOURCES[0]

    def open_faults(self) -> SimulatedFaultWatch:
        """Begin to watch how chunks come."""
        return SimulatedFaultWatch(self._machine, self._modules)

    def touch_cost_s(self) -> float:
        """Return nothing: a look costs no simulated program anything."""
        return 0.0

    # ---- Pager

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        """Send up to `size_bytes` of the process's resident chunks to swap, lowest address first.

        Raises Vanished, Unavailable (denied by a fault), Transient (swap is full).
        """
        machine, found = self._machine, self._reach(process)
        if machine.swap_free_chunks == 0:
            raise Transient(place=f"process {process.pid}", problem="swap is full", retry_in_s=RETRY_IN_S)
        wanted = min(size_bytes // machine.chunk_bytes, machine.swap_free_chunks)
        leaving = found.memory.resident()[:wanted]
        machine.evict(found.memory, leaving)
        return self._moved(size_bytes, len(leaving), machine.costs.reclaim_page_s)

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        """Bring up to `size_bytes` back and map them, what left last first; raises as `page_out`.

        Charged like the process's own faults: under a full limit somebody else's memory leaves for it. It stops
        before anybody would have to be killed.
        """
        machine, found = self._machine, self._reach(process)
        coming = found.memory.last_left_first()[: size_bytes // machine.chunk_bytes]
        came = 0
        for chunk in range(0, len(coming), 64):
            batch = coming[chunk : chunk + 64]
            home = machine.tree.by_number[int(found.memory.owner[batch[0]])]
            if not machine.make_room(home, len(batch), 0.0, may_kill=False):
                break
            machine.load(found.memory, batch, machine.now_s)
            came += len(batch)
        return self._moved(size_bytes, came, machine.costs.page_in_page_s)

    # ---- Limiter

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget, as the kernel's file prints it."""
        return self._machine.tree.read(cgroup, kind)

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        """Write one budget in bytes and return what the kernel holds now."""
        return self.restore_limit(cgroup, kind, self._machine.tree.text_of(size_bytes))

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """Write one budget's very text; Transient (EBUSY) when v1 cannot shrink the cgroup that far."""
        machine, tree = self._machine, self._machine.tree
        node = tree.find(cgroup)
        if self._faults.is_busy(cgroup, self._at_s()):
            raise Transient(place=f"cgroup {cgroup!r}", problem="cannot shrink (EBUSY)", retry_in_s=RETRY_IN_S)
        before = tree.read(cgroup, kind)
        # A text that reads as "no limit" is written as the file wants it, not as it prints it.
        meant_bytes = tree.value_of(text).size_bytes if text.strip() not in {"-1", "max"} else None
        tree.write(cgroup, kind, text if meant_bytes is None else tree.text_of(meant_bytes))
        if kind is LimitKind.GUARANTEE:
            return tree.read(cgroup, kind)
        excess = machine.excess_chunks(node, 0, kind)
        left, _ = machine.reclaim(node, excess)
        if left < excess and tree.version == 1:
            tree.write(cgroup, kind, tree.text_of(before.size_bytes))
            self._spend(left, machine.costs.reclaim_page_s)
            raise Transient(place=f"cgroup {cgroup!r}", problem="cannot shrink (EBUSY)", retry_in_s=RETRY_IN_S)
        held = tree.read(cgroup, kind)
        self._spend(left, machine.costs.reclaim_page_s)
        return held

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Have the kernel take `size_bytes` from the cgroup, in its own order."""
        machine = self._machine
        node, wanted = machine.tree.find(cgroup), size_bytes // machine.chunk_bytes
        left, _ = machine.reclaim(node, wanted, only_cache=only_cache)
        return self._moved(size_bytes, left, machine.costs.reclaim_page_s)

    # ---- Grouper

    def create_cgroup(self, cgroup: CgroupPath) -> None:
        """Make a cgroup of memsculpt's own; Refused when its name does not say so."""
        if not any(part.startswith("memsculpt") for part in cgroup.split("/")):
            raise Refused(place=f"cgroup {cgroup!r}", problem="its name does not carry memsculpt", fix="name it so")
        self._machine.tree.create(cgroup, is_own=True)

    def remove_cgroup(self, cgroup: CgroupPath) -> None:
        """Remove an empty cgroup of our own; Refused, Transient or Vanished when that cannot be."""
        self._machine.tree.remove(cgroup)

    def sweep(self) -> tuple[CgroupPath, ...]:
        """Remove what is empty below our folder, innermost first."""
        tree, removed = self._machine.tree, list[CgroupPath]()
        ours = [path for path in tree.nodes if path == OWN_FOLDER or path.startswith(f"{OWN_FOLDER}/")]
        for path in sorted(ours, key=lambda path: path.count("/"), reverse=True):
            if not tree.nodes[path].process_count and not tree.nodes[path].children:
                tree.forget(tree.nodes[path])
                removed.append(path)
        return tuple(removed)

    def cgroup_of(self, process: Instance) -> CgroupPath:
        """Return where a process is accounted now."""
        return self._machine.find(process).node.path

    def move_process(self, process: Instance, cgroup: CgroupPath) -> int:
        """Move a process; what it has stays charged where it was, and this many bytes are returned."""
        machine = self._machine
        node = machine.tree.find(cgroup)
        found = self._find(process)
        if found.node is node:
            return 0
        machine.move(found, node)
        memory = found.memory
        elsewhere = sum(int((memory.state[memory.owner == home] == 1).sum()) for home in memory.homes - {node.number})
        return elsewhere * machine.chunk_bytes

    # ---- Host

    def watch(self, partitions: Sequence[PartitionSettings]) -> None:
        """Take the rules; ConfigError when one names an absent cgroup or two claim one workload."""
        check_rules(self._machine, partitions)
        self._partitions = tuple(partitions)

    def close(self) -> None:
        """Release nothing: a simulated host holds no descriptors."""

    # ---- For tests and benches: what only a simulation can know

    def record(self, program: str) -> Record:
        """Return what a program has lived through: work, stalls, faults, kills, phases."""
        return self._machine.records[program]

    def instances(self, program: str) -> tuple[Instance, ...]:
        """Return the living processes of a program."""
        living = self._machine.processes.values()
        return tuple(process.instance for process in living if process.program.name == program)

    def kill(self, process: Instance) -> None:
        """End a process from outside, as `kill -9` does."""
        self._machine.end(self._machine.find(process))

    def fingerprint(self) -> tuple[object, ...]:
        """Return all of the host's state that an action could change, as comparable values."""
        machine = self._machine
        cgroups = tuple((path, *node.texts.items(), node.is_own) for path, node in sorted(machine.tree.nodes.items()))
        processes = tuple(
            (
                process.instance,
                process.node.path,
                process.memory.state.tobytes(),
                process.memory.is_slow.tobytes(),
                process.cpu_s,
            )
            for process in machine.processes.values()
        )
        return (machine.now_s, cgroups, processes, machine.evictions_count)

    def budgets(self) -> dict[str, dict[str, str]]:
        """Return every cgroup's budgets: path to file name to the file's text."""
        return {path: dict(node.texts) for path, node in sorted(self._machine.tree.nodes.items())}

    # ---- inside

    def _at_s(self) -> float:
        return self._machine.now_s - START_S

    def _advance(self, deadline_s: float) -> None:
        """Run one step, or up to the deadline if that is nearer."""
        machine = self._machine
        machine.swap_is_full = self._faults.is_swap_full(self._at_s())
        for foreign in self._faults.take_foreign_limits(self._at_s()):
            path = CgroupPath(foreign.cgroup)
            if path in machine.tree.nodes:
                machine.tree.write(path, foreign.kind, machine.tree.text_of(foreign.size_bytes))
        boundary_s = (machine.now_s // self._step_s + 1) * self._step_s
        stalled_s = machine.step(min(boundary_s, deadline_s))
        self._stalls.append((machine.now_s, stalled_s))

    def _feels_pressure(self) -> bool:
        now_s = self._machine.now_s
        while self._stalls and self._stalls[0][0] <= now_s - PRESSURE_WINDOW_S:
            self._stalls.popleft()
        if now_s < self._quiet_until_s or sum(stalled_s for _, stalled_s in self._stalls) < PRESSURE_STALL_S:
            return False
        self._quiet_until_s = now_s + PRESSURE_WINDOW_S
        return True

    def _find(self, process: Instance) -> Process:
        """Return a living process that is about to be acted on, unless it is scheduled to vanish just then."""
        found = self._machine.find(process)
        if self._faults.take_vanishing(found.program.name, self._at_s()):
            self._machine.end(found)
            raise Vanished(place=f"process {process.pid}")
        return found

    def _reach(self, process: Instance) -> Process:
        if self._faults.is_paging_denied(self._at_s()):
            raise Unavailable(
                place=f"process {process.pid}", problem="paging is denied (EPERM)", fix="run with CAP_SYS_NICE"
            )
        return self._find(process)

    def _moved(self, asked_bytes: int, chunks: int, page_s: float) -> Moved:
        duration_s = self._spend(chunks, page_s)
        moved_bytes = chunks * self._machine.chunk_bytes
        return Moved(asked_bytes=asked_bytes, moved_bytes=moved_bytes, duration_s=duration_s, cpu_s=duration_s)

    def _spend(self, chunks: int, page_s: float) -> float:
        """Let the host run for as long as moving `chunks` takes; return that."""
        duration_s = chunks * self._machine.pages_per_chunk * page_s
        deadline_s = self._machine.now_s + duration_s
        while self._machine.now_s < deadline_s:
            self._advance(deadline_s)
        return duration_s
