# SPDX-License-Identifier: Apache-2.0
"""The whole agent on the simulated host: what memsculpt promises, end to end, in seconds.

The scene is the isolation bench's: a server that is always active and two jobs that keep their data untouched
between phases, in a lab that holds what is in use at any one moment, but not everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from memsculpt import act
from memsculpt.agent import Agent, Tick
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import LimitKind, PageIn, PageOut, Plan
from memsculpt.domain.settings import Kind, Mode, PartitionSettings, Settings
from memsculpt.domain.workload import CgroupPath, Match
from memsculpt.host.simulated import (
    Burst,
    BusyLimit,
    CacheReader,
    Constant,
    Cycle,
    DeniedPaging,
    Fault,
    ForeignLimit,
    Leak,
    Program,
    Ramp,
    SimulatedHost,
    StartupPeak,
    SwapFull,
    VanishBeforeAction,
)

# Whole runs, not single calls: a test simulates up to a quarter of an hour, an hour in the last one.
pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
LAB_BYTES = 1150 * MIB
TENANTS = ("redis-server", "job-a", "job-b")


def lab_host(seed: int = 0, *, limit_bytes: int = LAB_BYTES, faults: tuple[Fault, ...] = (), **more) -> SimulatedHost:
    return SimulatedHost(
        seed,
        workloads=(
            Constant(name="redis-server", cgroup="lab/redis", size_bytes=525 * MIB),
            Cycle(name="job-a", cgroup="lab/job-a", size_bytes=450 * MIB, offset_s=2.0),
            Cycle(name="job-b", cgroup="lab/job-b", size_bytes=450 * MIB, offset_s=7.0),
        ),
        limits={"lab": limit_bytes},
        faults=faults,
        **more,
    )


def lab_settings(mode: Mode, capacity_bytes: int = LAB_BYTES) -> Settings:
    return Settings(
        mode=mode,
        capacity_bytes=capacity_bytes,
        partitions=(
            PartitionSettings(
                name="redis", match=Match(cgroup="lab/redis"), guarantee_bytes=525 * MIB, priority=1000.0
            ),
            PartitionSettings(name="job-a", match=Match(cgroup="lab/job-a")),
            PartitionSettings(name="job-b", match=Match(cgroup="lab/job-b")),
        ),
    )


@dataclass
class Run:
    """An agent on a host, and what was seen tick by tick."""

    host: SimulatedHost
    agent: Agent
    journal: act.Journal | None
    ticks: list[Tick] = field(default_factory=list)

    def go(self, for_s: float) -> None:
        """Tick once a second, earlier when the host asks for it, as the loop does."""
        until_s = self.host.now_s() + for_s
        while self.host.now_s() < until_s:
            self.ticks.append(self.agent.tick())
            self.host.wait_until(min(self.host.now_s() + 1.0, until_s))

    @property
    def plans(self) -> list[Plan]:
        return [tick.plan for tick in self.ticks]


@contextmanager
def running(host: SimulatedHost, configured: Settings, state: Path) -> Iterator[Run]:
    host.watch(configured.partitions)
    journal = act.Journal.open(state, machine_lock=None) if configured.mode is Mode.APPLY else None
    try:
        yield Run(host=host, agent=Agent(host=host, settings=configured, journal=journal), journal=journal)
    finally:
        if journal is not None:
            journal.close()


def run_alone(host: SimulatedHost, for_s: float) -> None:
    until_s = host.now_s() + for_s
    while host.now_s() < until_s:
        host.wait_until(until_s)


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    """The version of the cgroup interface."""
    return request.param


@pytest.fixture(scope="module")
def unmanaged(version: int) -> SimulatedHost:
    host = lab_host(cgroup_version=version)
    run_alone(host, 200.0)
    return host


@pytest.fixture(scope="module")
def managed(version: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    host = lab_host(cgroup_version=version)
    with running(host, lab_settings(Mode.APPLY), tmp_path_factory.mktemp("state")) as run:
        run.go(200.0)
        yield run


LATE_S = 1040.0  # the schedule is learnt in the first periods, from an empty profile


def test_the_server_faults_far_less(managed: Run, unmanaged: SimulatedHost):
    """Redis's major faults: at most a twentieth of what it has without management."""
    ours, theirs = (host.record("redis-server").major_faults_count for host in (managed.host, unmanaged))

    assert ours * 20 <= theirs


