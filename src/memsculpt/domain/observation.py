# SPDX-License-Identifier: Apache-2.0
"""What one look at the host shows: raw readings, as columns. Nothing derived lives here.

Counters (`..._count`, `cpu_s`, `..._stall_s`, `read_bytes`, `written_bytes`) are cumulative since the
workload's instance began and never fall within one instance; rates are the profile's business.
"""

from dataclasses import dataclass, field

from memsculpt.domain.arrays import Bool, Float64, Int64, freeze_columns
from memsculpt.domain.vm import VmReading
from memsculpt.domain.workload import CgroupPath, WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The machine as a whole."""

    total_bytes: int
    available_bytes: int  # MemAvailable: free plus what can be reclaimed without swapping
    free_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    some_stall_s: float | None  # PSI memory "some" total since boot; None without PSI
    full_stall_s: float | None
    page_bytes: int = 4096
    # Where there is a slow node, a memory node without processors; all 0 where there is none. Totals count it, too.
    slow_room_bytes: int = 0  # how much may still be moved there
    fast_total_bytes: int = 0  # of the nodes with processors
    fast_spare_bytes: int = 0  # free on these, or page cache that was not used of late


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Processes:
    """Columns of processes, shape (n_processes,), ordered by pid.

    A column that could not be read for a process (privilege) holds 0 and its mask is False.
    """

    pids: Int64
    start_ticks: Int64
    workload_index: Int64  # row in Workloads
    anon_bytes: Int64
    file_bytes: Int64
    shmem_bytes: Int64
    swapped_bytes: Int64
    has_memory_kinds: Bool  # False: only resident is known and stands in anon_bytes
    cpu_s: Float64
    minor_faults_count: Int64
    major_faults_count: Int64
    cgroups: tuple[CgroupPath, ...]  # the memory cgroup that each lives in; "" is the root

    def __post_init__(self) -> None:
        freeze_columns(self, (name for name in self.__slots__ if name != "cgroups"), self.pids.shape)
        if len(self.cgroups) != self.pids.size:
            raise ValueError("Processes: pids and cgroups differ in length")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workloads:
    """Columns of workloads, shape (n_workloads,), ordered by identity."""

    ids: tuple[WorkloadId, ...]
    partitions: tuple[str | None, ...]  # name of the configured partition it belongs to
    cgroups: tuple[CgroupPath | None, ...]  # the cgroup that *is* this workload; None: a set of processes
    instance_keys: Int64  # changes when the workload was restarted (cgroup inode, or first start time)
    resident_bytes: Int64
    anon_bytes: Int64
    file_bytes: Int64  # page cache and mapped files, without shmem
    shmem_bytes: Int64
    swapped_bytes: Int64
    reclaimable_bytes: Int64  # clean page cache that nobody maps: leaves without I/O, is not need
    unevictable_bytes: Int64  # mlock and the like: cannot leave at all
    kernel_bytes: Int64  # slab, page tables, stacks charged to the cgroup; 0 where unknown
    minor_faults_count: Int64
    major_faults_count: Int64
    refaults_count: Int64
    cpu_s: Float64
    read_bytes: Int64
    written_bytes: Int64
    some_stall_s: Float64  # PSI memory of the workload's cgroup
    full_stall_s: Float64
    oom_kills_count: Int64
    limit_hits_count: Int64
    process_count: Int64
    has_refaults: Bool
    has_io: Bool
    has_pressure: Bool
    programs: tuple[str, ...] = ()  # executable of each one's largest process, "" where not known; () for all unknown

    def __post_init__(self) -> None:
        rows = (len(self.ids),)
        tuples = ("ids", "partitions", "cgroups", "programs")
        freeze_columns(self, (name for name in self.__slots__ if name not in tuples), rows)
        if len(self.partitions) != rows[0] or len(self.cgroups) != rows[0]:
            raise ValueError("Workloads: ids, partitions and cgroups differ in length")
        if len(self.programs) not in {0, rows[0]}:
            raise ValueError("Workloads: ids and programs differ in length")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupState:
    """What a partition's cgroup holds now: the budget side, as the kernel accounts it."""

    cgroup: CgroupPath
    partition: str
    used_bytes: int  # charged memory (usage_in_bytes, memory.current)
    swapped_bytes: int
    limit_bytes: int  # the limit memsculpt steers (v1 limit_in_bytes, v2 memory.high)
    hard_limit_bytes: int  # v1: the same; v2 memory.max
    guarantee_bytes: int  # v1 soft_limit_in_bytes, v2 memory.min
    is_own: bool  # made by memsculpt, so it may be removed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """One snapshot of all workloads, read in bulk."""

    time_s: float  # the host's monotonic clock
    memory: HostMemory
    processes: Processes
    workloads: Workloads
    cgroups: tuple[CgroupState, ...]
    vanished_count: int = 0  # rows dropped because they went away while being read
    unreadable_count: int = 0  # readings denied by privilege
    notes: tuple[str, ...] = field(default=())  # what was degraded in this reading, for people
    vms: tuple[VmReading, ...] = ()  # by workload; read beside the tick, so some are older than `time_s`
