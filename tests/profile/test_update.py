# SPDX-License-Identifier: Apache-2.0
"""Use told apart as needed, cold and reclaimable; rates; who is idle."""

import numpy as np
import pytest

from memsculpt.domain.observation import HostMemory, Observation, Processes, Workloads
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import CgroupPath, WorkloadId
from memsculpt.profile import ProfileState, update

MIB = 1 << 20
SETTINGS = Settings()


def observation(time_s, cpu_s, *, anon=400, swapped=0, cache=0, major=0, start=1, key=1, unevictable=0, oom=0):
    """One workload "job" of one process; sizes in MiB."""
    one = lambda value, kind=np.int64: np.array([value], dtype=kind)  # noqa: E731
    count = {"shmem_bytes": one(0), "kernel_bytes": one(0), "minor_faults_count": one(0), "refaults_count": one(0)}
    return Observation(
        time_s=time_s,
        memory=HostMemory(
            total_bytes=1 << 34,
            available_bytes=1 << 33,
            free_bytes=1 << 33,
            swap_total_bytes=1 << 30,
            swap_free_bytes=1 << 30,
            some_stall_s=0.0,
            full_stall_s=0.0,
        ),
        processes=Processes(
            pids=one(7),
            start_ticks=one(start),
            workload_index=one(0),
            anon_bytes=one(anon * MIB),
            file_bytes=one(0),
            shmem_bytes=one(0),
            swapped_bytes=one(swapped * MIB),
            has_memory_kinds=one(True, np.bool_),
            cpu_s=one(cpu_s, np.float64),
            minor_faults_count=one(0),
            major_faults_count=one(major),
        ),
        workloads=Workloads(
            ids=(WorkloadId("job"),),
            partitions=("p",),
            cgroups=(CgroupPath("job"),),
            instance_keys=one(key),
            resident_bytes=one((anon + cache) * MIB),
            anon_bytes=one(anon * MIB),
            file_bytes=one(cache * MIB),
            swapped_bytes=one(swapped * MIB),
            reclaimable_bytes=one(cache * MIB),
            unevictable_bytes=one(unevictable * MIB),
            major_faults_count=one(major),
            cpu_s=one(cpu_s, np.float64),
            read_bytes=one(0),
            written_bytes=one(0),
            some_stall_s=one(0.0, np.float64),
            full_stall_s=one(0.0, np.float64),
            oom_kills_count=one(oom),
            limit_hits_count=one(0),
            process_count=one(1),
            has_refaults=one(True, np.bool_),
            has_io=one(True, np.bool_),
            has_pressure=one(True, np.bool_),
            **count,
        ),
        cgroups=(),
    )


def follow(*observations):
    state, made = ProfileState(), []
    for each in observations:
        state, profiles = update(state, each, SETTINGS)
        made.append(profiles)
    return made


def test_what_has_not_run_is_cold():
    """Without processor time for a tick all its private memory is cold, and nothing is needed."""
    made = follow(observation(0, 5.0), observation(1, 5.5), observation(2, 5.5), observation(3, 5.5))
    assert [each.cold_bytes[0] // MIB for each in made] == [0, 0, 400, 400]
    assert [each.needed_bytes[0] // MIB for each in made] == [400, 400, 0, 0]
    assert made[3].idle_s[0] == pytest.approx(2.0)


def test_a_moment_of_housekeeping_is_no_phase():
    """Less than half a percent of the time touches a few pages at most."""
    made = follow(observation(0, 5.0), observation(1, 5.0), observation(2, 5.002), observation(3, 5.004))
    assert made[3].cold_bytes[0] == 400 * MIB


def test_another_process_with_the_same_pid_has_its_own_clock():
    """It has just begun, however idle the one before was."""
    made = follow(observation(0, 5.0), observation(3, 5.0), observation(4, 0.0, start=2))
    assert made[1].cold_bytes[0] > 0
    assert made[2].process_idle_s[0] == 0.0


def test_page_cache_is_no_need():
    """Clean cache is reclaimable, whoever runs."""
    made = follow(observation(0, 1.0, cache=300), observation(1, 2.0, cache=300))
    assert made[1].reclaimable_bytes[0] == 300 * MIB
    assert made[1].needed_bytes[0] == 400 * MIB


def test_locked_memory_is_never_cold():
    """It cannot leave."""
    made = follow(observation(0, 1.0, unevictable=150), observation(2, 1.0, unevictable=150))
    assert made[1].cold_bytes[0] == 250 * MIB


def test_who_wakes_needs_what_its_last_phase_did():
    """Also the part of it that is swapped."""
    made = follow(
        observation(0, 1.0),
        observation(1, 2.0),
        observation(2, 2.0),
        observation(3, 2.0, anon=100, swapped=300),
        observation(4, 2.5, anon=120, swapped=280),
    )
    assert made[3].needed_bytes[0] == 0
    assert made[4].needed_bytes[0] == 400 * MIB


def test_growth_is_what_it_allocates():
    """Pages that leave are no release, pages that come back no growth."""
    made = follow(
        observation(0, 1.0, anon=100),
        observation(1, 2.0, anon=150),
        observation(2, 3.0, anon=50, swapped=100),
        observation(3, 4.0, anon=150),
        observation(4, 5.0, anon=50),
    )
    assert [each.growth_bytes_per_s[0] / MIB for each in made] == [0, 50, 0, 0, 0]
    assert [each.release_bytes_per_s[0] / MIB for each in made] == [0, 0, 0, 0, 100]


def test_a_restart_is_seen_and_counters_begin_anew():
    """No rate is negative, and the new life begins as a start."""
    made = follow(
        observation(0, 50.0, major=1000), observation(1, 51.0, major=1100), observation(2, 0.5, major=3, key=2, start=9)
    )
    assert made[1].major_faults_per_s[0] == pytest.approx(100)
    assert made[2].was_restarted[0]
    assert made[2].is_starting[0]
    assert made[2].major_faults_per_s[0] == 0
    assert made[2].cpu_ratio[0] == 0


def test_a_start_ends_when_growth_does():
    """Five calm seconds are enough."""
    busy = [observation(second, second + 1.0) for second in range(8)]
    made = follow(*busy)
    assert made[2].is_starting[0]
    assert not made[7].is_starting[0]


def test_an_oom_kill_is_told_in_its_tick_only():
    """It is an event, not a state."""
    made = follow(observation(0, 1.0), observation(1, 2.0, oom=1), observation(2, 3.0, oom=1))
    assert [bool(each.was_oom_killed[0]) for each in made] == [False, True, False]


def test_the_same_history_gives_the_same_profiles():
    """Update is a function, and leaves its input alone."""
    history = [observation(second, second * 0.5, anon=100 + second) for second in range(6)]
    for first, second in zip(follow(*history), follow(*history), strict=True):
        for name in ("needed_bytes", "cold_bytes", "growth_bytes_per_s", "idle_s"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