def test_everybody_stalls_less(managed: Run, unmanaged: SimulatedHost):
    """The stall time of all tenants together is well below the unmanaged kernel's."""
    ours, theirs = (sum(host.record(name).stall_s for name in TENANTS) for host in (managed.host, unmanaged))

    assert ours * 1.5 <= theirs


def test_late_phases_are_not_longer(managed: Run, unmanaged: SimulatedHost):
    """Once the schedule is learnt, the jobs do not pay for the server: their phases are no longer than before."""

    def late_s(host: SimulatedHost) -> float:
        phases = [phase for name in ("job-a", "job-b") for phase in host.record(name).phases]
        late = sorted(phase.duration_s for phase in phases if phase.began_at_s > LATE_S)
        return late[len(late) // 2]

    assert late_s(managed.host) <= late_s(unmanaged)


def test_nobody_is_killed(managed: Run):
    """No OOM kill, from the empty profile on."""
    assert [managed.host.record(name).oom_kills_count for name in TENANTS] == [0, 0, 0]


def test_limits_that_kill_are_lifted_in_time(tmp_path: Path):
    """An even split of what redis leaves kills both jobs on the kernel alone; memsculpt moves the limits first (v1)."""

    def split_host() -> SimulatedHost:
        host = lab_host()
        for job in ("lab/job-a", "lab/job-b"):
            host.write_limit(CgroupPath(job), LimitKind.HARD, 312 * MIB)
        return host

    alone = split_host()
    run_alone(alone, 100.0)
    with running(split_host(), lab_settings(Mode.APPLY), tmp_path) as run:
        run.go(100.0)

    assert min(alone.record(job).oom_kills_count for job in ("job-a", "job-b")) > 0
    assert [run.host.record(name).oom_kills_count for name in TENANTS] == [0, 0, 0]
    assert len(run.host.record("job-a").phases) == 10


def test_it_acts(managed: Run):
    """The schedule is met by page-outs and page-ins that were carried out, not by luck."""
    kinds = {type(done.action) for tick in managed.ticks for done in tick.applied if done.status is Status.DONE}

    assert {PageOut, PageIn} <= kinds


def test_only_what_must_move_moves(managed: Run):
    """What is paged out in a period stays near what does not fit, not near whole data sets."""
    moved_bytes = sum(
        done.done_bytes
        for tick in managed.ticks
        for done in tick.applied
        if isinstance(done.action, PageOut) and tick.observation.time_s > LATE_S
    )
    phases = (1200.0 - LATE_S) / 5.0
    does_not_fit_bytes = (525 + 450 + 450) * MIB - LAB_BYTES

    assert moved_bytes / phases <= 1.5 * does_not_fit_bytes


def test_the_guarantee_holds_at_all_ticks(managed: Run):
    """Redis's limit is never below its guarantee, and its division never gives it less."""
    for tick in managed.ticks:
        (state,) = (state for state in tick.observation.cgroups if state.partition == "redis")
        assert min(state.limit_bytes, state.hard_limit_bytes) >= 525 * MIB
        if tick.plan.division is not None:
            row = tick.plan.division.names.index("redis")
            assert tick.plan.division.size_bytes[row] >= 525 * MIB


def test_the_division_fits_the_capacity(managed: Run):
    """Sizes never add up to more than there is."""
    for tick in managed.ticks:
        if tick.plan.division is not None:
            assert int(tick.plan.division.size_bytes.sum()) <= LAB_BYTES


def test_a_process_is_moved_from_wherever_it_lives(tmp_path: Path):
    """A partition that asks for a cgroup of its own gets the processes its rule names, also out of another cgroup."""
    host = SimulatedHost(1, workloads=(Constant(name="worker", cgroup="jobs/inner", size_bytes=64 * MIB),))
    partition = PartitionSettings(name="batch", match=Match(exe="*/worker"), create=True)
    with running(host, Settings(mode=Mode.APPLY, partitions=(partition,)), tmp_path) as run:
        run.go(5.0)
        homes = [host.cgroup_of(instance) for instance in host.instances("worker")]

    assert homes == ["memsculpt/batch"]


# --- what it must never do --------------------------------------------------------------------------------------------


def programs() -> st.SearchStrategy[list[Program]]:
    """Draw up to six programs of all kinds, each in a cgroup of its own below the lab, every third in the root."""
    mib = st.integers(8, 200).map(lambda n: n * MIB)
    kinds = (
        st.builds(lambda size: ("constant", lambda **at: Constant(size_bytes=size, **at)), mib),
        st.builds(
            lambda size, period: ("cycle", lambda **at: Cycle(size_bytes=size, period_s=period, **at)),
            mib,
            st.floats(3.0, 12.0),
        ),
        st.builds(
            lambda size: (
                "leak",
                lambda **at: Leak(base_bytes=8 * MIB, leak_bytes_per_s=4 * MIB, ceiling_bytes=size, **at),
            ),
            mib,
        ),
        st.builds(
            lambda size: ("burst", lambda **at: Burst(base_bytes=8 * MIB, burst_bytes=size, mean_pause_s=8.0, **at)),
            mib,
        ),
        st.builds(lambda size: ("ramp", lambda **at: Ramp(from_bytes=8 * MIB, to_bytes=size, ramp_s=20.0, **at)), mib),
        st.builds(
            lambda size: ("reader", lambda **at: CacheReader(file_bytes=size, read_bytes_per_s=40 * MIB, **at)), mib
        ),
        st.builds(
            lambda size: (
                "peak",
                lambda **at: StartupPeak(peak_bytes=size, steady_bytes=8 * MIB, lifetime_s=12.0, **at),
            ),
            mib,
        ),
    )
    return st.lists(st.one_of(*kinds), min_size=1, max_size=6).map(
        lambda drawn: [
            build(name=f"{kind}-{n}", cgroup="" if n % 3 == 2 else f"lab/{kind}-{n}")
            for n, (kind, build) in enumerate(drawn)
        ]
    )


def settings_for(mix: list[Program], mode: Mode, capacity_bytes: int) -> Settings:
    """One partition a program: fixed, with a guarantee, or in a cgroup of memsculpt's own, so that much is changed."""
    share_bytes = capacity_bytes // (2 * len(mix)) // MIB * MIB

    def partition(number: int, program: Program) -> PartitionSettings:
        fixed, guaranteed, moved = number % 3 == 0, number % 3 == 1, number % 3 == 2
        return PartitionSettings(
            name=program.name,
            match=Match(exe=program.exe) if moved else Match(cgroup=program.cgroup),
            create=moved,
            kind=Kind.FIXED if fixed else Kind.DYNAMIC,
            size_bytes=share_bytes if fixed else None,
            guarantee_bytes=share_bytes if guaranteed else 0,
        )

    partitions = tuple(partition(number, program) for number, program in enumerate(mix))
    return Settings(mode=mode, capacity_bytes=capacity_bytes, partitions=partitions)


def mixed_host(seed: int, mix: list[Program], limit_bytes: int, faults: tuple[Fault, ...] = (), version: int = 1):
    """A lab with the programs in it; every other one has a limit of its own already."""
    own = {program.cgroup: limit_bytes // 3 for program in mix[::2] if program.cgroup}
    return SimulatedHost(
        seed, workloads=mix, limits={"lab": limit_bytes, **own}, faults=faults, cgroup_version=version, chunk_bytes=MIB
    )


def budgets(host: SimulatedHost) -> dict[str, dict[str, str]]:
    """Return every budget there is. The empty folder of memsculpt's own cgroups may stay; what was in it may not."""
    return {path: files for path, files in host.budgets().items() if path != "memsculpt"}


def strayed(host: SimulatedHost, mix: list[Program]) -> list[str]:
    """Return the programs whose process is not where it was started."""
    return [
        program.name
        for program in mix
        for instance in host.instances(program.name)
        if host.cgroup_of(instance) != program.cgroup
    ]


LIMITS = st.integers(100, 600).map(lambda n: n * MIB)
few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(seed=st.integers(0, 1 << 30), mix=programs(), limit_bytes=LIMITS, version=st.sampled_from([1, 2]))
def test_observing_never_changes_the_host(seed: int, mix: list[Program], limit_bytes: int, version: int):
    """In observe mode a host goes exactly the way it goes alone."""
    watched, alone = (mixed_host(seed, mix, limit_bytes, version=version) for _ in range(2))
    configured = settings_for(mix, Mode.OBSERVE, limit_bytes)
    watched.watch(configured.partitions)
    agent = Agent(host=watched, settings=configured)
    for _ in range(30):
        agent.tick()
        for host in (watched, alone):
            host.wait_until(host.now_s() + 1.0)

    assert watched.fingerprint() == alone.fingerprint()


@few
@given(seed=st.integers(0, 1 << 30), mix=programs(), limit_bytes=LIMITS, version=st.sampled_from([1, 2]))
def test_apply_then_restore_is_the_identity(
    seed: int, mix: list[Program], limit_bytes: int, version: int, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever was done, closing the agent leaves every budget byte for byte as it was, and the journal empty."""
    host = mixed_host(seed, mix, limit_bytes, version=version)
    before = budgets(host)
    with running(host, settings_for(mix, Mode.APPLY, limit_bytes), tmp_path_factory.mktemp("state")) as run:
        run.go(40.0)
        event("budgets were changed" if budgets(host) != before else "no budget was changed")
        event("a process was moved" if strayed(host, mix) else "no process was moved")
        report = run.agent.close()
        assert report is not None
        assert report.is_complete, report

    assert budgets(host) == before
    assert strayed(host, mix) == []


@few
@given(
    seed=st.integers(0, 1 << 30),
    mix=programs(),
    limit_bytes=LIMITS,
    version=st.sampled_from([1, 2]),
    killed_after_s=st.integers(1, 30),
)
def test_what_a_killed_agent_leaves_is_undone_from_the_journal(
    seed: int,
    mix: list[Program],
    limit_bytes: int,
    version: int,
    killed_after_s: int,
    tmp_path_factory: pytest.TempPathFactory,
):
    """An agent that ends without a word leaves a journal, and somebody who knows nothing else undoes all from it."""
    host = mixed_host(seed, mix, limit_bytes, version=version)
    before = budgets(host)
    state = tmp_path_factory.mktemp("state")
    with running(host, settings_for(mix, Mode.APPLY, limit_bytes), state) as run:
        run.go(float(killed_after_s))
    event("budgets were changed" if budgets(host) != before else "no budget was changed")
    event("a process was moved" if strayed(host, mix) else "no process was moved")
    journal = act.Journal.open(state, machine_lock=None)
    report = act.restore(host, journal)
    journal.close()

    assert report.is_complete, report
    assert budgets(host) == before
    assert strayed(host, mix) == []


def faults_for(mix: list[Program]) -> st.SearchStrategy[tuple[Fault, ...]]:
    times = st.integers(0, 30).map(float)
    program, limited = st.sampled_from(mix), st.sampled_from([one for one in mix if one.cgroup])
    return st.lists(
        st.one_of(
            st.builds(lambda one, at: VanishBeforeAction(program=one.name, from_s=at), program, times),
            st.builds(lambda one, at: BusyLimit(cgroup=one.cgroup, from_s=at, until_s=at + 5.0), limited, times),
            st.builds(lambda at: DeniedPaging(from_s=at, until_s=at + 5.0), times),
            st.builds(lambda at: SwapFull(from_s=at, until_s=at + 5.0), times),
            st.builds(
                lambda one, kind, at: ForeignLimit(cgroup=one.cgroup, kind=kind, size_bytes=333 * MIB, at_s=at),
                limited,
                st.sampled_from(LimitKind),
                times,
            ),
        ),
        max_size=6,
    ).map(tuple)


@few
@given(data=st.data(), seed=st.integers(0, 1 << 30), mix=programs(), limit_bytes=LIMITS)
def test_faults_never_crash_a_tick_and_leave_nothing_behind(
    data: st.DataObject, seed: int, mix: list[Program], limit_bytes: int, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever goes wrong, every tick ends, and what is not undone in the end is what somebody else wrote."""
    faults = data.draw(faults_for(mix))
    host = mixed_host(seed, mix, limit_bytes, faults)
    before = budgets(host)
    with running(host, settings_for(mix, Mode.APPLY, limit_bytes), tmp_path_factory.mktemp("state")) as run:
        run.go(45.0)  # longer than any fault
        report = run.agent.close()
        assert report is not None
        assert report.is_complete, report

    assert strayed(host, mix) == []
    foreign = {fault.cgroup for fault in faults if isinstance(fault, ForeignLimit)}
    after = budgets(host)
    assert {path: texts for path, texts in after.items() if path not in foreign} == {
        path: texts for path, texts in before.items() if path not in foreign
    }
    for path in foreign:
        for file, text in after[path].items():
            assert text in {before[path][file], f"{333 * MIB}\n"}


@few
@given(seed=st.integers(0, 1 << 30), mix=programs(), limit_bytes=LIMITS)
def test_equal_hosts_give_equal_plans(
    seed: int, mix: list[Program], limit_bytes: int, tmp_path_factory: pytest.TempPathFactory
):
    """Nothing but the host and the settings goes into a plan: equal seeds give equal actions at equal times."""
    seen = []
    for _ in range(2):
        host = mixed_host(seed, mix, limit_bytes)
        with running(host, settings_for(mix, Mode.APPLY, limit_bytes), tmp_path_factory.mktemp("state")) as run:
            run.go(25.0)
            seen.append([(plan.made_at_s, plan.actions, plan.held_back) for plan in run.plans])

    assert seen[0] == seen[1]


@pytest.mark.timeout(240)
def test_twenty_minutes_in_seconds(tmp_path: Path):
    """Twenty minutes of ticks over ten workloads end, with every promise kept at their end."""
    mix: list[Program] = [
        Constant(name="redis-server", cgroup="lab/redis", size_bytes=525 * MIB),
        Cycle(name="job-a", cgroup="lab/job-a", size_bytes=450 * MIB, offset_s=2.0, jitter_s=0.3),
        Cycle(name="job-b", cgroup="lab/job-b", size_bytes=450 * MIB, offset_s=7.0, jitter_s=0.3),
        Ramp(name="ramp", cgroup="more/ramp", from_bytes=50 * MIB, to_bytes=600 * MIB, ramp_s=600.0),
        Leak(name="leak", cgroup="more/leak", base_bytes=50 * MIB, leak_bytes_per_s=6e5, ceiling_bytes=900 * MIB),
        Burst(name="burst", cgroup="more/burst", base_bytes=50 * MIB, burst_bytes=200 * MIB),
        StartupPeak(name="peak", cgroup="more/peak", peak_bytes=400 * MIB, steady_bytes=99 * MIB, lifetime_s=300.0),
        CacheReader(name="reader", cgroup="more/reader", file_bytes=500 * MIB, read_bytes_per_s=20 * MIB),
        Constant(name="stray-a", size_bytes=100 * MIB),
        Constant(name="stray-b", size_bytes=100 * MIB),
    ]
    host = SimulatedHost(1, workloads=mix, limits={"lab": LAB_BYTES}, total_bytes=4096 * MIB, chunk_bytes=MIB)
    before = budgets(host)
    with running(host, lab_settings(Mode.APPLY), tmp_path) as run:
        run.go(1200.0)
        report = run.agent.close()

    assert report is not None
    assert report.is_complete
    assert budgets(host) == before
    assert host.now_s() >= 2200.0
    assert [host.record(name).oom_kills_count for name in TENANTS] == [0, 0, 0]
