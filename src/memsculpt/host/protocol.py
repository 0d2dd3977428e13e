# SPDX-License-Identifier: Apache-2.0
"""The host, real or simulated, as a handful of small protocols.

A host says what it can do (`capabilities`); the planner is told, it does not find out by failing.
Every method may raise Vanished; the rest is said at each one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.growth import FaultRate, FaultSamples, Module
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import Cleared, Extents, Grain, Touches
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.pool import Tier
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.sharing import Merging, Offerer, PageContents
from memsculpt.domain.vm import BalloonSet, GuestRam, VmId
from memsculpt.domain.workload import CgroupPath, Instance

Ranges: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that this machine can or cannot do; `doctor` prints it, tests skip by it."""

    name: str  # "page_out", "cgroup_limits", "psi", ...
    available: bool
    reason: str  # why not, or what serves it ("cgroup v1", "process_madvise")
    fix: str = ""  # what would make it available, "" when it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a page-out or page-in really did, measured from the page tables before and after."""

    asked_bytes: int
    moved_bytes: int
    duration_s: float
    cpu_s: float  # processor time that the call cost the agent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sculpted:
    """What was really done with each range that was asked for, measured from the page tables before and after."""

    asked_bytes: int
    moved_bytes: int
    done_bytes: Int64  # by range, shape (n_ranges,)
    duration_s: float
    cpu_s: float
    longest_call_s: float = 0.0  # so long the process may have waited to map or unmap memory
    grown_bytes: int = 0  # memory that was not there before and had to be filled with zeros
    problems: Mapping[str, int] = field(default_factory=dict[str, int])  # bytes that were left as they are, by cause


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """What lies behind ranges of addresses, by range, shape (n_ranges,)."""

    resident_bytes: Int64
    swapped_bytes: Int64
    huge_bytes: Int64  # mapped as huge pages
    longest_run_bytes: Int64  # the longest stretch whose frames follow one another; 0 where frames may not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitValue:
    """A budget as the kernel holds it: its own text, byte for byte, and what that means."""

    text: str
    size_bytes: int  # UNLIMITED_BYTES for "max", -1's LONG_MAX and the like


