# SPDX-License-Identifier: Apache-2.0
"""Who lives on the simulated machine, what they have lived through, and what moving a page takes them."""

from dataclasses import dataclass, field

from memsculpt.domain.workload import Instance
from memsculpt.host.simulated.cgroups import Node
from memsculpt.host.simulated.pages import Region
from memsculpt.host.simulated.workloads import Life, Phase, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What moving one page takes, in seconds."""

    zero_fill_page_s: float = 0.5e-6
    fault_in_page_s: float = 11e-6  # a major fault from zram
    reclaim_page_s: float = 3.6e-6  # compressing it, in the reclaim or in a page-out
    page_in_page_s: float = 2.9e-6  # in bulk, ahead of need
    collapse_page_s: float = 3.4e-6  # into a huge page, 1.8 ms for 2 MiB
    read_page_s: float = 8e-6  # of a file, from disk
    # Guesses: the reference machine has one memory node.
    migrate_page_s: float = 2e-6  # to another memory node
    slow_page_s: float = 1e-6  # what reading a page takes longer on a slow node


@dataclass(slots=True, kw_only=True)
class Record:
    """What a program has lived through since the host began, over all its lives."""

    work_done_s: float = 0.0  # time run without stalls
    stall_s: float = 0.0
    major_faults_count: int = 0
    refaults_count: int = 0
    oom_kills_count: int = 0
    lives_count: int = 0
    phases: list[Phase] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """One living process."""

    instance: Instance
    program: Program
    life: Life
    node: Node  # the cgroup it lives in; older chunks may still be charged elsewhere
    began_at_s: float
    memory: Region
    file: Region | None
    record: Record
    cpu_s: float = 0.0
    minor_faults_count: int = 0
    major_faults_count: int = 0
    refaults_count: int = 0
    read_bytes: int = 0
    some_stall_s: float = 0.0
    oom_killed: bool = False
