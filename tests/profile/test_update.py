# SPDX-License-Identifier: Apache-2.0
"""Use told apart, rates, restarts and starts."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB
from memsculpt.profile import ProfileState, update
from tests.profile.world import SETTINGS, Job, Process, paused, running, see, watch

# --- needed, cold, reclaimable ----------------------------------------------------------------------------------------


def test_page_cache_that_leaves_freely_is_no_need():
    """Clean unmapped page cache is reclaimable and not needed; the mapped part of the files is needed."""
    *_, last = watch(*(see(t, running(at_s=t, anon=100, file=300, reclaimable=250)) for t in (0.0, 1.0)))

    assert last.needed_bytes.tolist() == [150 * MIB]
    assert last.reclaimable_bytes.tolist() == [250 * MIB]
    assert last.cold_bytes.tolist() == [0]


def test_an_idle_jobs_anonymous_memory_is_cold_and_its_kernel_memory_is_not():
    """What nobody can have touched is cold; what the kernel holds for the job is still needed."""
    *_, last = watch(*(see(t, paused(anon=450, kernel=3)) for t in (0.0, 1.0)))

    assert last.cold_bytes.tolist() == [450 * MIB]
    assert last.needed_bytes.tolist() == [3 * MIB]


def test_only_the_idle_processes_memory_is_cold():
    """In a workload with one running process the others' private memory is cold all the same."""
    looks = [see(t, Job(processes=(Process(pid=1, cpu_s=t, anon=10), Process(pid=2, anon=30)))) for t in (0.0, 1.0)]

    *_, last = watch(*looks)

    assert last.cold_bytes.tolist() == [30 * MIB]
    assert last.needed_bytes.tolist() == [10 * MIB]


def test_a_pause_shorter_than_idle_after_leaves_nothing_cold():
    """Nothing is cold before `idle_after_s` (0.9 s) without processor time, and all of it from then on."""
    before, at = (watch(see(0.0, paused()), see(t, paused()))[-1] for t in (0.85, 0.9))

    assert before.cold_bytes.tolist() == [0]
    assert at.cold_bytes.tolist() == [100 * MIB]


def test_locked_memory_is_never_cold():
    """What cannot leave (mlock) is needed, however long its owner has slept."""
    *_, some = watch(*(see(t, paused(anon=100, unevictable=40)) for t in (0.0, 5.0)))
    *_, everything = watch(*(see(t, paused(anon=100, unevictable=100)) for t in (0.0, 5.0)))

    assert (some.cold_bytes[0], some.needed_bytes[0]) == (60 * MIB, 40 * MIB)
    assert (everything.cold_bytes[0], everything.needed_bytes[0]) == (0, 100 * MIB)


def test_shared_memory_is_cold_only_where_nobody_runs():
    """One running process may touch all that is shared."""
    sleepers = (Process(pid=1, anon=5), Process(pid=2, anon=5))
    one_runs = [see(t, Job(processes=(sleepers[0], Process(pid=2, cpu_s=t, anon=5)), shmem=80)) for t in (0.0, 2.0)]
    none_runs = [see(t, Job(processes=sleepers, shmem=80)) for t in (0.0, 2.0)]

    assert watch(*one_runs)[-1].cold_bytes.tolist() == [5 * MIB]
    assert watch(*none_runs)[-1].cold_bytes.tolist() == [90 * MIB]


def test_a_process_whose_memory_cannot_be_told_apart_gives_nothing_cold():
    """Where only resident memory is known it may be shared, so it is not called cold."""
    job = Job(processes=(Process(pid=1, anon=50, has_kinds=False), Process(pid=2, anon=20)))

    *_, last = watch(see(0.0, job), see(2.0, job))

    assert last.cold_bytes.tolist() == [20 * MIB]


def test_cold_is_never_more_than_the_cgroup_holds():
    """Processes' own figures may count pages charged elsewhere; the workload's account is the bound."""
    job = Job(processes=(Process(pid=1, anon=500),), anon=200)

    *_, last = watch(see(0.0, job), see(2.0, job))

    assert last.cold_bytes.tolist() == [200 * MIB]


