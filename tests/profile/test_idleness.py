# SPDX-License-Identifier: Apache-2.0
"""Who has not run, and for how long."""

import numpy as np
import pytest

from memsculpt.domain.settings import MIB
from tests.profile.world import Job, Process, paused, running, see, watch


def test_a_process_seen_for_the_first_time_counts_as_just_run():
    """Nothing is known of a newcomer's past, so nothing of it may be called cold."""
    first, second = watch(see(100.0), see(101.0, paused(cpu_s=50.0)))

    assert first.process_idle_s.shape == (0,)
    assert second.process_idle_s.tolist() == [0.0]
    assert second.cold_bytes.tolist() == [0]


def test_idle_time_counts_from_the_last_look_at_which_the_process_had_run():
    """Idle time is the time since the last tick with processor time, not the number of ticks."""
    seen = watch(see(10.0, paused()), see(11.0, paused()), see(13.5, paused()), see(14.0, paused(cpu_s=0.4)))

    assert [each.idle_s[0] for each in seen] == [0.0, 1.0, 3.5, 0.0]


@pytest.mark.parametrize(("share", "is_idle"), [(0.0, True), (0.0049, True), (0.0051, False), (0.5, False)])
def test_a_moment_of_processor_time_does_not_end_a_pause(share, is_idle):
    """Timers and signals wake a process for less than 0.5 % of the time; that touches next to nothing."""
    *_, last = watch(*(see(t, running(at_s=t, share=share)) for t in (0.0, 2.0, 4.0)))

    assert last.idle_s.tolist() == [4.0 if is_idle else 0.0]


def test_the_moment_is_measured_against_the_time_since_the_last_look():
    """30 ms are nothing in 10 s and a run in 1 s."""
    *_, slow = watch(see(0.0, paused()), see(10.0, paused(cpu_s=0.03)))
    *_, fast = watch(see(0.0, paused()), see(1.0, paused(cpu_s=0.03)))

    assert slow.idle_s[0] == 10.0
    assert fast.idle_s[0] == 0.0


@pytest.mark.parametrize(("faults", "is_idle"), [(64, True), (65, False), (5000, False)])
def test_a_process_that_waits_for_its_pages_is_not_idle(faults, is_idle):
    """On a slow swap device it uses next to no processor time; what it faults in tells that it runs."""
    before, after = (Job(processes=(Process(pid=7, anon=50.0, major=count),)) for count in (100, 100 + faults))

    *_, last = watch(see(0.0, before), see(1.0, after))

    assert last.idle_s.tolist() == [1.0 if is_idle else 0.0]
    assert last.cold_bytes.tolist() == [50 * MIB if is_idle else 0]


def test_a_few_faults_of_an_early_tick_are_no_run():
    """The bound is per second, and never less than that of one second: a timer's few faults come all at once."""
    before, after = (Job(processes=(Process(pid=7, anon=50.0, major=count),)) for count in (0, 40))

    *_, last = watch(see(0.0, before), see(0.25, after))

    assert last.idle_s.tolist() == [0.25]


def test_a_reused_pid_is_another_process():
    """A pid with another start time has no past, even if its processor time is the same."""
    before = Job(processes=(Process(pid=7, start=1, anon=50.0),))
    after = Job(processes=(Process(pid=7, start=2, anon=50.0),))

    *_, last = watch(see(0.0, before), see(5.0, before), see(10.0, after))

    assert last.process_idle_s.tolist() == [0.0]
    assert last.cold_bytes.tolist() == [0]


def test_a_workload_is_as_idle_as_its_busiest_process():
    """One running process is enough for the workload to be active, and the others stay idle."""
    looks = [
        see(
            t, Job(processes=(Process(pid=1, anon=10.0), Process(pid=2, cpu_s=t, anon=20.0), Process(pid=3, anon=30.0)))
        )
        for t in (0.0, 2.0)
    ]

    *_, last = watch(*looks)

    assert last.process_idle_s.tolist() == [2.0, 0.0, 2.0]
    assert last.idle_s.tolist() == [0.0]


def test_a_workload_without_processes_counts_as_active():
    """Where nobody can be asked nothing is called idle."""
    *_, last = watch(*(see(t, Job(anon=10.0, shmem=5.0)) for t in (0.0, 5.0)))

    assert last.idle_s.tolist() == [0.0]
    assert last.cold_bytes.tolist() == [0]


def test_processes_are_recognised_among_others_that_come_and_go():
    """Idle times stay with their process when smaller and larger pids appear and vanish."""
    keep = Process(pid=50, anon=1.0)
    looks = [
        see(0.0, Job(processes=(Process(pid=10), keep))),
        see(2.0, Job(processes=(keep, Process(pid=60)))),
        see(4.0, Job(processes=(Process(pid=5), Process(pid=20), keep, Process(pid=60)))),
        see(6.0, Job(processes=(keep,))),
    ]

    *_, third, last = watch(*looks)

    assert third.process_idle_s.tolist() == [0.0, 0.0, 4.0, 2.0]
    assert last.process_idle_s.tolist() == [6.0]


def test_a_process_of_no_workload_has_an_idle_time_and_touches_no_workload():
    """Processes outside every workload are followed too, and counted to nobody."""
    loose = (Process(pid=1, anon=99.0),)
    *_, last = watch(*(see(t, running(at_s=t), loose=loose) for t in (0.0, 3.0)))

    assert last.process_idle_s.tolist() == [3.0, 0.0]
    assert last.cold_bytes.tolist() == [0]


def test_processor_time_that_falls_is_no_run():
    """A reading that goes back (a kernel's rounding) neither wakes the process nor gives a negative time."""
    *_, last = watch(see(0.0, paused(cpu_s=5.0)), see(2.0, paused(cpu_s=4.99)))

    assert np.all(last.process_idle_s == 2.0)
