# SPDX-License-Identifier: Apache-2.0
"""The agent's thread to real monitors: a real guest's need, its balloon on the way down and back, and whose it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent import Agent
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import SetBalloon
from memsculpt.domain.settings import Mode, PartitionSettings, Settings, VmSettings
from memsculpt.domain.workload import Match
from memsculpt.host import open_host
from memsculpt_bench import vms_guests
from memsculpt_bench.guests import debian, lab
from memsculpt_bench.vms_guests import DailyGuest

# Any host that is opened on this machine finds these guests and takes one of their monitors.
pytestmark = pytest.mark.xdist_group("machine")

MIB = 1 << 20
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "setpriv": "util-linux"}


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> Iterator[DailyGuest]:
    """A guest of 256 MiB whose service works on 20 MiB, and which had 120 MiB for a moment."""
    possible, reason = lab.probe(PROGRAMS)
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    folder = tmp_path_factory.mktemp("balloon")
    try:
        machine = vms_guests.prepare(folder, memory_bytes=256 * MIB)
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    with DailyGuest(replace(machine, name="lab-balloon"), folder / "g") as booted:
        booted.serve(20, 120, 3_600_000, 1500, 500, 0)
        yield booted


def until(agent: Agent, condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Tick a few times a second until it holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, (agent.report.notes, agent.report.plan, agent.report.profiles)
        agent.tick()
        time.sleep(0.2)


def wait(condition: Callable[[], bool]) -> None:
    """Poll until it holds."""
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture
def agent(guest: DailyGuest, tmp_path: Path) -> Iterator[Agent]:
    """An agent with a partition for the guest that is too small for what its QEMU holds."""
    settings = Settings(
        mode=Mode.APPLY,
        interval_s=0.2,
        capacity_bytes=180 * MIB,
        vms=VmSettings(discover=False, sockets=(str(guest.folder / "manager.qmp"),), floor_bytes=64 * MIB),
        partitions=(PartitionSettings(name="vm", match=Match(vm="lab-balloon")),),
    )
    host = open_host(settings)
    journal = act.Journal.open(tmp_path / "state", machine_lock=None)
    try:
        host.watch(settings.partitions)
        yield Agent(host=host, settings=settings, journal=journal)
    finally:
        journal.close()
        host.close()


@pytest.mark.timeout(90)
def test_a_real_guests_memory_is_taken_and_given_back(guest: DailyGuest, agent: Agent):
    """Taken, journalled, down to what the guest needs and a margin; at the end everything is as it was."""
    until(agent, lambda: guest.balloon() < 200 * MIB)
    asks = [one for one in agent.report.applied if isinstance(one.action, SetBalloon)]
    demand = agent.report.profiles.guests["vm:lab-balloon"]
    assert asks
    assert {one.status for one in asks} == {Status.DONE}
    assert 40 * MIB < demand.need_bytes < min(one.action.to_bytes for one in asks)
    assert demand.overhead_bytes > 20 * MIB

    report = agent.close()
    assert report.is_complete
    wait(lambda: guest.balloon() == 256 * MIB)
    assert guest.read().held_bytes == 20 * MIB, "the service lives, and its memory is what it wrote"


@pytest.mark.timeout(90)
def test_an_operators_request_is_the_last_word(guest: DailyGuest, agent: Agent):
    """The agent stands back at once, says so, and does not put back what is not its own any more."""

    def is_at_rest() -> bool:
        """Whether it is where it was last asked for: on the way there every value is the agent's own."""
        asks = [one.action for one in agent.report.applied if isinstance(one.action, SetBalloon)]
        goes_on = any(isinstance(one, SetBalloon) for one in agent.report.plan.actions)
        return bool(asks) and not goes_on and abs(guest.balloon() - asks[-1].to_bytes) <= MIB

    until(agent, lambda: guest.balloon() < 200 * MIB and is_at_rest())
    size = guest.balloon() - 24 * MIB
    guest.ask("balloon", value=size)
    wait(lambda: guest.balloon() == size)
    until(agent, lambda: "balloon-rests" in {one.code for one in agent.report.plan.held_back})
    agent.close()
    time.sleep(0.5)  # long enough for a balloon to move by 64 MiB and more
    assert guest.balloon() == size
    guest.ask("balloon", value=256 * MIB)