# --- a workload that wakes --------------------------------------------------------------------------------------------


def test_a_woken_workload_needs_what_its_last_phase_needed():
    """Most of its memory is swapped when it wakes; it needs the working set of its last phase, not what is left."""
    looks = [see(float(t), running(at_s=min(t, 2), anon=450)) for t in range(5)]
    looks.append(see(5.0, running(at_s=2, anon=50, swapped=400)))
    looks.append(see(6.0, running(at_s=3, anon=60, swapped=390)))

    *_, asleep, awake = watch(*looks)

    assert asleep.needed_bytes.tolist() == [0]
    assert awake.needed_bytes.tolist() == [450 * MIB]
    assert awake.working_set_bytes.tolist() == [450 * MIB]


def test_a_woken_workload_does_not_need_more_than_it_has():
    """What it gave back in its pause is not asked for again."""
    looks = [see(float(t), running(at_s=min(t, 2), anon=450)) for t in range(5)]
    looks.append(see(6.0, running(at_s=3, anon=60, swapped=40)))

    assert watch(*looks)[-1].needed_bytes.tolist() == [100 * MIB]


def beside_a_busy_one(*sleeper: Process) -> list[int]:
    """What a workload needs, in MiB, in which a process of 50 MiB runs all the time beside the one given."""
    looks = []
    for t, each in enumerate(sleeper):
        job = Job(processes=(Process(pid=1, cpu_s=float(t), anon=50), each), swapped=each.swapped)
        looks.append(see(float(t), job))
    return [int(each.needed_bytes[0]) // MIB for each in watch(*looks)]


def test_a_process_that_wakes_beside_a_busy_one_needs_what_it_had_when_it_ran_last():
    """Its pages went to swap while it slept; they are needed in the tick in which it wakes, not as they trickle in."""
    ran, sleeps, out = Process(pid=2, cpu_s=1.0, anon=400), Process(pid=2, cpu_s=2.0, anon=400), 380.0
    gone = Process(pid=2, cpu_s=2.0, anon=20, swapped=out)
    woken = Process(pid=2, cpu_s=2.5, anon=30, swapped=out - 10)

    assert beside_a_busy_one(ran, sleeps, sleeps, gone, gone, woken) == [450, 450, 50, 50, 50, 450]


def test_a_process_that_wakes_does_not_need_swapped_pages_that_it_did_not_have_in_memory_when_it_ran_last():
    """What was in swap all through its last run (start-up code, a leak) is not asked for."""
    runs, woken = (Process(pid=2, cpu_s=cpu_s, anon=100, swapped=900) for cpu_s in (1.0, 3.0))
    sleeps = Process(pid=2, cpu_s=1.0, anon=100, swapped=900)
    out = Process(pid=2, cpu_s=1.0, anon=10, swapped=990)

    assert beside_a_busy_one(runs, sleeps, out, woken)[-1] == 150
    back = Process(pid=2, cpu_s=3.0, anon=20, swapped=980)
    assert beside_a_busy_one(runs, sleeps, out, back)[-1] == 150


def test_what_a_running_workload_pulls_back_from_swap_is_needed():
    """Major faults say how fast it comes back: three seconds of it are needed, at most what is in swap."""
    looks = [
        see(0.0, running(at_s=0, anon=100, swapped=400)),
        see(1.0, running(at_s=1, anon=100, swapped=400, major=2560)),
    ]
    few = watch(*looks)[-1]
    looks[-1] = see(1.0, running(at_s=1, anon=100, swapped=400, major=256_000))
    many = watch(*looks)[-1]

    assert few.needed_bytes.tolist() == [130 * MIB]
    assert many.needed_bytes.tolist() == [500 * MIB]


def test_the_working_set_is_the_last_whole_phases():
    """A smaller phase replaces a larger one once it is over, not before."""
    looks = [see(float(t), running(at_s=min(t, 2), anon=450)) for t in range(5)]
    looks += [see(5.0, running(at_s=3, anon=200)), see(6.0, running(at_s=4, anon=200))]
    looks += [see(7.0, running(at_s=4, anon=200))]

    during, after = watch(*looks)[-2:]

    assert during.working_set_bytes.tolist() == [450 * MIB]
    assert after.working_set_bytes.tolist() == [200 * MIB]


# --- rates ------------------------------------------------------------------------------------------------------------

RATES = [
    field.name for field in dataclasses.fields(Profiles) if field.name.endswith(("_per_s", "_stall_ratio", "cpu_ratio"))
]


def busy(t: float, **more) -> Job:
    return Job(
        **{
            "minor": int(100 * t),
            "major": int(10 * t),
            "refaults": int(4 * t),
            "cpu_s": 0.5 * t,
            "read": int(3000 * t),
            "written": int(1000 * t),
            "some_s": 0.2 * t,
            "full_s": 0.1 * t,
            "anon": 100 + 2 * t,
        }
        | more
    )


def test_rates_are_zero_on_the_first_tick_and_for_a_newcomer():
    """A counter that has only one reading has no rate, however large it is."""
    first, second = watch(see(50.0, busy(50.0, name="old")), see(51.0, busy(51.0, name="old"), busy(80.0, name="new")))

    assert first.elapsed_s == 0.0
    assert all(getattr(first, name).tolist() == [0.0] for name in RATES)
    assert all(getattr(second, name)[second.ids.index("new")] == 0.0 for name in RATES)


@pytest.mark.parametrize("elapsed_s", [0.25, 1.0, 8.0])
def test_rates_are_per_second_whatever_the_tick(elapsed_s):
    """Counters' differences are divided by the time between the looks."""
    *_, last = watch(see(40.0, busy(40.0)), see(40.0 + elapsed_s, busy(40.0 + elapsed_s)))

    found = {name: pytest.approx(getattr(last, name)[0]) for name in RATES}
    assert found == {
        "growth_bytes_per_s": 2.0 * MIB,
        "release_bytes_per_s": 0.0,
        "minor_faults_per_s": 100.0,
        "major_faults_per_s": pytest.approx(10.0, abs=1 / elapsed_s),
        "refaults_per_s": 4.0,
        "cpu_ratio": 0.5,
        "io_bytes_per_s": 4000.0,
        "some_stall_ratio": 0.2,
        "full_stall_ratio": 0.1,
    }


def test_a_restart_is_told_and_never_gives_a_negative_rate():
    """A new instance under the same identity begins its counters, its age and its start-up anew."""
    looks = [see(float(t), busy(float(t))) for t in range(9)]
    settled, restarted, next_one = watch(*looks, see(9.0, busy(0.0, instance=2)), see(10.0, busy(1.0, instance=2)))[-3:]

    assert settled.was_restarted.tolist() == [False]
    assert restarted.was_restarted.tolist() == [True]
    assert next_one.was_restarted.tolist() == [False]
    assert all(getattr(restarted, name).tolist() == [0.0] for name in RATES)
    assert next_one.minor_faults_per_s.tolist() == [100.0]
    assert (restarted.age_s[0], next_one.age_s[0]) == (0.0, 1.0)
    assert restarted.is_starting.tolist() == [True]


def test_a_first_appearance_is_no_restart():
    """Only an identity that was there in another instance was restarted."""
    seen = watch(see(0.0), see(1.0, busy(1.0)), see(2.0), see(3.0, busy(3.0, instance=2)))

    assert [each.was_restarted.tolist() for each in seen] == [[], [False], [], [False]]


def test_kills_and_limit_hits_are_told_in_the_tick_in_which_they_are_counted():
    """The flags say what happened since the tick before, not that it ever did."""
    seen = watch(
        see(0.0, busy(0, kills=3, hits=9)), see(1.0, busy(1, kills=4, hits=9)), see(2.0, busy(2, kills=4, hits=10))
    )

    assert [each.was_oom_killed[0] for each in seen] == [False, True, False]
    assert [each.hit_limit[0] for each in seen] == [False, False, True]


def test_growth_is_of_all_that_a_workload_has():
    """Page-out is no release and page-in no growth; allocating and giving back are, also of swapped pages."""
    job = Job(anon=400, swapped=0)
    seen = watch(
        see(0.0, job),
        see(1.0, dataclasses.replace(job, anon=100, swapped=300)),
        see(2.0, dataclasses.replace(job, anon=300, swapped=100)),
        see(3.0, dataclasses.replace(job, anon=350, swapped=100)),
        see(4.0, dataclasses.replace(job, anon=350, swapped=20)),
    )

    assert [each.growth_bytes_per_s[0] / MIB for each in seen] == [0, 0, 0, 50, 0]
    assert [each.release_bytes_per_s[0] / MIB for each in seen] == [0, 0, 0, 0, 80]


def test_reading_files_is_no_growth():
    """Page cache that leaves freely is neither allocated nor released, however fast it comes and goes."""
    seen = watch(
        *(see(float(t), Job(anon=100, file=size, reclaimable=size)) for t, size in enumerate((0, 500, 900, 3)))
    )

    assert [each.growth_bytes_per_s[0] for each in seen] == [0.0] * 4
    assert [each.release_bytes_per_s[0] for each in seen] == [0.0] * 4


def test_a_start_that_reads_files_all_the_time_is_over_all_the_same():
    """A server that settles and then reads file after file does not look as if it were starting."""
    found = watch(*(see(float(t), running(at_s=t, anon=100, file=50 * t, reclaimable=50 * t)) for t in range(8)))

    assert found[-1].is_starting.tolist() == [False]


# --- starts -----------------------------------------------------------------------------------------------------------


def starting(*jobs: tuple[float, Job]) -> list[bool]:
    return [bool(each.is_starting[0]) for each in watch(*(see(t, job) for t, job in jobs))]


def test_a_start_is_over_after_five_seconds_of_calm():
    """A workload that has hardly grown (1 % a second) for five seconds has started."""
    sizes = [10, 50, 200, 400, 401, 402, 403, 404, 405, 405]

    found = starting(*((float(t), running(at_s=t, anon=size)) for t, size in enumerate(sizes)))

    assert found == [True] * 8 + [False] * 2


def test_a_start_is_over_when_the_first_phase_that_did_some_work_ends():
    """A pause after five seconds of life ends the start, an earlier one does not."""
    late = starting(*((float(t), running(at_s=min(t, 5), anon=10 * min(t + 1, 6))) for t in range(7)))
    early = starting(*((float(t), running(at_s=min(t, 1), anon=100 * min(t + 1, 2))) for t in range(4)))

    assert late == [True] * 6 + [False]
    assert early == [True] * 4


def test_a_start_takes_two_minutes_at_most():
    """What still grows after 120 s grows for another reason."""
    found = starting(*((float(t), running(at_s=t, anon=10 * 1.3 ** (t / 10))) for t in range(0, 141, 10)))

    assert found == [True] * 12 + [False] * 3


def test_a_start_never_comes_back():
    """Growth later in life is no start."""
    calm = [(float(t), running(at_s=t, anon=100)) for t in range(8)]

    found = starting(*calm, (8.0, running(at_s=8, anon=300)), (9.0, running(at_s=9, anon=600)))

    assert found[-4:] == [False] * 4


# --- coming and going -------------------------------------------------------------------------------------------------


def test_an_empty_host_has_empty_profiles():
    """No workload and no process is a normal reading, first or later."""
    first, _, third = watch(see(0.0), see(1.0, running(at_s=1.0)), see(2.0))

    for each in (first, third):
        assert each.ids == ()
        assert each.needed_bytes.shape == each.process_idle_s.shape == (0,)


def test_neighbours_that_come_and_go_do_not_change_a_workloads_profile():
    """The profile of `m` is the same alone and among others before and after it in the order."""

    def m(t):
        return running("m", at_s=min(t, 3.0), pid=50, minor=int(9 * t), anon=100 + min(t, 2))

    def others(t):
        a = [running("a", at_s=t, pid=4, anon=7)] if t % 2 else []
        z = [paused("z", pid=90, anon=9)] if t > 2 else []
        return [*a, *z]

    alone = watch(*(see(float(t), m(t)) for t in range(8)))
    among = watch(*(see(float(t), m(t), *others(t)) for t in range(8)))

    for one, other in zip(alone, among, strict=True):
        row = other.ids.index("m")
        for field in dataclasses.fields(Profiles):
            column = getattr(one, field.name)
            if isinstance(column, np.ndarray) and field.name != "process_idle_s":
                assert column[0] == getattr(other, field.name)[row], field.name


# --- properties -------------------------------------------------------------------------------------------------------

SIZE = st.integers(0, 500).map(float)


@st.composite
def jobs(draw, name: str) -> Job:
    count = draw(st.integers(0, 3))
    first = draw(st.integers(0, 5))
    file = draw(SIZE)
    anon = draw(SIZE)
    return Job(
        name=name,
        instance=draw(st.integers(1, 2)),
        processes=tuple(
            Process(
                pid=1000 * ord(name) + first + each,
                start=draw(st.integers(1, 2)),
                cpu_s=draw(st.sampled_from((0.0, 0.001, 0.5, 3.0))),
                anon=draw(SIZE),
                swapped=draw(SIZE),
                major=draw(st.sampled_from((0, 50, 5000))),
                has_kinds=draw(st.booleans()),
            )
            for each in range(count)
        ),
        anon=anon,
        file=file,
        shmem=draw(SIZE),
        swapped=draw(SIZE),
        reclaimable=draw(st.floats(0, 1)) * file,
        unevictable=draw(st.floats(0, 1)) * anon,
        kernel=draw(st.integers(0, 20)),
        major=draw(st.integers(0, 10_000)),
        minor=draw(st.integers(0, 10_000)),
    )


@st.composite
def histories(draw):
    times = np.cumsum(draw(st.lists(st.sampled_from((0.0, 0.25, 1.0, 5.0)), min_size=1, max_size=6)))
    return [see(float(t), *(draw(jobs(name)) for name in draw(st.sets(st.sampled_from("abc"))))) for t in times]


@settings(max_examples=60)
@given(history=histories())
def test_use_is_told_apart_without_counting_twice(history):
    """Cold is in memory and may leave; needed and cold overlap nowhere, unless pages are being pulled back."""
    for observation, profiles in zip(history, watch(*history), strict=True):
        seen = observation.workloads
        present = seen.anon_bytes + seen.shmem_bytes + seen.kernel_bytes + seen.file_bytes - seen.reclaimable_bytes
        assert (profiles.needed_bytes >= 0).all()
        assert (profiles.cold_bytes >= 0).all()
        assert (profiles.cold_bytes <= seen.anon_bytes - seen.unevictable_bytes + seen.shmem_bytes).all()
        assert (profiles.needed_bytes + profiles.cold_bytes >= present).all()
        assert (profiles.needed_bytes <= present + seen.swapped_bytes).all()
        is_idle = profiles.idle_s >= SETTINGS.observe.idle_after_s
        assert (profiles.needed_bytes + profiles.cold_bytes <= present)[is_idle].all()
        assert (profiles.reclaimable_bytes <= seen.file_bytes).all()


@settings(max_examples=40)
@given(history=histories())
def test_no_rate_or_time_is_negative_or_unbounded(history):
    """Whatever restarts, reused pids and repeated times bring, every column is finite and not negative."""
    for profiles in watch(*history):
        for field in dataclasses.fields(Profiles):
            column = getattr(profiles, field.name)
            if isinstance(column, np.ndarray):
                assert np.isfinite(column).all(), field.name
                assert (column >= 0).all(), field.name


@settings(max_examples=60)
@given(history=histories())
def test_the_profile_is_a_function_of_what_was_seen(history):
    """Equal observations give equal profiles, and neither the observation nor the state before is changed."""
    state = ProfileState()
    for observation in history:
        before = pickle.dumps((state, observation))
        after, profiles = update(state, observation, SETTINGS)
        again = update(state, observation, SETTINGS)
        assert pickle.dumps((state, observation)) == before
        assert pickle.dumps((after, profiles)) == pickle.dumps(again)
        state = after
