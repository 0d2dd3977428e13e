# SPDX-License-Identifier: Apache-2.0
"""The agent looks hours ahead, from what its store has kept."""

from memsculpt import profile
from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, ProfileSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.host.simulated import Constant, SimulatedHost

MIB = 1 << 20


def test_a_workload_whose_history_is_kept_has_an_outlook(tmp_path):
    """After a quarter of an hour, for workloads of partitions only; it lies near what they need."""
    programs = (
        Constant(name="named", cgroup="named", size_bytes=256 * MIB),
        Constant(name="other", cgroup="other", size_bytes=128 * MIB),
    )
    host = SimulatedHost(1, total_bytes=4096 * MIB, swap_bytes=1024 * MIB, workloads=programs)
    settings = Settings(interval_s=5.0, partitions=(PartitionSettings(name="named", match=Match(cgroup="named")),))
    host.watch(settings.partitions)
    began_s = host.now_s()
    recorder = profile.Recorder(
        str(tmp_path), ProfileSettings(), clock_s=lambda: 1_800_000_000.0 + host.now_s() - began_s, interval_s=5.0
    )
    agent = Agent(host=host, settings=settings, recorder=recorder)
    try:
        for number in range(400):
            agent.tick()
            if number == 24:
                assert agent.report.outlooks == ()
            host.wait_until(host.now_s() + 5.0)
        (outlook,) = agent.report.outlooks
        assert outlook.id == "named"
        assert 200 * MIB < outlook.peak_bytes[0] <= outlook.peak_bytes[2] < 400 * MIB
        assert agent.report.now_s - outlook.made_at_s <= 305.0
    finally:
        agent.close()
        recorder.close()
