# SPDX-License-Identifier: Apache-2.0
"""What the simulated kernel does with programs: the mechanisms that memsculpt exists for must be in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.simulated import (
    Burst,
    CacheReader,
    Constant,
    Cycle,
    Leak,
    Program,
    Ramp,
    ReclaimRules,
    SimulatedHost,
    StartupPeak,
)

MIB = 1 << 20


def lab(limit_bytes: int = 1150 * MIB, seed: int = 0, **more: object) -> SimulatedHost:
    """The isolation bench's scene: a server beside two jobs out of phase, under one limit."""
    return SimulatedHost(
        seed,
        workloads=(
            Constant(name="redis-server", cgroup="lab/redis", size_bytes=525 * MIB),
            Cycle(name="job-a", cgroup="lab/a", size_bytes=450 * MIB, offset_s=2.0),
            Cycle(name="job-b", cgroup="lab/b", size_bytes=450 * MIB, offset_s=7.0),
        ),
        limits={"lab": limit_bytes},
        **more,
    )


def run(host: SimulatedHost, for_s: float) -> None:
    until_s = host.now_s() + for_s
    while host.now_s() < until_s:
        host.wait_until(until_s)


def resident_bytes(host: SimulatedHost) -> dict[str, int]:
    seen = host.observe().workloads
    return dict(zip(seen.ids, seen.resident_bytes.tolist(), strict=True))


# --- with room --------------------------------------------------------------------------------------------------------


def test_with_room_nobody_stalls():
    """Where everything fits, work is done at full speed, phases last as long as their work, and nothing is faulted."""
    host = lab(limit_bytes=2048 * MIB)
    run(host, 60.0)

    for name in ("redis-server", "job-a", "job-b"):
        record = host.record(name)
        assert (record.stall_s, record.major_faults_count, record.oom_kills_count) == (0.0, 0, 0)
    assert [phase.duration_s for phase in host.record("job-a").phases[1:]] == pytest.approx([1.2] * 5)
    assert [phase.began_at_s for phase in host.record("job-b").phases] == pytest.approx(
        [1007.0 + 10.0 * k for k in range(6)]
    )


def test_an_idle_program_uses_nothing():
    """Between phases a job has no processor time and no faults, and its memory stays."""
    host = lab(limit_bytes=2048 * MIB)
    run(host, 14.0)
    before = host.observe()
    run(host, 2.0)
    after = host.observe()
    row = before.workloads.ids.index("lab/a")

    assert before.workloads.cpu_s[row] == after.workloads.cpu_s[row]
    assert before.workloads.anon_bytes[row] == after.workloads.anon_bytes[row] == 450 * MIB


# --- too little room --------------------------------------------------------------------------------------------------


def test_the_neighbour_pays_under_a_common_limit():
    """The parent's limit makes the server's seldom touched pages leave for a job's, as in the kernel; nobody dies."""
    host = lab()
    run(host, 60.0)

    assert host.record("redis-server").major_faults_count > 50_000
    assert host.record("redis-server").stall_s > 1.0
    assert min(phase.duration_s for phase in host.record("job-a").phases[2:]) > 1.3
    assert sum(host.record(name).oom_kills_count for name in ("redis-server", "job-a", "job-b")) == 0


def test_a_tight_limit_kills_although_swap_is_free():
    """A job that touches everything at random under a limit two thirds its size is killed; swap is nearly empty."""
    host = lab(limit_bytes=2048 * MIB)
    host.write_limit(CgroupPath("lab/a"), LimitKind.HARD, 312 * MIB)
    run(host, 30.0)
    memory = host.observe().memory

    assert host.record("job-a").oom_kills_count > 0
    assert memory.swap_free_bytes > memory.swap_total_bytes // 2


def test_paging_out_ahead_and_prefetching_helps():
    """Whoever is told the schedule, pages the idle job out and the next one in ahead, spares the server its faults."""
    unmanaged, managed = lab(), lab()
    run(unmanaged, 60.0)
    for second in range(60):
        managed.wait_until(1000.0 + second)
        for idle, coming, at_s in (("job-a", "job-b", 5), ("job-b", "job-a", 0)):
            if second % 10 == at_s and second > 4:
                managed.page_out(managed.instances(idle)[0], 300 * MIB)
                managed.page_in(managed.instances(coming)[0], 450 * MIB)

    ours, theirs = managed.record("redis-server"), unmanaged.record("redis-server")
    assert ours.major_faults_count * 20 < theirs.major_faults_count
    assert managed.record("job-a").phases[-1].duration_s < unmanaged.record("job-a").phases[-1].duration_s
    assert managed.record("job-a").phases[-1].duration_s == pytest.approx(1.2, abs=0.05)


