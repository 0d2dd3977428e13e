# SPDX-License-Identifier: Apache-2.0
"""Observations built from a few words: jobs with processes, sizes in MiB, counters as they stand."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.observation import HostMemory, Observation, Processes, Workloads
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, Settings
from memsculpt.domain.workload import CgroupPath, WorkloadId
from memsculpt.profile import ProfileState, update

SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process; `anon` is its private memory, `swapped` what of it is in swap, `major` counts faults."""

    pid: int
    cpu_s: float = 0.0
    start: int = 1
    anon: float = 0.0
    swapped: float = 0.0
    major: int = 0
    has_kinds: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    """One workload; `anon` None: the sum of its processes'."""

    name: str = "job"
    processes: tuple[Process, ...] = ()
    instance: int = 1
    anon: float | None = None
    file: float = 0.0
    shmem: float = 0.0
    swapped: float = 0.0
    reclaimable: float = 0.0
    unevictable: float = 0.0
    kernel: float = 0.0
    minor: int = 0
    major: int = 0
    refaults: int = 0
    cpu_s: float = 0.0
    read: int = 0
    written: int = 0
    some_s: float = 0.0
    full_s: float = 0.0
    kills: int = 0
    hits: int = 0

    @property
    def held_anon(self) -> float:
        return sum(each.anon for each in self.processes) if self.anon is None else self.anon


def see(time_s: float, *jobs: Job, loose: tuple[Process, ...] = (), partition: str | None = None) -> Observation:
    """What the host would report of `jobs`, all of them in `partition`, and of `loose` processes of no workload."""
    jobs = tuple(sorted(jobs, key=lambda each: each.name))
    owned = [(process, row) for row, job in enumerate(jobs) for process in job.processes]
    rows = sorted([*owned, *((process, -1) for process in loose)], key=lambda each: each[0].pid)

    def mib(value):
        return np.array([round(value(job) * MIB) for job in jobs], np.int64)

    def count(value):
        return np.array([value(job) for job in jobs], np.int64)

    def seconds(value):
        return np.array([value(job) for job in jobs], np.float64)

    def of(value, kind=np.int64):
        return np.array([value(process) for process, _ in rows], kind)

    return Observation(
        time_s=time_s,
        memory=HostMemory(
            total_bytes=8 << 30,
            available_bytes=4 << 30,
            free_bytes=2 << 30,
            swap_total_bytes=4 << 30,
            swap_free_bytes=4 << 30,
            some_stall_s=0.0,
            full_stall_s=0.0,
        ),
        processes=Processes(
            pids=of(lambda each: each.pid),
            start_ticks=of(lambda each: each.start),
            workload_index=np.array([row for _, row in rows], np.int64),
            anon_bytes=of(lambda each: round(each.anon * MIB)),
            file_bytes=of(lambda _: 0),
            shmem_bytes=of(lambda _: 0),
            swapped_bytes=of(lambda each: round(each.swapped * MIB)),
            has_memory_kinds=of(lambda each: each.has_kinds, np.bool_),
            cpu_s=of(lambda each: each.cpu_s, np.float64),
            minor_faults_count=of(lambda _: 0),
            major_faults_count=of(lambda each: each.major),
            cgroups=(CgroupPath(""),) * len(rows),
        ),
        workloads=Workloads(
            ids=tuple(WorkloadId(job.name) for job in jobs),
            partitions=(partition,) * len(jobs),
            cgroups=(None,) * len(jobs),
            instance_keys=count(lambda job: job.instance),
            resident_bytes=mib(lambda job: job.held_anon + job.file + job.shmem),
            anon_bytes=mib(lambda job: job.held_anon),
            file_bytes=mib(lambda job: job.file),
            shmem_bytes=mib(lambda job: job.shmem),
            swapped_bytes=mib(lambda job: job.swapped),
            reclaimable_bytes=mib(lambda job: job.reclaimable),
            unevictable_bytes=mib(lambda job: job.unevictable),
            kernel_bytes=mib(lambda job: job.kernel),
            minor_faults_count=count(lambda job: job.minor),
            major_faults_count=count(lambda job: job.major),
            refaults_count=count(lambda job: job.refaults),
            cpu_s=seconds(lambda job: job.cpu_s),
            read_bytes=count(lambda job: job.read),
            written_bytes=count(lambda job: job.written),
            some_stall_s=seconds(lambda job: job.some_s),
            full_stall_s=seconds(lambda job: job.full_s),
            oom_kills_count=count(lambda job: job.kills),
            limit_hits_count=count(lambda job: job.hits),
            process_count=count(lambda job: len(job.processes)),
            has_refaults=np.ones(len(jobs), np.bool_),
            has_io=np.ones(len(jobs), np.bool_),
            has_pressure=np.ones(len(jobs), np.bool_),
        ),
        cgroups=(),
    )


def watch(*observations: Observation) -> list[Profiles]:
    """The profiles of each observation, one after the other from an empty profile."""
    state, seen = ProfileState(), []
    for observation in observations:
        state, profiles = update(state, observation, SETTINGS)
        seen.append(profiles)
    return seen


def running(name: str = "job", *, at_s: float, share: float = 1.0, pid: int = 7, anon: float = 100.0, **more) -> Job:
    """A job of one process that has used `share` of a processor since second 0."""
    return Job(name=name, processes=(Process(pid=pid, cpu_s=share * at_s, anon=anon),), **more)


def paused(name: str = "job", *, pid: int = 7, anon: float = 100.0, cpu_s: float = 0.0, **more) -> Job:
    """A job of one process that does not run."""
    return Job(name=name, processes=(Process(pid=pid, cpu_s=cpu_s, anon=anon),), **more)
