# SPDX-License-Identifier: Apache-2.0
"""The whole agent and balloons, on the simulated host: guests whose days come one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent import Agent, Tick
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import SetBalloon
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.vm import VmFeatures, VmReading, VmState
from memsculpt.domain.workload import Match
from memsculpt.host.simulated import Driver, SimulatedHost, VirtualMachine

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
NAMES = ("web", "batch", "mail")
RAM_BYTES, DAY_BYTES, NIGHT_BYTES = 512 * MIB, 340 * MIB, 60 * MIB
PERIOD_S, DAY_S, RAMP_S = 60.0, 16.0, 4.0
CAPACITY_BYTES = 800 * MIB  # of three guests: one day and two nights fit, two days do not


def demand(number: int):
    """A day every PERIOD_S, one guest's after the other's."""

    def at(time_s: float) -> int:
        into_s = (time_s - number * PERIOD_S / len(NAMES)) % PERIOD_S
        if into_s >= DAY_S:
            return NIGHT_BYTES
        return NIGHT_BYTES + round((DAY_BYTES - NIGHT_BYTES) * min(into_s / RAMP_S, 1.0))

    return at


def host_of(**more) -> SimulatedHost:
    return SimulatedHost(
        1,
        workloads=tuple(
            VirtualMachine(
                name=name,
                cgroup=f"lab/{name}",
                ram_bytes=RAM_BYTES,
                demand=demand(number),
                swap_bytes=512 * MIB,
                features=VmFeatures(balloon=True, deflate_on_oom=True),
                **more,
            )
            for number, name in enumerate(NAMES)
        ),
        limits={"lab": CAPACITY_BYTES},
    )


def settings_of(mode: Mode = Mode.APPLY) -> Settings:
    return Settings(
        mode=mode,
        capacity_bytes=CAPACITY_BYTES,
        partitions=tuple(PartitionSettings(name=name, match=Match(vm=name)) for name in NAMES),
    )


class Run:
    def __init__(self, host: SimulatedHost, agent: Agent) -> None:
        self.host, self.agent = host, agent
        self.ticks: list[Tick] = []

    def go(self, for_s: float) -> None:
        until_s = self.host.now_s() + for_s
        while self.host.now_s() < until_s:
            self.ticks.append(self.agent.tick())
            self.host.wait_until(min(self.host.now_s() + 1.0, until_s))

    def asks(self, name: str) -> list[SetBalloon]:
        return [
            done.action
            for tick in self.ticks
            for done in tick.applied
            if isinstance(done.action, SetBalloon)
            and done.action.workload == f"vm:{name}"
            and done.status in {Status.DONE, Status.PARTIAL}
        ]


@contextmanager
def running(host: SimulatedHost, state: Path, mode: Mode = Mode.APPLY) -> Iterator[Run]:
    configured = settings_of(mode)
    host.watch(configured.partitions)
    journal = act.Journal.open(state, machine_lock=None) if mode is Mode.APPLY else None
    agent = Agent(host=host, settings=configured, journal=journal)
    try:
        yield Run(host, agent)
    finally:
        agent.close()
        if journal is not None:
            journal.close()


def readings(host: SimulatedHost) -> dict[str, VmReading]:
    return {one.name: one for one in host.observe().vms}


def came_back_bytes(host: SimulatedHost) -> int:
    """What had to come back since the beginning: swapped in by guests, and by the host."""
    seen = host.observe()
    inside = sum(one.guest.swapped_in_bytes or 0 for one in seen.vms if one.guest is not None)
    return inside + 4096 * int(seen.workloads.major_faults_count.sum())


def run_alone(host: SimulatedHost, for_s: float) -> None:
    host.watch(settings_of().partitions)
    until_s = host.now_s() + for_s
    while host.now_s() < until_s:
        host.wait_until(min(host.now_s() + 1.0, until_s))


def test_memory_follows_the_days_and_less_comes_back_than_with_fixed_parts(tmp_path):
    fixed = host_of()
    fixed.wait_until(fixed.now_s() + 1.0)
    for one in fixed.observe().vms:
        fixed.set_balloon(one.id, CAPACITY_BYTES // len(NAMES))
    run_alone(fixed, 360.0)
    before = came_back_bytes(fixed)
    run_alone(fixed, 240.0)
    theirs = came_back_bytes(fixed) - before

    host = host_of()
    with running(host, tmp_path) as run:
        run.go(360.0)
        before = came_back_bytes(host)
        run.go(240.0)
        ours = came_back_bytes(host) - before
        sizes = [readings(host)[name].balloon_bytes for name in NAMES]
    assert ours < theirs / 3
    assert all(run.asks(name) for name in NAMES)
    assert all(one.guest is not None for one in host.observe().vms), "every guest lives"
    assert max(sizes) > 1.5 * min(sizes), "whose day it is has more"


def test_on_the_way_out_every_guest_has_what_it_had(tmp_path):
    host = host_of()
    with running(host, tmp_path) as run:
        run.go(120.0)
        assert any(one.balloon_bytes != RAM_BYTES for one in host.observe().vms)
    host.wait_until(host.now_s() + 5.0)
    assert {one.balloon_bytes for one in host.observe().vms} == {RAM_BYTES}


def test_after_a_crash_the_next_start_gives_back_what_guests_had(tmp_path):
    host = host_of()
    configured = settings_of()
    host.watch(configured.partitions)
    journal = act.Journal.open(tmp_path, machine_lock=None)
    run = Run(host, Agent(host=host, settings=configured, journal=journal))
    run.go(120.0)
    journal.close()  # and nothing else, as if it was killed
    assert any(one.balloon_bytes != RAM_BYTES for one in host.observe().vms)

    again = act.Journal.open(tmp_path, machine_lock=None)
    report = act.restore(host, again)
    again.close()
    host.wait_until(host.now_s() + 5.0)
    assert report.is_complete
    assert {one.balloon_bytes for one in host.observe().vms} == {RAM_BYTES}


def test_observing_asks_no_balloon_but_says_what_it_would(tmp_path):
    host = host_of()
    with running(host, tmp_path, Mode.OBSERVE) as run:
        run.go(120.0)
        planned = [one for tick in run.ticks for one in tick.plan.actions if isinstance(one, SetBalloon)]
    assert planned
    assert {one.balloon_bytes for one in host.observe().vms} == {RAM_BYTES}


def test_what_an_operator_sets_is_left_alone_also_at_the_end(tmp_path):
    host = host_of()
    with running(host, tmp_path) as run:
        run.go(100.0)
        web = readings(host)["web"]
        size = min(web.balloon_bytes, 260 * MIB) - 40 * MIB
        host.set_balloon(web.id, size)
        host.wait_until(host.now_s() + 1.0)
        asked_before = len(run.asks("web"))
        run.go(30.0)
        assert len(run.asks("web")) == asked_before
        assert any(
            one.code == "balloon-rests" and "vm:web" in one.text for tick in run.ticks for one in tick.plan.held_back
        )
    host.wait_until(host.now_s() + 5.0)
    sizes = {name: one.balloon_bytes for name, one in readings(host).items()}
    assert sizes == {"web": size, "batch": RAM_BYTES, "mail": RAM_BYTES}


def test_a_guest_that_ignores_its_balloon_is_left_alone_and_told(tmp_path):
    host = host_of(driver=Driver.DEAF)
    with running(host, tmp_path) as run:
        run.go(120.0)
        refused = [one for name in NAMES for one in run.asks(name) if one.reason.code == "balloon-refused"]
        told = [one.text for tick in run.ticks for one in tick.plan.held_back if one.code == "balloon-rests"]
    assert refused
    assert any("does not follow" in one for one in told)
    assert len([one for name in NAMES for one in run.asks(name)]) < 30


def test_a_guest_that_tells_nothing_keeps_its_memory_and_it_is_said(tmp_path):
    host = host_of(driver=Driver.ABSENT)
    with running(host, tmp_path) as run:
        run.go(60.0)
        assert not [one for name in NAMES for one in run.asks(name)]
        assert any("vm:web" in note and "host's view" in note for note in run.agent.report.notes)


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.MIGRATING])
def test_a_vm_that_is_stopped_while_its_balloon_moves_is_not_blamed_for_it(tmp_path, state):
    """It is not asked and not judged meanwhile, said to be what it is, and ballooned again when it goes on."""
    host = host_of(inflate_bytes_per_s=MIB // 2)
    with running(host, tmp_path) as run:
        while not run.asks("web"):
            run.go(1.0)
            assert len(run.ticks) < 120
        host.set_vm_state("web", state)
        asked_before, ticks_before = len(run.asks("web")), len(run.ticks)
        run.go(25.0)
        assert len(run.asks("web")) == asked_before
        assert len(run.ticks) - ticks_before == 25
        assert readings(host)["web"].state is state
        profiles = run.agent.report.profiles
        assert profiles is not None
        assert state.value in profiles.guests["vm:web"].problem
        assert any("vm:web" in note and state.value in note for note in run.agent.report.notes)

        host.set_vm_state("web", VmState.RUNNING)
        run.go(PERIOD_S)
        assert len(run.asks("web")) > asked_before
        after = run.ticks[ticks_before:]
        assert not any("does not follow" in reason.text for tick in after for reason in tick.plan.held_back)
    assert readings(host)["web"].balloon_bytes is not None
