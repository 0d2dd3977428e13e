# SPDX-License-Identifier: Apache-2.0
"""The agent on a simulated machine with a slow node: what goes there, what comes back, and what an end leaves."""

from dataclasses import replace
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import ColdTo, ColdZone, Promote, Tier, Verdict
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.host.simulated import Cycle, Leak, Ramp, SimulatedHost
from tests.agent.test_on_simulated_host import Run, running
from tests.agent.test_sculpting import LEAKS, SETTINGS, Scene

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
ALL = [(0, 1 << 47)]
# Works on 128 MiB and has touched the other 256 MiB once; a second one comes when that is long cold.
DONOR = Leak(name="donor", cgroup="donor", base_bytes=128 * MIB, leak_bytes_per_s=64.0 * MIB, ceiling_bytes=384 * MIB)
COMES = Ramp(name="comes", cgroup="comes", begins_at_s=300.0, from_bytes=100 * MIB, to_bytes=300 * MIB, ramp_s=60.0)


def slow_bytes(host: SimulatedHost, program: str) -> int:
    (process,) = host.instances(program)
    return int((host.slow_runs(process, ALL) @ [-1, 1]).sum())


def test_what_leaked_goes_to_the_slow_node_without_any_swap():
    """No page leaves memory, and the tier of its blocks says where it lies."""
    scene = Scene(LEAKS, swap_bytes=0, slow_bytes=512 * MIB)
    scene.watch(160)
    stats = scene.sculpt(ColdZone(size_bytes=512 * MIB))
    assert stats.verdict is Verdict.UNDER_WAY
    assert stats.to_slow_node_bytes == stats.on_slow_node_bytes == slow_bytes(scene.host, "web")
    assert stats.to_slow_node_bytes == pytest.approx(192 * MIB, abs=4 * MIB)
    assert (stats.paged_out_bytes, stats.resident_after_bytes) == (0, stats.resident_before_bytes)
    assert "to the slow node, where it is used without a fault" in stats.reason
    (known,) = scene.sculpting.kept
    assert int((known.blocks.tier == Tier.SLOW).sum()) * known.blocks.pool.block_bytes == stats.on_slow_node_bytes
    (settled,) = scene.watch(130)
    assert settled.verdict is Verdict.PAID
    assert settled.reason == "0% of what went to the slow node was in use again"


def test_what_does_not_fit_there_goes_to_the_swap():
    scene = Scene(LEAKS, slow_bytes=64 * MIB)
    scene.watch(160)
    stats = scene.sculpt(ColdZone(size_bytes=512 * MIB))
    assert stats.to_slow_node_bytes == 60 * MIB
    assert stats.paged_out_bytes == pytest.approx(132 * MIB, abs=4 * MIB)


def test_what_is_in_use_there_comes_back_and_a_bad_bet_is_taken_back():
    """A program that sleeps for long and then wants everything: it runs on without a fault, and is brought back."""
    program = Cycle(
        name="web", cgroup="web", size_bytes=128 * MIB, period_s=400.0, work_s=40.0, touch_hz=4.0, offset_s=1.0
    )
    scene = Scene(program, slow_bytes=512 * MIB)
    scene.watch(360)
    stats = scene.sculpt(ColdZone(size_bytes=128 * MIB))
    assert stats.to_slow_node_bytes > 64 * MIB
    faults_count = scene.host.record("web").major_faults_count
    scene.watch(60)
    (summary,) = scene.sculpting.summaries(scene.host.observe())
    assert summary.returned_bytes > 32 * MIB
    back = scene.sculpt(Promote(size_bytes=16 * MIB))
    assert back.from_slow_node_bytes == 16 * MIB
    assert scene.host.record("web").major_faults_count == faults_count
    settled = scene.watch(400)
    assert Verdict.UNDONE in [one.verdict for one in settled]
    assert slow_bytes(scene.host, "web") == 0


def test_an_end_brings_back_what_lies_there():
    scene = Scene(LEAKS, slow_bytes=512 * MIB)
    scene.watch(160)
    scene.sculpt(ColdZone(size_bytes=512 * MIB))
    assert slow_bytes(scene.host, "web") > 0
    scene.sculpting.close(may_act=True)
    assert slow_bytes(scene.host, "web") == 0