def test_pressure_ends_a_wait_early():
    """A wait returns True before its deadline when somebody stalls, and not again within the same second."""
    host = lab()
    woken_at_s = []
    while host.now_s() < 1040.0:
        if host.wait_until(1040.0):
            woken_at_s.append(host.now_s())

    assert woken_at_s
    assert (np.diff(woken_at_s) >= 1.0).all()
    assert host.observe().memory.some_stall_s > 0.15 * len(woken_at_s)


def test_without_swap_only_the_page_cache_gives():
    """No swap: what does not fit and is not page cache gets somebody killed."""
    reader = CacheReader(name="reader", cgroup="lab/reader", file_bytes=300 * MIB, read_bytes_per_s=100 * MIB)
    server = Constant(name="server", cgroup="lab/server", size_bytes=200 * MIB, begins_at_s=5.0)
    fits = SimulatedHost(1, swap_bytes=0, workloads=(reader, server), limits={"lab": 300 * MIB})
    run(fits, 20.0)
    tight = SimulatedHost(1, swap_bytes=0, workloads=(server,), limits={"lab": 150 * MIB})
    run(tight, 20.0)

    assert fits.record("server").oom_kills_count == 0
    assert resident_bytes(fits)["lab/server"] == 200 * MIB
    assert tight.record("server").oom_kills_count > 0


def test_page_cache_leaves_before_anonymous_memory():
    """A reader beside an idle job under one limit costs the job nothing: the cache is what gives."""
    host = SimulatedHost(
        1,
        workloads=(
            Cycle(name="job", cgroup="lab/job", size_bytes=200 * MIB, period_s=15.0),
            CacheReader(name="reader", cgroup="lab/reader", file_bytes=500 * MIB, read_bytes_per_s=50 * MIB),
        ),
        limits={"lab": 400 * MIB},
    )
    run(host, 60.0)

    assert host.record("job").major_faults_count == 0
    seen = host.observe().workloads
    row = seen.ids.index("lab/reader")
    assert seen.reclaimable_bytes[row] == seen.file_bytes[row] > 100 * MIB


def test_swap_of_its_size():
    """What is in swap never exceeds the device, and a full one is said."""
    host = lab(swap_bytes=64 * MIB)
    for _ in range(30):
        host.wait_until(host.now_s() + 1.0)
        memory = host.observe().memory
        assert 0 <= memory.swap_free_bytes <= memory.swap_total_bytes == 64 * MIB


def test_v2_high_slows_and_protection_spares():
    """Version 2: above memory.high nobody is killed, and a cgroup within memory.min loses nothing to its neighbours."""
    host = lab(cgroup_version=2)
    host.write_limit(CgroupPath("lab/redis"), LimitKind.GUARANTEE, 525 * MIB)
    host.write_limit(CgroupPath("lab/a"), LimitKind.LIMIT, 312 * MIB)
    run(host, 40.0)

    assert host.record("redis-server").major_faults_count == 0
    assert resident_bytes(host)["lab/redis"] == 525 * MIB
    assert host.record("job-a").oom_kills_count == 0
    assert host.record("job-a").stall_s > 0.0


# --- the programs -----------------------------------------------------------------------------------------------------


