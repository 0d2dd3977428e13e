# SPDX-License-Identifier: Apache-2.0
"""The agent's thread to real monitors: a real guest's need, its balloon on the way down and back, and whose it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memsculpt.agent import Agent
from memsculpt.domain.outcome import Status
from memsculpt.domain.plan import SetBalloon
from memsculpt_bench.vms_guests import DailyGuest
from tests.vm.ballooned import MIB, SERVICE_MIB, WHOLE_BYTES, applying, prepared, serve, until, wait

# Any host that is opened on this machine finds these guests and takes one of their monitors.
pytestmark = pytest.mark.xdist_group("machine")


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> Iterator[DailyGuest]:
    folder = tmp_path_factory.mktemp("balloon")
    with DailyGuest(prepared(folder, "lab-balloon"), folder / "g") as booted:
        serve(booted)
        yield booted


@pytest.fixture
def agent(guest: DailyGuest, tmp_path: Path) -> Iterator[Agent]:
    with applying("lab-balloon", str(guest.folder / "manager.qmp"), tmp_path / "state") as opened:
        yield opened


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
    wait(lambda: guest.balloon() == WHOLE_BYTES)
    assert guest.read().held_bytes == SERVICE_MIB * MIB, "the service lives, and its memory is what it wrote"


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
    guest.ask("balloon", value=WHOLE_BYTES)
