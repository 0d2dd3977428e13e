# SPDX-License-Identifier: Apache-2.0
"""What the agent has learnt outlives it, where profiles are kept."""

import pytest

from memsculpt import profile
from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, ProfileSettings, Settings
from memsculpt.domain.workload import Match, WorkloadId
from memsculpt.host.simulated import Burst, SimulatedHost

MIB = 1 << 20
NAMED = WorkloadId("named")


def run(folder, ticks: int, *, damage: bytes = b"") -> tuple[Agent, list[int]]:
    """Tick an agent of its own over a restless workload; return it and the upper quantiles, tick by tick."""
    program = Burst(name="named", cgroup="named", base_bytes=256 * MIB, burst_bytes=160 * MIB, touch_hz=4.0)
    host = SimulatedHost(7, total_bytes=4096 * MIB, swap_bytes=1024 * MIB, workloads=(program,))
    settings = Settings(partitions=(PartitionSettings(name="named", match=Match(cgroup="named")),))
    host.watch(settings.partitions)
    began_s = host.now_s()
    recorder = profile.Recorder(
        str(folder), ProfileSettings(), clock_s=lambda: 1_800_000_000.0 + host.now_s() - began_s, interval_s=1.0
    )
    if damage:
        recorder.keep(NAMED, "prior", damage, now_s=host.now_s())
    agent = Agent(host=host, settings=settings, recorder=recorder)
    quantiles: list[int] = []
    try:
        for _ in range(ticks):
            forecasts = agent.tick().forecasts
            at = forecasts.ids.index(NAMED)
            quantiles.append(int(forecasts.quantiles_bytes[at, 0, forecasts.levels.index(0.99)]))
            host.wait_until(host.now_s() + 1.0)
    finally:
        agent.close()
        recorder.close()
    return agent, quantiles


def test_a_restarted_agent_forecasts_from_what_it_had_learnt(tmp_path):
    """The second agent's forecast of the historic peak is there from its first tick, the first one's was not."""
    first, _ = run(tmp_path, 400)
    again, _ = run(tmp_path, 3)
    anew, _ = run(tmp_path / "elsewhere", 3)

    def known_peak(agent: Agent) -> int:
        forecasts = agent.report.forecasts
        assert forecasts is not None
        return int(forecasts.historic_peak_bytes[forecasts.ids.index(NAMED)])

    assert known_peak(again) == pytest.approx(known_peak(first), rel=0.01)
    assert known_peak(anew) < 0.9 * known_peak(first)


@pytest.mark.parametrize("damage", [b"nonsense", b"memstrai\x09\0\0\0"])
def test_what_was_kept_and_cannot_be_read_is_learnt_anew(tmp_path, damage):
    """A broken record, or another version's, stops no agent."""
    agent, quantiles = run(tmp_path, 5, damage=damage)

    assert agent.report.failed_count == 0
    assert quantiles[-1] >= 256 * MIB
