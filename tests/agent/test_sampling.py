# SPDX-License-Identifier: Apache-2.0
"""The agent samples the page faults of critical partitions: on the simulated host, over simulated minutes."""

from math import isclose

import pytest

from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, SenseSettings, Settings
from memsculpt.domain.workload import Match, WorkloadId
from memsculpt.errors import Refused
from memsculpt.host import drilldown
from memsculpt.host.simulated import Constant, Leak, SimulatedHost

MIB = 1 << 20
LEAK = Leak(name="leaky", cgroup="leaky", base_bytes=16 * MIB, leak_bytes_per_s=4.0 * MIB, ceiling_bytes=512 * MIB)
OTHER = Constant(name="steady", cgroup="steady", size_bytes=64 * MIB)
BRIEF = Leak(
    name="brief",
    cgroup="leaky",
    base_bytes=MIB,
    leak_bytes_per_s=8.0 * MIB,
    ceiling_bytes=64 * MIB,
    begins_at_s=5.0,
    lifetime_s=4.0,
    comes_back_after_s=2.0,
)


class Scene:
    def __init__(self, *, budget=0.5, critical=("leaky",), programs=(LEAK, OTHER), **host):
        self.host = SimulatedHost(1, total_bytes=4096 * MIB, workloads=programs, **host)
        names = ("leaky", "steady")
        settings = Settings(
            partitions=tuple(
                PartitionSettings(name=one, match=Match(cgroup=one), critical=one in critical) for one in names
            ),
            sense=SenseSettings(budget_ratio=budget),
        )
        self.host.watch(settings.partitions)
        self.agent = Agent(host=self.host, settings=settings)

    def live(self, seconds):
        for _ in range(seconds):
            self.agent.tick()
            self.host.wait_until(self.host.now_s() + 1.0)

    def growth(self, name):
        answer = self.agent.ask_growth(WorkloadId(name))
        self.agent.tick()
        return answer.result(timeout=0)


def test_what_a_leak_brings_is_known_by_function_and_held():
    """At first every page is recorded: the figures are exact, and nothing is unsure."""
    scene = Scene()
    scene.live(20)
    found = scene.growth("leaky")
    assert found.sampled_every == 1
    assert found.grown_bytes > 60 * MIB
    assert isclose(sum(one.touched_bytes for one in found.stacks), found.grown_bytes, rel_tol=0.05)
    assert isclose(sum(one.held_bytes for one in found.stacks), found.grown_bytes, rel_tol=0.05)
    stacks, notes = drilldown.name_stacks(found.modules, found.stacks)
    named = {one.frames: one.touched_bytes for one in stacks}
    fill = named[("fill", "/usr/bin/leaky"), ("serve", "/usr/bin/leaky"), ("main", "/usr/bin/leaky")]
    grow = named[("grow", "/usr/bin/leaky"), ("main", "/usr/bin/leaky")]
    assert len(named) == 2
    assert fill / grow == pytest.approx(3.0, rel=0.1)
    assert notes == ()


def test_only_critical_partitions_are_sampled():
    scene = Scene()
    scene.live(5)
    assert [one.id for one in scene.agent.report.growth.workloads] == ["leaky"]
    with pytest.raises(Refused, match="not sampled"):
        scene.growth("steady")


@pytest.mark.parametrize(("budget", "critical"), [(0.5, ()), (0.0, ("leaky",))])
def test_nothing_is_sampled_that_was_not_asked_for(budget, critical):
    scene = Scene(budget=budget, critical=critical)
    scene.live(5)
    assert scene.agent.report.growth is None
    with pytest.raises(Refused):
        scene.growth("leaky")


def test_the_same_run_gives_the_same_samples():
    def once():
        scene = Scene()
        scene.live(15)
        return scene.growth("leaky")

    assert once() == once()


def test_processes_come_and_go_and_what_they_brought_is_not_held():
    """Each life brings its memory anew: touched again and again, held only while it lives."""
    scene = Scene(programs=(LEAK, OTHER, BRIEF))
    scene.live(60)
    assert scene.agent.report.failed_count == 0
    found = scene.growth("leaky")
    stacks, _ = drilldown.name_stacks(found.modules, found.stacks)
    brief = [one for one in stacks if one.frames[0][1] == "/usr/bin/brief"]
    assert sum(one.touched_bytes for one in brief) > 100 * MIB
    assert sum(one.held_bytes for one in brief) <= 33 * MIB
    assert scene.agent.report.growth.workloads[0].process_count <= 2


def test_more_than_the_log_can_hold_is_thinned_out_and_still_true():
    """Small chunks make many faults; the estimate stays within its error."""
    fast = Leak(name="leaky", cgroup="leaky", base_bytes=16 * MIB, leak_bytes_per_s=3.0 * MIB, ceiling_bytes=1 << 31)
    scene = Scene(programs=(fast, OTHER), critical=("leaky",), chunk_bytes=4096)
    scene.live(60)
    found = scene.growth("leaky")
    assert found.sampled_every > 1
    touched = sum(one.touched_bytes for one in found.stacks)
    error = 3.0 * sum(one.touched_variance for one in found.stacks) ** 0.5
    assert error < 0.1 * touched
    assert abs(touched - found.grown_bytes) <= error + 0.02 * touched


def test_who_asks_while_it_ends_is_told():
    scene = Scene()
    scene.live(2)
    asked = scene.agent.ask_growth(WorkloadId("leaky"))
    scene.agent.close()
    with pytest.raises(Refused, match="is ending"):
        asked.result(timeout=0)
