# SPDX-License-Identifier: Apache-2.0
"""The sculptor at work by itself: which bytes moved when, across partitions, before anybody's swap was needed."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import Verdict
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Sculpt, Settings
from memsculpt.domain.workload import Match
from memsculpt.doors.api import actions
from memsculpt.host.simulated import Constant, Leak, Program, Ramp, SimulatedHost
from tests.agent.test_on_simulated_host import Run, run_alone, running

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
LAB_BYTES = 900 * MIB
GUARANTEE_BYTES = 300 * MIB
GROWS_AT_S = 240.0
# Busy on a half of what it holds: the other half was touched once.
DONOR = Leak(
    name="donor", cgroup="lab/donor", base_bytes=256 * MIB, leak_bytes_per_s=64.0 * MIB, ceiling_bytes=512 * MIB
)
THIRD = Constant(name="third", cgroup="lab/third", size_bytes=100 * MIB, skew=0.0)
RECEIVER = Ramp(
    name="receiver",
    cgroup="lab/receiver",
    begins_at_s=GROWS_AT_S,
    from_bytes=100 * MIB,
    to_bytes=400 * MIB,
    ramp_s=60.0,
)


def lab(*programs: Program) -> SimulatedHost:
    return SimulatedHost(3, workloads=programs or (DONOR, THIRD, RECEIVER), limits={"lab": LAB_BYTES})


def configured(mode: Mode = Mode.APPLY, sculpt: Sculpt = Sculpt.COLD) -> Settings:
    return Settings(
        mode=mode,
        capacity_bytes=LAB_BYTES,
        plan=PlanSettings(sculpt=sculpt),
        partitions=(
            PartitionSettings(name="donor", match=Match(cgroup="lab/donor"), guarantee_bytes=GUARANTEE_BYTES),
            PartitionSettings(name="third", match=Match(cgroup="lab/third")),
            PartitionSettings(name="receiver", match=Match(cgroup="lab/receiver")),
        ),
    )


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    host = lab()
    with running(host, configured(), tmp_path_factory.mktemp("state")) as run:
        run.go(420.0)
        yield run


def resident(run: Run, name: str) -> list[tuple[float, int]]:
    """What a workload had in memory, tick by tick."""
    found: list[tuple[float, int]] = []
    for tick in run.ticks:
        rows = tick.observation.workloads
        if name in rows.ids:
            found.append((tick.observation.time_s, int(rows.resident_bytes[rows.ids.index(name)])))
    return found


def sculpts(run: Run) -> list[Applied]:
    return [one for tick in run.ticks for one in tick.applied if isinstance(one.action, SculptPool)]


def test_the_cold_half_of_a_busy_donor_leaves_before_the_receiver_grows(managed: Run):
    """At each tick the room that the receiver takes until the next one is there already."""
    donor, third, receiver = (resident(managed, f"lab/{name}") for name in ("donor", "third", "receiver"))
    taken = dict(receiver)
    for before, other, (next_s, _) in zip(donor, third, donor[1:], strict=False):
        assert before[1] + other[1] + taken.get(next_s, 0) <= LAB_BYTES
    assert receiver[-1][1] == RECEIVER.to_bytes
    assert DONOR.ceiling_bytes + THIRD.size_bytes + RECEIVER.to_bytes > LAB_BYTES


def test_bytes_are_accounted_for(managed: Run):
    """What the actions say that left is what the donor has lost, all of it after the receiver came up."""
    done = sculpts(managed)
    left_bytes = sum(one.done_bytes for one in done)

    assert {one.action.workload for one in done} == {"lab/donor"}
    assert left_bytes == DONOR.ceiling_bytes - resident(managed, "lab/donor")[-1][1]
    assert left_bytes >= DONOR.ceiling_bytes + THIRD.size_bytes + RECEIVER.to_bytes - LAB_BYTES
    assert min(one.at_s for one in done) - managed.ticks[0].observation.time_s >= GROWS_AT_S
    assert all(one.duration_s > 0.0 for one in done if one.done_bytes)


def test_nobody_faults_nobody_stalls_and_the_guarantee_is_kept(managed: Run):
    """Unmanaged the kernel sends out what it finds when the room is gone, and the receiver waits for it."""
    alone = lab()
    run_alone(alone, 420.0)

    assert alone.record("receiver").stall_s > 0.0
    for name in ("donor", "third", "receiver"):
        assert managed.host.record(name).major_faults_count == 0
        assert managed.host.record(name).stall_s == 0.0
    grown = [size for at_s, size in resident(managed, "lab/donor") if at_s - managed.ticks[0].observation.time_s > 60.0]
    assert min(grown) >= GUARANTEE_BYTES
    assert managed.agent.report.pools[0].verdict is Verdict.PAID


def test_an_action_tells_why(managed: Run):
    """As `memsculpt explain` prints it."""
    first = sculpts(managed)[0]
    told = actions.view_explanation(replace(managed.agent.report, applied=(first,)), first.action_id)

    assert told.applied.action.kind == "sculpt-pool"
    assert told.applied.action.size_bytes == first.action.size_bytes
    assert "cold blocks of pool lab/donor" in told.explanation[0]
    assert "above the target of" in told.explanation[0]
    assert told.explanation[1].startswith(first.status.value)


def test_observing_shows_it_and_moves_nothing(tmp_path: Path):
    with running(lab(), configured(Mode.OBSERVE), tmp_path) as run:
        run.go(260.0)  # until shortly before the room is gone

    assert {one.status for one in sculpts(run)} == {Status.REHEARSED}
    assert resident(run, "lab/donor")[-1][1] == DONOR.ceiling_bytes


def test_switched_off_nothing_is_sculpted(tmp_path: Path):
    with running(lab(), configured(sculpt=Sculpt.OFF), tmp_path) as run:
        run.go(300.0)

    assert sculpts(run) == []


def test_hot_blocks_are_gathered_once_a_minute_at_most(tmp_path: Path):
    """A part at a time, where it was asked for; all that is worth it is gathered in the end."""
    busy = Constant(name="donor", cgroup="lab/donor", size_bytes=128 * MIB, touches_per_s=20_000.0, skew=0.0)
    with running(lab(busy, THIRD, RECEIVER), configured(sculpt=Sculpt.ALL), tmp_path) as run:
        run.go(150.0)
        gathered = [one for one in sculpts(run) if one.action.workload == "lab/donor"]
        pool = next(one for one in run.agent.report.pools if one.pool == "lab/donor")

    assert {one.status for one in gathered} == {Status.DONE}
    assert sum(one.done_bytes for one in gathered) == pool.collapsed_bytes == busy.size_bytes
    times = [one.at_s for one in gathered]
    assert all(after - before >= 60.0 for before, after in pairwise(times))
