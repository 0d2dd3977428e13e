# SPDX-License-Identifier: Apache-2.0
"""How finely page faults are sampled, what the log keeps, and how far off estimates are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.growth import FaultCount, FaultSamples
from memsculpt.domain.observation import Observation
from memsculpt.domain.settings import PartitionSettings, SenseSettings
from memsculpt.domain.workload import Instance, Match, WorkloadId
from memsculpt.profile import fault_log, sampling
from memsculpt.profile.fault_log import LOG_MOST, STACKS_MOST_BYTES, FaultLog, is_chosen
from memsculpt.profile.sampled_growth import estimate, owners, summarize
from memsculpt.profile.sampling import OFF_AFTER_S, OFF_S, SamplingState, absorb, choose
from tests.profile.world import Job, Process, see

JOB = WorkloadId("job")
ONE = Instance(pid=7, start_ticks=1)
CRITICAL = (PartitionSettings(name="p", match=Match(pid=7), critical=True),)
USUAL = SenseSettings(budget_ratio=0.01)
KEYS = tuple(np.array([1, (1 << 48) + number], np.int64).tobytes() for number in range(4))


def seen(time_s: float, *pids: int, names: tuple[str, ...] = ("job",)) -> Observation:
    """An observation of jobs in the partition; every pid is a process of the first."""
    jobs = [
        Job(name=name, processes=tuple(Process(pid=pid, anon=10.0) for pid in (pids or (7,))) if not row else ())
        for row, name in enumerate(names)
    ]
    found = see(time_s, *jobs)
    return replace(found, workloads=replace(found.workloads, partitions=("p",) * len(jobs)))


def samples(at_s, pages, *, shift=0, stacks=KEYS, stack=None, cpu_s=0.0, passed=0, process=ONE, seen_count=0, size=1):
    count = len(pages)
    return FaultSamples(
        at_s=np.full(count, at_s),
        process=np.zeros(count, np.int64),
        page=np.array(pages, np.int64),
        size_pages=np.full(count, size, np.int64),
        shift=np.full(count, shift, np.int64),
        kind=np.zeros(count, np.int64),
        stack=np.zeros(count, np.int64) if stack is None else np.array(stack, np.int64),
        processes=(process,),
        stacks=stacks,
        counts={process: FaultCount(shift=shift, seen_count=seen_count, dropped_count=0)},
        passed_count=passed,
        cpu_s=cpu_s,
    )


def begun(time_s=0.0, *pids, budget=USUAL) -> SamplingState:
    state, _ = choose(SamplingState(), seen(time_s, *pids), CRITICAL, budget, agent_ratio=0.0)
    return state


def take(state, *drained, now_s=1.0, record_cost_s=0.0, pass_cost_s=0.0):
    return absorb(state, drained, now_s=now_s, record_cost_s=record_cost_s, pass_cost_s=pass_cost_s)


# --- which pages ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 62), st.integers(1, 12))
def test_what_is_chosen_coarsely_is_chosen_finely(first, seed, shift):
    pages = np.arange(first, first + 3000, dtype=np.int64)
    assert not np.any(is_chosen(pages, seed, shift) & ~is_chosen(pages, seed, shift - 1))


@pytest.mark.parametrize("stride", [1, 2, 512, 987, 4096])
def test_one_page_in_so_many_is_chosen_whatever_the_stride(stride):
    pages = np.arange(0, 400_000 * stride, stride, dtype=np.int64)
    for shift in (3, 6):
        expected = len(pages) / (1 << shift)
        assert abs(int(is_chosen(pages, 99, shift).sum()) - expected) < 4.0 * expected**0.5


@given(st.integers(0, 1 << 30), st.integers(40, 200))
@settings(max_examples=25)
def test_thinning_is_as_if_it_had_been_sampled_so_from_the_beginning(first, most):
    pages = np.arange(first, first + 2000, dtype=np.int64)
    log = fault_log.add(FaultLog(), [samples(0.0, pages.tolist())], {ONE: 5})
    thinned = fault_log.thin_out(log, [5], {5: ONE.start_ticks}, most)
    shift = int(thinned.events["shift"].max())
    assert len(thinned.events) <= most
    assert thinned.events["page"].tolist() == pages[is_chosen(pages, ONE.start_ticks, shift)].tolist()
    assert set(thinned.events["shift"].tolist()) <= {shift}


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_log_never_grows_beyond_its_bounds():
    """Whatever comes: a rush of faults, and a new stack with each of them."""
    state = begun()
    for tick in range(40):
        pages = range(tick * 2000, tick * 2000 + 2000)
        keys = tuple(np.array([1, page + (1 << 48)], np.int64).tobytes() for page in pages)
        state = take(state, samples(float(tick), list(pages), stacks=keys, stack=range(2000)), now_s=float(tick))
        assert len(state.log.events) <= LOG_MOST
        assert state.log.stack_bytes <= STACKS_MOST_BYTES
        assert int(state.log.events["stack"].max()) < len(state.log.stacks)
        assert state.log.stack_bytes <= sum(len(key) + 150 for key in state.log.stacks)
    assert state.log.forgotten_count > 0
    state, _ = choose(state, seen(40.0), CRITICAL, USUAL, agent_ratio=0.0)
    assert any("too many different stacks" in note for note in summarize(state).notes)


def test_the_largest_stacks_are_kept():
    many = tuple(np.array([1, number + (1 << 48)], np.int64).tobytes() for number in range(6000))
    big = np.array([1, (9 << 48) + 1], np.int64).tobytes()
    drained = samples(0.0, list(range(6100)), stacks=(*many, big), stack=[*range(6000), *[6000] * 100])
    log = fault_log.drop_stacks(fault_log.add(FaultLog(), [drained], {ONE: 0}))
    assert big in log.stacks
    assert int((log.events["stack"] == log.stacks[big]).sum()) == 100


def test_what_is_old_is_forgotten():
    state = take(begun(), samples(0.0, [1, 2, 3]))
    state = take(state, samples(350.0, [4]), now_s=350.0)
    assert state.log.events["page"].tolist() == [4]
    assert state.since_s[JOB] == 50.0


def test_numbers_of_processes_are_used_again():
    """An agent that runs for years sees millions of processes."""
    state = SamplingState()
    for tick in range(50):
        state, _ = choose(state, seen(float(tick), 100 + tick), CRITICAL, USUAL, agent_ratio=0.0)
        state = take(state, now_s=float(tick))
    assert max(one.number for one in state.processes.values()) <= 1
    assert len(state.processes) <= 2


# --- estimates --------------------------------------------------------------------------------------------------------


def test_who_brought_a_page_last_holds_it():
    state = take(begun(), samples(0.0, [10, 11, 12, 10], stack=[0, 0, 1, 2]))
    ((rows, pages, sizes),) = owners(state, JOB).values()
    assert pages.tolist() == [11, 12, 10]
    assert sizes.tolist() == [1, 1, 1]
    held = np.zeros(4, np.int64)
    held[rows] = [1, 0, 1]
    found = estimate(state, JOB, held, (), now_s=1.0)
    by_stack = {one.frames[0] & 3: (one.touched_bytes, one.held_bytes) for one in found.stacks}
    assert by_stack == {0: (8192, 4096), 1: (4096, 0), 2: (4096, 4096)}
    assert all(one.touched_variance == 0.0 for one in found.stacks)


def test_what_was_sampled_finely_once_is_not_held_twice():
    """The same memory is given back and brought anew, sampled eight times as coarsely: what is held is counted once."""
    every = np.arange(1 << 12, dtype=np.int64)
    seed = ONE.start_ticks
    fine, coarse = (every[is_chosen(every, seed, shift)] for shift in (1, 4))
    state = take(begun(), samples(0.2, fine, shift=1), samples(0.8, coarse, shift=4))
    ((rows, _, _),) = owners(state, JOB).values()
    held = np.zeros(len(state.log.events), np.int64)
    held[rows] = 1  # all of it is there again
    found = estimate(state, JOB, held, (), now_s=1.0)

    truth = len(every) * 4096
    assert sum(one.held_bytes for one in found.stacks) == pytest.approx(truth, abs=3 * np.sqrt(15 * len(every)) * 4096)
    assert sum(one.touched_bytes for one in found.stacks) > 1.7 * truth  # that was twice


def test_of_twenty_estimates_nineteen_are_within_their_error():
    truth, held_count, count = 6000, 0, 200
    for seed in range(0, count * 1_000_003, 1_000_003):  # far apart: others would be the same hashes once more
        process = Instance(pid=7, start_ticks=seed)
        state = SamplingState(
            processes={process: sampling.Sampled(number=0, workload=JOB, shift=5)}, since_s={JOB: 0.0}
        )
        pages = np.arange(truth, dtype=np.int64)
        chosen = pages[is_chosen(pages, seed, 5)].tolist()
        found = summarize(take(state, samples(0.0, chosen, shift=5, process=process))).workloads[0]
        held_count += abs(found.touched_bytes - truth * 4096) <= found.touched_error_bytes
    assert 0.90 <= held_count / count <= 0.99


def test_nothing_is_lost_where_every_page_is_recorded():
    state = take(begun(), samples(0.0, list(range(100)), stack=[page % 4 for page in range(100)], size=512))
    found = estimate(state, JOB, np.full(100, 512), (), now_s=1.0)
    assert sum(one.touched_bytes for one in found.stacks) == 100 * (2 << 20)
    assert sum(one.held_bytes for one in found.stacks) == 100 * (2 << 20)


# --- the budget -------------------------------------------------------------------------------------------------------


def live(seconds, *, faults_per_s, record_cost_s=5e-6, pass_cost_s=0.0, machine_per_s=0, budget=USUAL):
    """A closed loop: the process faults on new pages, and is recorded as finely as was said."""
    state, shifts, next_page, passed, spent_s = SamplingState(), [], 0, 0, []
    rates = {}
    for tick in range(seconds):
        now_s = float(tick)
        drained = []
        if rates:
            shift = rates[ONE].shift
            pages = np.arange(next_page, next_page + faults_per_s, dtype=np.int64)
            chosen = pages[is_chosen(pages, ONE.start_ticks, shift)].tolist()
            next_page += faults_per_s
            passed += machine_per_s + faults_per_s
            spent_s.append(len(chosen) * 2 * record_cost_s + (machine_per_s + faults_per_s) * pass_cost_s)
            drained = [samples(now_s, chosen, shift=shift, cpu_s=len(chosen) * record_cost_s, passed=passed)]
        else:
            spent_s.append(0.0)
        state = take(state, *drained, now_s=now_s, record_cost_s=record_cost_s, pass_cost_s=pass_cost_s)
        state, rates = choose(state, seen(now_s), CRITICAL, budget, agent_ratio=0.0)
        shifts.append(rates[ONE].shift if rates else None)
    return state, shifts, spent_s


def test_above_the_budget_it_is_sampled_more_coarsely_and_said():
    state, shifts, _ = live(4, faults_per_s=20_000)
    assert shifts[0] == 0
    assert shifts[-1] > 0
    assert any("sampled more coarsely" in note for note in summarize(state).notes)


@pytest.mark.parametrize("faults_per_s", [100, 3000, 20_000])
def test_in_the_long_run_the_budget_holds(faults_per_s):
    _, shifts, spent_s = live(120, faults_per_s=faults_per_s)
    assert sum(spent_s[60:]) / 60.0 <= 0.01
    assert len(set(shifts[90:])) <= 2  # it settles


def test_who_faults_little_is_recorded_completely():
    _, shifts, _ = live(60, faults_per_s=20)
    assert shifts[-1] == 0


def test_where_passing_alone_is_too_dear_it_is_switched_off_for_a_while():
    state, shifts, _ = live(20, faults_per_s=10, pass_cost_s=2e-7, machine_per_s=500_000)
    assert shifts[0] == 0
    assert shifts[-1] is None
    found = summarize(state)
    assert not found.is_on
    assert any("switched off for 5 min" in note for note in found.notes)
    at = shifts.index(None)
    assert OFF_AFTER_S <= at <= OFF_AFTER_S + 4
    _, rates = choose(state, seen(at + OFF_S + 1.0), CRITICAL, USUAL, agent_ratio=0.0)
    assert ONE in rates


def test_what_the_agent_needs_for_itself_is_not_there_for_sampling():
    wide, _ = choose(SamplingState(), seen(0.0), CRITICAL, USUAL, agent_ratio=0.0)
    narrow, _ = choose(SamplingState(), seen(0.0), CRITICAL, USUAL, agent_ratio=0.5)
    assert wide.allowed_ratio == pytest.approx(0.005)
    assert narrow.allowed_ratio == pytest.approx(0.001)


def test_nobody_is_watched_who_is_not_critical():
    usual = (PartitionSettings(name="p", match=Match(pid=7)),)
    _, rates = choose(SamplingState(), seen(0.0), usual, USUAL, agent_ratio=0.0)
    assert rates == {}


def test_a_process_of_no_workload_is_nobody_s():
    found = seen(0.0)
    loose = see(0.0, *[Job(name="job")], loose=(Process(pid=9, anon=5.0),))
    loose = replace(loose, workloads=replace(loose.workloads, partitions=found.workloads.partitions))
    _, rates = choose(SamplingState(), loose, CRITICAL, USUAL, agent_ratio=0.0)
    assert rates == {}