class Clock(Protocol):
    """Time as the host has it; the simulated host's jumps."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        ...

    def wait_until(self, deadline_s: float) -> bool:
        """Return at the deadline (False), or before it when memory pressure asks for an early tick (True)."""
        ...


class Observer(Protocol):
    """Reads, and changes nothing."""

    def observe(self) -> Observation:
        """Read all workloads at once; what vanishes meanwhile is dropped and counted."""
        ...

    def capabilities(self) -> Mapping[str, Capability]:
        """Tell what this host offers, by name."""
        ...


class Pager(Protocol):
    """Moves pages of other processes between memory and the second tier; contents never change."""

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        """Send up to `size_bytes` of private resident pages out.

        Raises Vanished, Unavailable (no call, no privilege), Transient (swap full, EAGAIN).
        Source: process_madvise(2), MADV_PAGEOUT.
        """
        ...

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        """Bring up to `size_bytes` of swapped pages back and map them.

        The pages that `page_out` sent last come first. Raises as `page_out`.
        Source: process_vm_readv(2), one byte a page.
        """
        ...


class Sculptor(Protocol):
    """Rearranges chosen ranges of another process's private memory; contents never change.

    Ranges are address ranges (start, end), ascending and disjoint. What of them is not mapped, shared, a file's,
    locked or not writable is left alone and told by cause; the RAM of a guest that is known is moved also where it is
    shared memory. Every method raises Vanished when the process has ended, also in the middle, and Unavailable where
    the kernel denies it.
    """

    def know_guest(self, ram: GuestRam) -> None:
        """Let a guest's RAM be moved, and looked at by `open_pages`, also where it is shared memory.

        Holds until `forget_guest`, for readers that are open already as well; a later one of the process replaces it.
        """
        ...

    def forget_guest(self, process: Instance) -> None:
        """Leave the process's shared memory alone again; one that is not known is no error."""
        ...

    def collapse(self, process: Instance, ranges: Ranges, holes_most_bytes: int = 0) -> Sculpted:
        """Gather the regions of 2 MiB that lie wholly in the ranges in huge pages.

        A region that lacks more than `holes_most_bytes` is left alone: what was never touched would be filled.
        Source: process_madvise(2), MADV_COLLAPSE.
        """
        ...

    def split(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Make the huge pages of the ranges small pages again; what the collapse filled stays.

        Source: process_madvise(2), MADV_COLD of one page of each.
        """
        ...

    def page_out_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Send the ranges' resident pages out. Raises Transient too, when the swap is full or there is none."""
        ...

    def bring_in_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Bring the ranges' swapped pages back and map them."""
        ...

    def frames(self, process: Instance, ranges: Ranges) -> Frames:
        """Return what lies behind the ranges; changes nothing."""
        ...

    def swap_tier(self) -> Tier:
        """Return where pages go that leave now: COMPRESSED where every swap device is memory, else DISK."""
        ...

    def packed_ratio(self, process: Instance, addresses: Int64) -> Float64:
        """Return to which share of its size the page at each address is compressed, about, shape (n,).

        NaN where the page is not in memory; one that is swapped is not brought back for it.
        """
        ...


class SlowNode(Protocol):
    """Moves chosen ranges of another process's private memory to a slow memory node and back; contents never change.

    A slow node has memory and no processors (CXL). What lies there stays mapped, and is used in place. Ranges, what is
    left alone and what is raised are as in `Sculptor`; Unavailable also where this machine has no such node.
    """

    def slow_room_bytes(self) -> int:
        """Return how much may still go there, beyond a reserve of the node's own; 0 where there is none."""
        ...

    def to_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move the ranges' resident pages there, as far as there is room.

        Huge pages move whole or not at all, pages that others map as well not at all.
        Source: move_pages(2), MPOL_MF_MOVE.
        """
        ...

    def from_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move what of the ranges lies there to the nearest node with processors that has room."""
        ...

    def slow_runs(self, process: Instance, ranges: Ranges) -> Int64:
        """Return which pages of the ranges lie there now, as ascending runs, shape (n, 2); changes nothing."""
        ...


class PageReader(Protocol):
    """Tells which pages of one process were touched. Opened on the process, whatever becomes of its pid.

    Ranges are address ranges (start, end); None is the whole address space. Every method raises Vanished when the
    process has ended, and Unavailable where the kernel denies it.
    """

    source: str  # as `doctor` calls it
    grain: Grain

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Take note of what has been touched so far, for the next `read`: others clear accessed bits, too.

        DAMON and the kernel's reclaim do, and without a flush. The more often is looked, the less they hide.
        """
        ...

    def survey(self) -> Extents:
        """Return where the process has memory; changes nothing, and costs less than a read of everything."""
        ...

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched since the last clear (before the first: since the pages came); changes nothing."""
        ...

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Begin a new interval for the ranges; with a source that cannot clear parts, for everything."""
        ...

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read and clear [start, end), in small parts where the source can, so that few accesses are slower at once.

        `pause` is called between parts, with the share of the way that is done. A process of which no part can be
        cleared alone is cleared whole.
        """
        ...

    def close(self) -> None:
        """Release every descriptor."""
        ...


class PageSource(Protocol):
    """One way to learn of touched pages; holds what it needs in the kernel until it is closed."""

    name: str

    def open(self, process: Instance) -> PageReader:
        """Open a process. Raises Vanished, Refused (a process without memory of its own), Unavailable."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Looker(Protocol):
    """Opens processes for a look at their pages, and watches how these come."""

    def open_pages(self, process: Instance, below: str | None = None) -> PageReader:
        """Open a process on the best source there is, or on the best of those after the source `below`.

        Raises as PageSource.open; Unavailable where there is no source. The caller closes it before the host.
        """
        ...

    def page_source(self) -> str:
        """Return the name of the source that `open_pages` tries first; "" before it has found one."""
        ...

    def open_faults(self) -> "FaultWatch":
        """Begin to watch page faults; for one at a time. Raises Unavailable. The caller closes it before the host."""
        ...

    def touch_cost_s(self) -> float:
        """Return what a program pays for the first touch of a page after a clear, in seconds, as measured here."""
        ...


class FaultWatch(Protocol):
    """Samples the page faults of many processes, with their stacks. Not for two threads at once, but for `wake`."""

    record_cost_s: float  # what a recorded fault costs the program, as measured here
    pass_cost_s: float  # what every other fault of the machine costs

    def watch(self, rates: Mapping[Instance, FaultRate]) -> None:
        """Watch these and nobody else. Who has ended is passed over."""
        ...

    def drain(self) -> FaultSamples:
        """Return what came since the last call. What it costs grows with that."""
        ...

    def count_held(self, process: Instance, pages: Int64, sizes: Int64) -> Int64:
        """Return how many of `sizes` pages from each of `pages` on are in memory or swapped, shape (n,).

        A size of 512 means the huge page around it. All 0 where the process has ended.
        """
        ...

    def modules(self) -> tuple[Module, ...]:
        """Return the modules that places in code are in; only ever longer."""
        ...

    def wait(self) -> bool:
        """Sleep until much has come (True), or `wake` is called (False): for a thread that drains in between."""
        ...

    def wake(self) -> None:
        """End a wait, now and for ever; safe from any thread."""
        ...

    def close(self) -> None:
        """Watch nobody, and release everything."""
        ...


class Limiter(Protocol):
    """Cgroup budgets, v1 or v2, through systemd where it owns the cgroup."""

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget."""
        ...

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        """Write one budget and return what the kernel holds now.

        Raises Transient when the kernel cannot shrink that far now (EBUSY).
        """
        ...

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """Put back the very text that `read_limit` gave; works in a fresh process."""
        ...

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Have the kernel take `size_bytes` from the cgroup: memory.reclaim (v2) or a brief limit step (v1).

        `only_cache` spares anonymous memory, where the kernel can be told so: v1, and v2 since memory.reclaim
        takes a swappiness. Older ones are asked without, and choose by their own order.
        """
        ...


class Grouper(Protocol):
    """Cgroups of memsculpt's own, and who lives in them."""

    def create_cgroup(self, cgroup: CgroupPath) -> None:
        """Make a cgroup; its name carries `memsculpt`. Existing: no error."""
        ...

    def remove_cgroup(self, cgroup: CgroupPath) -> None:
        """Remove an empty cgroup of our own; moves nothing."""
        ...

    def sweep(self) -> tuple[CgroupPath, ...]:
        """Remove what is left besides values: empty cgroups in the folder that only memsculpt makes cgroups in, and it.

        Returns those cgroups. Where systemd keeps files of run-time changes, ours go that say what holds without them.
        """
        ...

    def cgroup_of(self, process: Instance) -> CgroupPath:
        """Return where a process is accounted now."""
        ...

    def move_process(self, process: Instance, cgroup: CgroupPath) -> int:
        """Move a process; return the bytes that stay charged to where it came from."""
        ...


class Hypervisor(Protocol):
    """Virtual machines, by their monitors; what these tell comes with `observe`.

    Nothing here waits on a monitor longer than its time-out, and no VM's silence delays another.
    Every method raises Vanished where there is no such VM any more, Unavailable where its monitor cannot be asked,
    and Transient where it did not answer in time.
    """

    def guest_ram(self, vm: VmId) -> GuestRam:
        """Return where the guest's memory lies. Asked once and kept while the process lives, but for hot-plug."""
        ...

    def read_balloon(self, vm: VmId) -> int:
        """Return what the balloon leaves the guest now, in bytes; works in a fresh process, too.

        Raises Refused where it has none. Source: QMP `query-balloon`.
        """
        ...

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        """Ask the balloon to leave the guest `size_bytes`. Raises Refused where it has none, or is not running.

        Source: QMP `balloon`.
        """
        ...

    def is_offered(self, vm: VmId) -> bool:
        """Tell whether the guest's RAM is offered to KSM now. Source: QMP `qom-get`, `merge` of its memory backend."""
        ...

    def offer(self, vm: VmId, *, to_ksm: bool) -> bool:
        """Offer the guest's RAM to KSM or take the offer back, which takes apart what is merged; return what is now.

        Raises Refused where QEMU cannot change it (a backend without the property, shared memory).
        Source: QMP `qom-set`; what was offered by `mem-merge=on` besides RAM (firmware, video) stays offered.
        """
        ...


class Merger(Protocol):
    """The kernel's merging of identical pages (KSM), and what pages hold. One switch for the whole machine.

    Raises Unavailable where the kernel has no KSM, does not tell who offers memory, or denies it.
    """

    def merging(self) -> Merging:
        """Return what it does now."""
        ...

    def offerers(self) -> tuple[Offerer, ...]:
        """Return every process of the machine whose memory would be merged while it runs, or is.

        One that offers memory only after this is not scanned before everybody else's pages were: the kernel puts it
        behind its own place in the list (mm/ksm.c, __ksm_enter). Source: /proc/PID/ksm_stat.
        """
        ...

    def mergeable_runs(self, process: Instance, ranges: Int64) -> Int64:
        """Return which pages of `ranges` could be merged, as runs, shape (n, 2): private, anonymous, in memory."""
        ...

    def zero_pages(self, process: Instance, ranges: Int64) -> int:
        """Return how many pages of `ranges` the kernel's own page of zeros stands for, which takes no memory.

        Huge pages that KSM splits give up their pages of zeros to it (Linux 6.12), beside what is counted as merged.
        Raises Vanished.
        """
        ...

    def page_contents(self, process: Instance, wanted: Int64) -> PageContents:
        """Return what pages hold, of the runs `wanted`; what is not in memory is left out and not brought in.

        Raises Vanished. Source: process_vm_readv(2).
        """
        ...

    def has_ksm(self, name: str) -> bool:
        """Tell whether this kernel has a setting of KSM."""
        ...

    def read_ksm(self, name: str) -> str:
        """Return a setting as the kernel prints it. Raises Refused for one that is not memsculpt's to change."""
        ...

    def write_ksm(self, name: str, text: str) -> str:
        """Write a setting and return what the kernel holds now. Raises as `read_ksm`, and Transient."""
        ...


class Host(Clock, Observer, Looker, Pager, Sculptor, SlowNode, Limiter, Grouper, Hypervisor, Merger, Protocol):
    """All of them: what the agent runs on."""

    name: str  # "linux", "simulated"

    def watch(self, partitions: Sequence[PartitionSettings]) -> None:
        """Take the rules that assign workloads to partitions.

        Raises ConfigError when a rule names an absent cgroup, or two rules claim one workload.
        """
        ...

    def pace(self, interval_s: float) -> None:
        """Ask what is asked beside the ticks, the monitors of VMs, so often from now on."""
        ...

    def wake(self) -> None:
        """Make a `wait_until` that is under way return now (True); safe from any thread."""
        ...

    def close(self) -> None:
        """Release every descriptor; undo nothing (that is the journal's business)."""
        ...
