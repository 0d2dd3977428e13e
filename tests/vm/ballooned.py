# SPDX-License-Identifier: Apache-2.0
"""What tests of balloons stand on: a real guest that gave memory up, and an agent with too little room for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent import Agent
from memsculpt.domain.plan import SetBalloon
from memsculpt.domain.settings import Mode, PartitionSettings, Settings, VmSettings
from memsculpt.domain.workload import Match
from memsculpt.host import open_host
from memsculpt_bench import vms_guests
from memsculpt_bench.guests import debian, lab
from memsculpt_bench.vms_guests import DailyGuest, DailyMachine

MIB = 1 << 20
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "setpriv": "util-linux"}
WHOLE_BYTES, CAPACITY_BYTES = 256 * MIB, 180 * MIB
SERVICE_MIB = 20


def prepared(folder: Path, name: str, uuid: str = "") -> DailyMachine:
    """Return a machine of WHOLE_BYTES that was booted and saved, or skip with the lab's reason."""
    possible, reason = lab.probe(PROGRAMS)
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    try:
        made = vms_guests.prepare(folder, memory_bytes=WHOLE_BYTES)
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    return replace(made, name=name, uuid=uuid)


def serve(guest: DailyGuest) -> None:
    """Start a service that works on SERVICE_MIB, and has 120 MiB for a moment at first."""
    guest.serve(SERVICE_MIB, 120, 3_600_000, 1500, 500, 0)


@contextmanager
def applying(name: str, sockets: str, folder: Path) -> Iterator[Agent]:
    """Open an agent with a partition for the VM of that name, which is too small for what its QEMU holds."""
    settings = Settings(
        mode=Mode.APPLY,
        interval_s=0.2,
        capacity_bytes=CAPACITY_BYTES,
        vms=VmSettings(discover=False, sockets=(sockets,), floor_bytes=64 * MIB),
        partitions=(PartitionSettings(name="vm", match=Match(vm=name)),),
    )
    host = open_host(settings)
    journal = act.Journal.open(folder, machine_lock=None)
    try:
        host.watch(settings.partitions)
        yield Agent(host=host, settings=settings, journal=journal)
    finally:
        journal.close()
        host.close()


def until(agent: Agent, condition: Callable[[], bool], *, timeout_s: float = 45.0) -> None:
    """Tick a few times a second until it holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, why(agent)
        agent.tick()
        time.sleep(0.2)


def why(agent: Agent) -> str:
    """What is known when something has not come to hold."""
    report = agent.report
    asks = [one.action for one in report.applied if isinstance(one.action, SetBalloon)]
    asked = [(one.from_bytes // MIB, one.to_bytes // MIB) for one in asks]
    vms = report.observation.vms if report.observation is not None else ()
    return f"{vms}\nasked {asked}\n{report.notes}\n{report.profiles}\n{report.plan}"


def wait(condition: Callable[[], bool], told: Callable[[], object] = str) -> None:
    """Poll until it holds."""
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s, told()
        time.sleep(0.05)
