# SPDX-License-Identifier: Apache-2.0
"""What becomes of a real guest's balloon when the guest boots anew, is saved or moves to another QEMU on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt.agent import Agent
from memsculpt.domain.vm import VmReading, VmState
from memsculpt_bench.vms_guests import DailyGuest, DailyMachine
from tests.vm.ballooned import MIB, SERVICE_MIB, WHOLE_BYTES, applying, prepared, serve, until, wait

# Any host that is opened on this machine finds these guests and takes one of their monitors.
pytestmark = [pytest.mark.xdist_group("machine"), pytest.mark.timeout(240)]

UUID = "3d0c1a52-5a0b-4c8e-9e0b-6f2f6d1b7a10"


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> DailyMachine:
    return prepared(tmp_path_factory.mktemp("moves"), "lab-moves", UUID)


@pytest.fixture
def start(machine: DailyMachine, tmp_path: Path) -> Iterator[Callable[..., DailyGuest]]:
    """Start a QEMU for it, each in a folder of its own."""
    with ExitStack() as stack:

        def started(name: str, **changes: Path | None) -> DailyGuest:
            return stack.enter_context(DailyGuest(replace(machine, **changes), tmp_path / name))

        yield started


@pytest.fixture
def guest(start: Callable[..., DailyGuest]) -> DailyGuest:
    booted = start("first")
    serve(booted)
    return booted


@pytest.fixture
def agent(guest: DailyGuest, tmp_path: Path) -> Iterator[Agent]:
    with applying("lab-moves", f"{tmp_path}/*/manager.qmp", tmp_path / "state") as opened:
        yield opened


def reading(agent: Agent) -> VmReading | None:
    """What the agent knows of the VM."""
    seen = agent.report.observation
    found = [one for one in seen.vms if one.id == UUID] if seen is not None else []
    assert len(found) <= 1, "one identity, one reading"
    return found[0] if found else None


def runs_in(agent: Agent, guest: DailyGuest) -> bool:
    """Whether the agent sees it run there, and has its guest's own figures."""
    told = reading(agent)
    if told is None or told.process.pid != guest.pid or told.state is not VmState.RUNNING:
        return False
    return told.guest is not None and agent.report.profiles.guests["vm:lab-moves"].is_told


def test_a_guest_that_boots_anew_keeps_its_vm(guest: DailyGuest, agent: Agent):
    """Reset while its balloon is on its way down: its new need is read, the balloon goes on, and the end undoes it."""
    until(agent, lambda: guest.balloon() < 240 * MIB)
    reset_at_s = time.time()
    with ThreadPoolExecutor(1) as beside:
        booted = beside.submit(guest.boot_anew)
        until(agent, booted.done)
    booted.result()
    # Who boots for longer than the agent is patient is left alone for a minute.
    until(agent, lambda: guest.balloon() < 200 * MIB and guest.statistics_at_s() > reset_at_s, timeout_s=120.0)
    assert runs_in(agent, guest)
    demand = agent.report.profiles.guests["vm:lab-moves"]
    assert demand.swapped_bytes == 0
    assert 0 < demand.need_bytes < guest.balloon()
    assert agent.close().is_complete
    wait(lambda: guest.balloon() == WHOLE_BYTES, guest.balloon)


@pytest.mark.parametrize("way", ["live", "saved"])
def test_a_guest_that_moves_takes_its_balloon_along(guest: DailyGuest, agent: Agent, start, tmp_path, way: str):
    """The same VM in another process: known by its UUID, asked there, and given back there, its memory unchanged."""
    there = start("second", arrives_at=tmp_path / "arrives", state=None) if way == "live" else None
    until(agent, lambda: guest.balloon() < 240 * MIB)
    if there is not None:
        guest.migrate_to(tmp_path / "arrives")
    else:
        guest.save(tmp_path / "saved")
        until(agent, lambda: reading(agent).state in {VmState.PAUSED, VmState.MIGRATING})
        stood = guest.balloon()
        for _ in range(10):
            agent.tick()
        assert guest.balloon() == stood, "who is saved is left alone"
        there = start("second", state=tmp_path / "saved")
    guest.close()
    until(agent, lambda: runs_in(agent, there))
    until(agent, lambda: there.balloon() < 200 * MIB)
    assert there.read().held_bytes == SERVICE_MIB * MIB, "the service lives, and its memory is what it wrote"

    assert agent.close().is_complete
    wait(lambda: there.balloon() == WHOLE_BYTES, there.balloon)
