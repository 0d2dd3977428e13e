# SPDX-License-Identifier: Apache-2.0
"""The real agent on a simulated host, for doors to show: three tenants in a lab, one with a hostile name."""

from concurrent.futures import Future

from memsculpt.agent import Agent
from memsculpt.domain.growth import GrowthSample
from memsculpt.domain.plan import Grant, Request
from memsculpt.domain.pool import SculptRequest, SculptStats
from memsculpt.domain.report import Report
from memsculpt.domain.settings import Kind, PartitionSettings, Settings
from memsculpt.domain.workload import Match, WorkloadId
from memsculpt.host.simulated import Constant, Cycle, SimulatedHost

MIB = 1 << 20
HOSTILE = "lab/we\nird \x1b[31m\udcff"  # a line end, a terminal's escape, a byte that is no UTF-8
TICKS = 30


class Scene:
    """An agent that ticks when it is told to, and when it is asked."""

    def __init__(self) -> None:
        self._host = SimulatedHost(
            0,
            workloads=(
                Constant(name="redis-server", cgroup="lab/redis", size_bytes=525 * MIB),
                Cycle(name="job-a", cgroup="lab/job-a", size_bytes=450 * MIB, offset_s=2.0),
                Cycle(name="job-b", cgroup="lab/job-b", size_bytes=450 * MIB, offset_s=7.0),
                Constant(name="odd", cgroup=HOSTILE, size_bytes=8 * MIB),
            ),
            limits={"lab": 1150 * MIB},
        )
        settings = Settings(
            capacity_bytes=1150 * MIB,
            partitions=(
                PartitionSettings(
                    name="redis",
                    match=Match(cgroup="lab/redis"),
                    guarantee_bytes=525 * MIB,
                    ceiling_bytes=900 * MIB,
                    critical=True,
                ),
                PartitionSettings(name="job-a", match=Match(cgroup="lab/job-a")),
                PartitionSettings(name="job-b", match=Match(cgroup="lab/job-b"), kind=Kind.FIXED, size_bytes=300 * MIB),
                PartitionSettings(name="odd", match=Match(cgroup="lab/we*")),
            ),
        )
        self._host.watch(settings.partitions)
        self.agent = Agent(host=self._host, settings=settings)

    @property
    def report(self) -> Report:
        """The last tick's results."""
        return self.agent.report

    def tick(self, count: int = 1) -> None:
        """Let the host live for a second and look, as often as that."""
        for _ in range(count):
            self.agent.tick()
            self._host.wait_until(self._host.now_s() + 1.0)

    def ask_growth(self, workload: WorkloadId) -> "Future[GrowthSample]":
        """Ask where memory came from; the tick that answers comes at once."""
        answer = self.agent.ask_growth(workload)
        self.tick()
        return answer

    def ask_sculpt(self, pool: str, request: SculptRequest) -> "Future[SculptStats]":
        """Have a pool sculpted; the tick that does it comes at once."""
        answer = self.agent.ask_sculpt(pool, request)
        self.tick()
        return answer

    def ask(self, request: Request) -> "Future[Grant]":
        """Put a request into the next tick, which comes at once."""
        answer = self.agent.ask(request)
        self.tick()
        return answer
