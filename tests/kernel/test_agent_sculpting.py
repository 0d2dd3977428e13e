# SPDX-License-Identifier: Apache-2.0
"""The whole agent on the real kernel, tick by tick: what it sculpts by itself, under a limit and under shortage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent import Agent
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import ColdZone, Prefetch
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Sculpt, SenseSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from tests.kernel.conftest import MIB, Child, remove

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/agent runs the whole agent on the simulated host"),
    pytest.mark.needs("zram_control"),
    pytest.mark.needs("page_walk"),
    pytest.mark.needs("page_out"),
    pytest.mark.usefixtures("own_swap"),
    pytest.mark.timeout(300),
]

CODE = Path(__file__).with_name("turner.py").read_text()
TICK_S = 0.5


@dataclass
class Run:
    """An agent on this machine, and what it did."""

    host: Host
    agent: Agent
    applied: list[Applied] = field(default_factory=list)

    def tick(self, until_s: float) -> None:
        self.applied.extend(self.agent.tick().applied)
        self.host.wait_until(until_s)

    def sculpts(self, kind: type) -> list[Applied]:
        found = [one for one in self.applied if isinstance(one.action, SculptPool)]
        return [one for one in found if isinstance(one.action.request, kind) and one.status is not Status.FAILED]


@contextmanager
def running(settings: Settings, state: Path) -> Iterator[Run]:
    host = open_host(settings)
    journal = act.Journal.open(state, machine_lock=None)
    try:
        host.watch(settings.partitions)
        agent = Agent(host=host, settings=settings, journal=journal)
        try:
            yield Run(host=host, agent=agent)
        finally:
            agent.close()
    finally:
        journal.close()
        host.close()


def configured(capacity_bytes: int, sculpt: Sculpt, *cgroups: str) -> Settings:
    return Settings(
        mode=Mode.APPLY,
        interval_s=TICK_S,
        capacity_bytes=capacity_bytes,
        # The budget is a share of a processor that this process uses, too: tests take more than an agent.
        sense=SenseSettings(budget_ratio=0.5, interval_s=TICK_S),
        plan=PlanSettings(sculpt=sculpt),
        partitions=tuple(PartitionSettings(name=each, match=Match(cgroup=each)) for each in cgroups),
    )


@pytest.fixture
def folders(own_folder: Path) -> Iterator[list[Path]]:
    """Two cgroups below one of our own: the agent steers their limits, and that of the one above is the machine's."""
    found = [own_folder / name for name in ("first", "second")]
    for folder in found:
        folder.mkdir()
    yield found
    for folder in found:
        remove(folder)


@pytest.fixture
def begin(folders, start):
    def begun(folder: Path, size_bytes: int) -> Child:
        return start(CODE.replace("sys.argv[1]", str(size_bytes)), folder)

    return begun


def test_sets_used_in_turn_come_back_before_their_turn(begin, own_folder, folders, own_cgroup_name, tmp_path):
    """A program that is told which set to use, under a limit for one and a half: its set is there when it begins.

    Not every turn is asserted: on a busy machine a move may come too late for one.
    """
    (own_folder / "memory.limit_in_bytes").write_text(str(80 * MIB))
    child = begin(folders[0], 48 * MIB)
    limit = (folders[0] / "memory.limit_in_bytes").read_text()
    before = child.ask("checksum")
    faults: list[int] = []
    brought: list[int] = []  # in the pause before each turn
    settings = configured(80 * MIB, Sculpt.ALL, f"{own_cgroup_name}/first")
    with running(settings, tmp_path / "state") as run:
        for turn in range(14):
            faults.append(0)
            brought.append(sum(one.done_bytes for one in run.sculpts(Prefetch)) - sum(brought))
            for step in range(12):
                next_s = run.host.now_s() + TICK_S
                if step < 3:
                    faults[-1] += int(child.ask(f"use {turn % 2}"))
                run.tick(next_s)
        (pool,) = run.agent.report.pools

    told = f"faults by turn {faults}, brought before {brought}, {pool}"
    pages = 48 * MIB // 4096
    served = [count for count, size in zip(faults, brought, strict=True) if size >= 8 * MIB]
    alone = [count for count, size in zip(faults[1:], brought[1:], strict=True) if size == 0]
    assert served, told
    assert sorted(served)[len(served) // 2] < 0.05 * pages, told
    assert sorted(alone)[len(alone) // 2] > 0.4 * pages, told  # read in order, the kernel sends out what comes next
    assert {one.status for one in run.sculpts(Prefetch)} <= {Status.DONE, Status.PARTIAL}
    assert pool.brought_in_bytes == sum(one.done_bytes for one in run.sculpts(Prefetch))
    assert child.ask("checksum") == before
    assert (folders[0] / "memory.limit_in_bytes").read_text() == limit


def test_cold_blocks_of_a_busy_process_leave_under_shortage(begin, folders, own_cgroup_name, tmp_path):
    """One works on half of its memory, another grows until both no longer fit: the unused half makes the room."""
    donor, receiver = begin(folders[0], 48 * MIB), begin(folders[1], 4 * MIB)
    before = donor.ask("checksum")
    settings = configured(200 * MIB, Sculpt.COLD, *(f"{own_cgroup_name}/{one.name}" for one in folders))
    with running(settings, tmp_path / "state") as run:
        for number in range(60):
            next_s = run.host.now_s() + TICK_S
            donor.ask("use 0")
            if number >= 30 and number % 2 == 0 and not run.sculpts(ColdZone):
                receiver.ask(f"grow {6 * MIB}")
            run.tick(next_s)
            if run.sculpts(ColdZone) and number >= 50:
                break
        pools = {one.pool: one for one in run.agent.report.pools}
        left = run.sculpts(ColdZone)
        told = f"{pools}, {run.agent.report.plan}"

    assert left, told
    assert {one.action.workload for one in left} == {f"{own_cgroup_name}/first"}
    assert sum(one.done_bytes for one in left) >= 4 * MIB
    assert pools[f"{own_cgroup_name}/first"].paged_out_bytes == sum(one.done_bytes for one in left)
    assert donor.ask("use 0") == "0", told
    assert donor.ask("checksum") == before
