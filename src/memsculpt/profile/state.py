# SPDX-License-Identifier: Apache-2.0
"""What is remembered of workloads and processes from one tick to the next. Replaced, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.observation import Workloads
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import WorkloadId
from memsculpt.profile.guests import KnownGuest

COUNTERS = (
    "minor_faults",
    "major_faults",
    "refaults",
    "cpu_s",
    "io_bytes",
    "some_stall_s",
    "full_stall_s",
    "oom_kills",
    "limit_hits",
    "footprint_bytes",
)


def counters_of(seen: Workloads) -> Float64:
    """Return what is compared with the tick before, shape (n_workloads, len(COUNTERS)).

    The footprint leaves out page cache that leaves freely: reading a file is not allocating.
    """
    file = np.maximum(seen.file_bytes - seen.reclaimable_bytes, 0)
    footprint = seen.anon_bytes + seen.shmem_bytes + seen.kernel_bytes + file + seen.swapped_bytes
    return np.stack(
        [
            seen.minor_faults_count.astype(np.float64),
            seen.major_faults_count.astype(np.float64),
            seen.refaults_count.astype(np.float64),
            seen.cpu_s,
            (seen.read_bytes + seen.written_bytes).astype(np.float64),
            seen.some_stall_s,
            seen.full_stall_s,
            seen.oom_kills_count.astype(np.float64),
            seen.limit_hits_count.astype(np.float64),
            footprint.astype(np.float64),
        ],
        axis=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Remembered:
    """Columns by workload, for the workloads of the tick before."""

    ids: tuple[WorkloadId, ...] = ()
    instance_keys: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    counters: Float64 = field(default_factory=lambda: np.empty((0, len(COUNTERS))))
    first_s: Float64 = field(default_factory=lambda: np.empty(0))
    was_active: Bool = field(default_factory=lambda: np.empty(0, np.bool_))
    has_settled: Bool = field(default_factory=lambda: np.empty(0, np.bool_))
    calm_s: Float64 = field(default_factory=lambda: np.empty(0))  # for how long it has hardly grown
    phase_peak_bytes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    working_set_bytes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProcessTimes:
    """When each process last ran, and with how much memory; rows by (pid, start), sorted."""

    keys: Int64 = field(default_factory=lambda: np.empty((0, 2), np.int64))
    cpu_s: Float64 = field(default_factory=lambda: np.empty(0))
    major_faults_count: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    ran_at_s: Float64 = field(default_factory=lambda: np.empty(0))
    # Private memory when it last ran. A process that wakes wants as much again, in memory or still in swap.
    ran_with_bytes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProfileState:
    """The profile room's memory. `ProfileState()` is empty."""

    time_s: float | None = None
    workloads: Remembered = field(default_factory=Remembered)
    processes: ProcessTimes = field(default_factory=ProcessTimes)
    guests: Mapping[VmId, KnownGuest] = field(default_factory=dict[VmId, KnownGuest])
    overheads: Mapping[VmId, int] = field(default_factory=dict[VmId, int])  # QEMU's own memory, where it was measured


def rows_before(ids: tuple[WorkloadId, ...], before: tuple[WorkloadId, ...]) -> Int64:
    """Return for each of `ids` its row in `before`, -1 for none."""
    if ids == before:
        return np.arange(len(ids), dtype=np.int64)
    row_of = {each: row for row, each in enumerate(before)}
    return np.array([row_of.get(each, -1) for each in ids], dtype=np.int64)
