# SPDX-License-Identifier: Apache-2.0
"""What is known of every workload now, derived from observations: the forecaster's and planner's view."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memsculpt.domain.arrays import Bool, Float64, Int64, freeze_columns
from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.workload import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profiles:
    """Columns aligned with the rows of `Observation.workloads`, shape (n_workloads,).

    Use is told apart: `needed + cold + reclaimable <= resident + kernel + what is being swapped in`.
    `needed` is what the workload would miss within moments; `cold` is anonymous or shared memory that
    nobody can have touched lately; `reclaimable` is clean page cache. Of a VM whose guest tells, `needed` is the
    guest's need and QEMU's own: it may be above or below what is resident.
    """

    time_s: float
    elapsed_s: float  # since the tick before; 0 on the first
    ids: tuple[WorkloadId, ...]
    needed_bytes: Int64
    cold_bytes: Int64
    reclaimable_bytes: Int64
    working_set_bytes: Int64  # the most it needed in its present or last active phase
    growth_bytes_per_s: Float64  # of all it has, in memory and swapped: what it allocates; 0 when falling
    release_bytes_per_s: Float64  # of the same, what it gives back; 0 when growing
    minor_faults_per_s: Float64
    major_faults_per_s: Float64
    refaults_per_s: Float64
    cpu_ratio: Float64  # processor time per wall time; above 1 on several cores
    io_bytes_per_s: Float64
    some_stall_ratio: Float64  # share of wall time with somebody stalled on memory
    full_stall_ratio: Float64
    idle_s: Float64  # how long no process of it has run; 0 while active
    age_s: Float64  # since this instance was first seen
    is_starting: Bool  # in the start-up part of its life, whose peak says little of the rest
    was_restarted: Bool  # a new instance since the tick before
    was_oom_killed: Bool  # since the tick before
    hit_limit: Bool  # since the tick before
    process_idle_s: Float64  # shape (n_processes,), aligned with Observation.processes
    programs: tuple[str, ...] = ()  # as in Observation.workloads
    guests: Mapping[WorkloadId, GuestDemand] = field(default_factory=dict[WorkloadId, GuestDemand])  # of VMs

    def __post_init__(self) -> None:
        special = ("time_s", "elapsed_s", "ids", "process_idle_s", "programs", "guests")
        freeze_columns(self, (name for name in self.__slots__ if name not in special), (len(self.ids),))
        freeze_columns(self, ("process_idle_s",), self.process_idle_s.shape)
