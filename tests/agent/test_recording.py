# SPDX-License-Identifier: Apache-2.0
"""The agent on a simulated host keeps what it sees, and a second agent finds it again."""

import json

import pytest

from memsculpt import profile
from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, ProfileSettings, Settings
from memsculpt.domain.workload import CgroupPath, Match, WorkloadId
from memsculpt.host.simulated import Constant, Cycle, SimulatedHost
from memsculpt.profile.store import Reader

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
BEGIN_S = 1_800_000_000 // 3600 * 3600
REDIS, JOB = WorkloadId("lab/redis"), WorkloadId("lab/job")


def live(folder, begin_s: float, seconds: int, **keep) -> Agent:
    host = SimulatedHost(
        0,
        workloads=(
            Constant(name="redis-server", cgroup="lab/redis", size_bytes=525 * MIB),
            Cycle(name="job", cgroup="lab/job", size_bytes=450 * MIB, offset_s=2.0),
        ),
        limits={"lab": 1150 * MIB},
    )
    settings = Settings(
        capacity_bytes=1150 * MIB,
        partitions=(PartitionSettings(name="redis", match=Match(cgroup=CgroupPath("lab/redis"))),),
    )
    host.watch(settings.partitions)
    start_s = host.now_s()
    recorder = profile.Recorder(
        str(folder), ProfileSettings(**keep), clock_s=lambda: begin_s + host.now_s() - start_s, interval_s=1.0
    )
    agent = Agent(host=host, settings=settings, recorder=recorder)
    for _ in range(seconds):
        agent.tick()
        host.wait_until(host.now_s() + 1.0)
    recorder.close()
    return agent


def test_what_an_agent_saw_is_there_for_the_next(tmp_path):
    """Sizes as the host has them, forecasts beside them, rates unknown at the first tick only."""
    live(tmp_path, BEGIN_S, 200)
    agent = live(tmp_path, BEGIN_S + 1000, 100)
    reader = Reader.open(tmp_path)
    found = reader.last(REDIS, 1, 2000)

    assert (found.start_s, len(found.values)) == (BEGIN_S, 1100)
    needed, is_known = found.column("needed_bytes")
    assert is_known.sum() == 300
    seen = agent.report.profiles.needed_bytes[agent.report.profiles.ids.index(REDIS)]
    assert needed[-1] == pytest.approx(float(seen), rel=1e-3)
    high, _ = found.column("forecast_high_bytes")
    assert (high[is_known] > 0).sum() > 250
    assert found.column("cpu_ratio")[1].sum() == 298
    assert reader.last(JOB, 10, 5).is_valid[:, 0].all()
    assert agent.report.notes == ()
    reader.close()


def test_the_heat_of_sensed_workloads_is_summarised(tmp_path):
    live(tmp_path, BEGIN_S, 60)
    reader = Reader.open(tmp_path)
    content = reader.get(REDIS, "heat")
    assert content is not None
    told = json.loads(content)
    assert told["resident_bytes"] > 0
    assert len(told["windows_s"]) == len(told["working_set_bytes"])
    assert reader.get(JOB, "heat") is None
    reader.close()


def test_a_store_that_cannot_be_written_is_a_note_and_ticks_go_on(tmp_path):
    (tmp_path / "file").write_text("in the way\n")
    agent = live(tmp_path / "file", BEGIN_S, 130)
    assert agent.report.tick_count == 130
    assert agent.report.failed_count == 0
    (note,) = agent.report.notes
    assert note.startswith("profiles are not kept")