def sizes_of(program: Program, for_s: int) -> list[int]:
    host = SimulatedHost(3, workloads=(program,), chunk_bytes=1 * MIB)
    sizes = []
    for _ in range(for_s):
        host.wait_until(host.now_s() + 1.0)
        sizes.append(int(host.observe().workloads.resident_bytes.sum()) // MIB)
    return sizes


def test_a_ramp_ramps():
    """It grows evenly to its end and stays there."""
    sizes = sizes_of(Ramp(name="ramp", from_bytes=10 * MIB, to_bytes=110 * MIB, ramp_s=20.0), 30)

    assert sizes[9] == pytest.approx(60, abs=2)
    assert sizes[19:] == [110] * 11


def test_a_leak_leaks_up_to_its_ceiling():
    """It grows by its rate and never beyond its ceiling."""
    leak = Leak(name="leak", base_bytes=10 * MIB, leak_bytes_per_s=2 * MIB, ceiling_bytes=40 * MIB)

    assert sizes_of(leak, 20)[4:6] == [20, 22]
    assert sizes_of(leak, 20)[-1] == 40


def test_a_burst_comes_and_goes():
    """Only two sizes are seen, both of them, and the memory is really given back."""
    burst = Burst(name="burst", base_bytes=10 * MIB, burst_bytes=30 * MIB, mean_pause_s=10.0, burst_s=5.0)

    assert set(sizes_of(burst, 120)) == {10, 40}


def test_a_startup_peak_is_at_the_start():
    """The peak lasts as long as the start-up, in each life anew."""
    program = StartupPeak(
        name="app", peak_bytes=50 * MIB, steady_bytes=20 * MIB, startup_s=5.0, lifetime_s=20.0, comes_back_after_s=2.0
    )
    sizes = sizes_of(program, 30)

    assert sizes[:4] == [50] * 4
    assert set(sizes[5:19]) == {20}
    assert sizes[23:26] == [50] * 3


@pytest.mark.parametrize("remakes_cgroup", [False, True])
def test_a_restart_keeps_the_identity(remakes_cgroup: bool):
    """Who comes back has the same identity and another instance, in a new cgroup if its service manager makes one."""
    server = Constant(name="server", cgroup="srv", size_bytes=10 * MIB, lifetime_s=10.0, remakes_cgroup=remakes_cgroup)
    host = SimulatedHost(1, workloads=(server,))
    run(host, 5.0)
    first, (before,) = host.observe().workloads, host.instances("server")
    run(host, 10.0)
    second, (after,) = host.observe().workloads, host.instances("server")

    assert first.ids == second.ids == ("srv",)
    assert before != after
    assert (first.instance_keys[0] != second.instance_keys[0]) == remakes_cgroup
    assert host.record("server").lives_count == 2


def test_a_jittered_cycle_stays_within_its_jitter():
    """Onsets are late by up to the jitter and do not drift."""
    job = Cycle(name="job", size_bytes=10 * MIB, period_s=10.0, jitter_s=2.0, work_s=1.0)
    host = SimulatedHost(5, workloads=(job,))
    run(host, 200.0)
    late_s = [phase.began_at_s - 1000.0 - 10.0 * k for k, phase in enumerate(host.record("job").phases)]

    assert len(late_s) >= 19
    assert all(0.0 <= late <= 2.0 + 1e-6 for late in late_s)
    assert max(late_s) - min(late_s) > 0.5


# --- determinism and accounts -----------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_hosts_and_others_do_not():
    """Everything, chance included, follows from the seed."""
    hosts = [lab(seed=seed) for seed in (1, 1, 2)]
    for host in hosts:
        run(host, 30.0)

    assert hosts[0].fingerprint() == hosts[1].fingerprint()
    assert hosts[0].fingerprint() != hosts[2].fingerprint()


def test_a_programs_chance_does_not_depend_on_its_neighbours():
    """Bursts come at the same times whoever else is there: arms of an experiment can be compared."""
    burst = Burst(name="burst", base_bytes=10 * MIB, burst_bytes=30 * MIB, mean_pause_s=10.0, burst_s=5.0)
    alone = SimulatedHost(3, workloads=(burst,))
    crowded = SimulatedHost(3, workloads=(Constant(name="other", size_bytes=50 * MIB), burst))

    for _ in range(60):
        for host in (alone, crowded):
            host.wait_until(host.now_s() + 1.0)
        assert resident_bytes(alone)["exe:/usr/bin/burst"] == resident_bytes(crowded)["exe:/usr/bin/burst"]


PROGRAMS = st.lists(
    st.one_of(
        st.builds(
            lambda size: Constant(name="constant", cgroup="lab/constant", size_bytes=size * MIB), st.integers(1, 90)
        ),
        st.builds(
            lambda size, period: Cycle(name="cycle", cgroup="lab/cycle", size_bytes=size * MIB, period_s=period),
            st.integers(1, 90),
            st.floats(2.0, 8.0),
        ),
        st.builds(
            lambda rate: Leak(
                name="leak", cgroup="lab/leak", base_bytes=MIB, leak_bytes_per_s=rate * MIB, ceiling_bytes=60 * MIB
            ),
            st.integers(1, 20),
        ),
        st.builds(
            lambda size: CacheReader(
                name="reader", cgroup="lab/reader", file_bytes=size * MIB, read_bytes_per_s=20 * MIB
            ),
            st.integers(1, 90),
        ),
        st.builds(
            lambda size: Constant(name="mortal", cgroup="lab/mortal", size_bytes=size * MIB, lifetime_s=3.0),
            st.integers(1, 90),
        ),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda program: program.name,
)


@settings(max_examples=30)
@given(programs=PROGRAMS, limit_mib=st.integers(40, 200), swap_mib=st.integers(0, 100), moving=st.booleans())
def test_the_accounts_always_balance(programs: list[Program], limit_mib: int, swap_mib: int, moving: bool):
    """Whatever runs, is squeezed, moved or killed: each cgroup holds what its members' pages say, within its limit."""
    host = SimulatedHost(
        1, workloads=programs, limits={"lab": limit_mib * MIB}, swap_bytes=swap_mib * MIB, chunk_bytes=1 * MIB
    )
    host.create_cgroup(CgroupPath("lab/memsculpt-own"))
    for second in range(12):
        host.wait_until(host.now_s() + 1.0)
        if moving and second == 4:
            for instance in host.instances(programs[0].name):
                host.move_process(instance, CgroupPath("lab/memsculpt-own"))
        seen = host.observe()
        root = host._machine.tree.root

        assert sum(region.resident_chunks for region in host._machine.regions()) == root.charged_chunks
        assert int(seen.processes.anon_bytes.sum()) == root.anon_chunks * MIB
        assert int(seen.processes.swapped_bytes.sum()) == root.swapped_chunks * MIB
        assert root.charged_chunks <= limit_mib
        assert root.swapped_chunks <= swap_mib
        for node in host._machine.tree.nodes.values():
            assert min(node.anon_chunks, node.file_chunks, node.swapped_chunks, node.process_count) >= 0


def test_rules_can_be_changed():
    """Somebody who wants a merciless kernel gets one: giving up at once kills where patience would not."""
    patient, hasty = (lab(rules=ReclaimRules(give_up_after_s=seconds)) for seconds in (1000.0, 0.01))
    for host in (patient, hasty):
        host.write_limit(CgroupPath("lab/a"), LimitKind.HARD, 312 * MIB)
        run(host, 20.0)

    assert patient.record("job-a").oom_kills_count == 0
    assert hasty.record("job-a").oom_kills_count > 0


@pytest.mark.parametrize("wrong", [{"chunk_bytes": 1000}, {"step_s": 0.0}])
def test_nonsense_is_refused(wrong: dict[str, float]):
    """A chunk of parts of pages and a time that stands still are refused."""
    with pytest.raises(ValueError, match="need whole pages"):
        SimulatedHost(1, **wrong)


def test_two_programs_of_one_name_are_refused():
    """Names are how tests and faults speak of programs."""
    with pytest.raises(ValueError, match="name of its own"):
        SimulatedHost(1, workloads=(Constant(name="a", size_bytes=MIB), Constant(name="a", size_bytes=MIB)))


# --- a slow node ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_near_goes_to_the_slow_node_and_is_slower_there():
    """Nobody is swapped or stalled for it, but work takes longer; what ends gives its room back."""

    def world(slow_bytes: int) -> SimulatedHost:
        server = Constant(
            name="server", cgroup="server", size_bytes=300 * MIB, skew=0.0, lifetime_s=60.0, comes_back_after_s=None
        )
        return SimulatedHost(1, total_bytes=512 * MIB, slow_bytes=slow_bytes, workloads=(server,))

    plain, tiered = world(0), world(256 * MIB)
    before = tiered.slow_room_bytes()
    run(plain, 30.0)
    run(tiered, 30.0)
    (server,) = tiered.instances("server")
    there = int((tiered.slow_runs(server, [(0, 1 << 40)]) @ [-1, 1]).sum())
    assert there == 44 * MIB
    assert tiered.slow_room_bytes() == before - there
    assert tiered.record("server").major_faults_count == 0
    assert tiered.record("server").stall_s == 0.0
    assert tiered.record("server").work_done_s < plain.record("server").work_done_s
    run(tiered, 35.0)
    assert tiered.slow_room_bytes() == before