def test_what_a_killed_agent_left_there_comes_back_by_the_journal_alone(tmp_path: Path):
    """The journal names the process before the first page moves; who has ended meanwhile is gone."""
    scene = Scene(LEAKS, slow_bytes=512 * MIB)
    journal = act.Journal.open(tmp_path, machine_lock=None, boot="b")
    scene.sculpting = Sculpting(scene.host, SETTINGS, journal=journal)
    scene.watch(160)
    scene.sculpt(ColdZone(size_bytes=512 * MIB))
    moved_bytes = slow_bytes(scene.host, "web")
    assert moved_bytes > 0
    journal.close()

    found = act.Journal.open(tmp_path, machine_lock=None, boot="b")
    report = act.restore(scene.host, found)
    (process,) = scene.host.instances("web")
    (done,) = report.changes
    assert done.what == f"pages of pid {process.pid} on a slow node"
    assert (done.outcome, done.value) == (act.Outcome.RESTORED, f"{moved_bytes >> 20} MiB came back")
    assert slow_bytes(scene.host, "web") == 0
    assert found.ledger.changes == ()
    found.close()


def test_a_process_that_has_ended_is_not_kept_in_the_journal(tmp_path: Path):
    scene = Scene(LEAKS, slow_bytes=512 * MIB)
    journal = act.Journal.open(tmp_path, machine_lock=None, boot="b")
    scene.sculpting = Sculpting(scene.host, SETTINGS, journal=journal)
    scene.watch(160)
    scene.sculpt(ColdZone(size_bytes=512 * MIB))
    (process,) = scene.host.instances("web")
    assert journal.ledger.is_on_slow_node(process)
    scene.host.kill(process)
    scene.watch(5)
    assert not journal.ledger.is_on_slow_node(process)
    journal.close()


def machine() -> SimulatedHost:
    """512 MiB of fast memory, which both programs do not fit in, and three times as much that is slow."""
    return SimulatedHost(3, total_bytes=2048 * MIB, slow_bytes=1536 * MIB, workloads=(DONOR, COMES))


def configured(*, slow_node: bool = True, mode: Mode = Mode.APPLY) -> Settings:
    return Settings(
        mode=mode,
        plan=PlanSettings(slow_node=slow_node),
        partitions=(
            PartitionSettings(name="donor", match=Match(cgroup="donor")),
            PartitionSettings(name="comes", match=Match(cgroup="comes")),
        ),
    )


def sculpts(run: Run) -> list[SculptPool]:
    return [one.action for tick in run.ticks for one in tick.applied if isinstance(one.action, SculptPool)]


def test_the_agent_makes_room_on_the_fast_node_by_itself(tmp_path: Path):
    """What the newcomer works on lies near it, and nobody is swapped; without it, it works on the slow node."""
    host = machine()
    with running(host, configured(), tmp_path / "on") as run:
        run.go(420.0)
        actions = sculpts(run)
        assert {one.workload for one in actions} == {"donor"}
        assert all(one.is_demotion for one in actions)
        assert {one.reason.code for one in actions} == {"slow-node"}
        assert slow_bytes(host, "donor") >= 172 * MIB
        assert slow_bytes(host, "comes") == 0
        pool = next(one for one in run.agent.report.pools if one.pool == "donor")
        assert pool.on_slow_node_bytes == slow_bytes(host, "donor")
        assert host.record("donor").major_faults_count == host.record("comes").major_faults_count == 0

    left = machine()
    with running(left, configured(slow_node=False), tmp_path / "off") as run:
        run.go(420.0)
        assert sculpts(run) == []
        assert slow_bytes(left, "donor") == 0
        assert slow_bytes(left, "comes") == 172 * MIB


def test_pages_that_the_kernel_puts_there_come_back_when_they_are_used(tmp_path: Path):
    """The newcomer takes more than is free at once; then its own pages and the cold ones of the other change places."""
    rushes = replace(COMES, from_bytes=300 * MIB)
    host = SimulatedHost(3, total_bytes=2048 * MIB, slow_bytes=1536 * MIB, workloads=(DONOR, rushes))
    with running(host, configured(), tmp_path) as run:
        run.go(310.0)
        assert slow_bytes(host, "comes") > 100 * MIB
        run.go(200.0)
        assert slow_bytes(host, "comes") <= 16 * MIB
        back = [one for one in sculpts(run) if isinstance(one.request, Promote)]
        assert {one.workload for one in back} == {"comes"}
        pool = next(one for one in run.agent.report.pools if one.pool == "comes")
        assert pool.from_slow_node_bytes >= 100 * MIB


def test_observing_says_what_would_go_there(tmp_path: Path):
    host = machine()
    with running(host, configured(mode=Mode.OBSERVE), tmp_path) as run:
        run.go(330.0)
        asked = [one.request for one in sculpts(run)]
    assert asked
    assert {one.to for one in asked if isinstance(one, ColdZone)} == {ColdTo.SLOW_NODE}
    assert slow_bytes(host, "donor") == 0
