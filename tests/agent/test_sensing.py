# SPDX-License-Identifier: Apache-2.0
"""The agent looks at pages: on the simulated host, over simulated minutes."""

from dataclasses import replace

import numpy as np
import pytest

from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, SenseSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.host.simulated import Constant, SimulatedHost

MIB = 1 << 20
PROGRAMS = (
    Constant(name="steady", cgroup="steady", size_bytes=256 * MIB),
    Constant(name="phased", cgroup="phased", size_bytes=128 * MIB),
)


def run(budget, seconds=90, partitions=True):
    host = SimulatedHost(1, total_bytes=4096 * MIB, swap_bytes=1024 * MIB, workloads=PROGRAMS)
    names = tuple(PartitionSettings(name=one, match=Match(cgroup=one)) for one in ("steady", "phased") if partitions)
    settings = Settings(partitions=names, sense=SenseSettings(budget_ratio=budget))
    host.watch(settings.partitions)
    agent = Agent(host=host, settings=settings)
    for _ in range(seconds):
        agent.tick()
        host.wait_until(host.now_s() + 1.0)
    return agent


def test_working_sets_are_known_after_their_window():
    heat = run(0.5).report.heat
    assert heat is not None
    assert set(heat.ids) == {"steady", "phased"}
    assert heat.source == "simulated"
    assert np.all(heat.covered_ratio == 1.0)
    assert np.all(heat.working_set_bytes[:, 1] <= heat.resident_bytes)
    assert np.all(heat.working_set_bytes[:, 1] <= heat.working_set_bytes[:, 2])
    assert not np.isnan(heat.working_set_bytes[:, 2]).any()
    assert np.all(heat.interval_s >= 9.9)


@pytest.mark.parametrize(("budget", "partitions"), [(0.0, True), (0.5, False)])
def test_nobody_is_looked_at_who_was_not_named(budget, partitions):
    """Without a budget, and outside every partition."""
    agent = run(budget, seconds=15, partitions=partitions)
    assert agent.report.heat is None


def test_a_dead_process_is_no_failure():
    agent = run(0.5, seconds=20)
    assert agent.report.failed_count == 0
    assert replace(agent.report.heat).notes == ()
