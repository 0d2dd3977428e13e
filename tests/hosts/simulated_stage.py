# SPDX-License-Identifier: Apache-2.0
"""The scene on the simulated host, once for each version of the cgroup interface."""

from typing import ClassVar, Self

from memsculpt.domain.workload import CgroupPath
from memsculpt.host.simulated import Constant, Cycle, SimulatedHost
from tests.hosts.stages import MIB, Stage


class SimulatedStage(Stage):
    host_package = "simulated"
    is_real = False
    cgroup_version: ClassVar[int] = 1
    slack_bytes = 2 * MIB
    cgroup = CgroupPath("scene/sleeper")

    def __init__(self, name: str) -> None:
        self._own = CgroupPath(f"{name}/inner")
        self._simulated = SimulatedHost(
            7,
            workloads=(
                Cycle(
                    name="sleeper",
                    cgroup=self.cgroup,
                    size_bytes=self.memory_bytes,
                    period_s=30.0,
                    work_s=1.0,
                    touch_hz=64.0,
                    comes_back_after_s=None,
                ),
                Constant(name="neighbour", cgroup="other", size_bytes=32 * MIB),
                Constant(name="stray", size_bytes=8 * MIB),
            ),
            cgroup_version=self.cgroup_version,
            chunk_bytes=64 << 10,
            slow_bytes=128 * MIB,
        )
        self.host = self._simulated

    def __enter__(self) -> Self:
        self.host.wait_until(self.host.now_s() + 5.0)
        (self.process,) = self._simulated.instances("sleeper")
        return self

    def __exit__(self, *_: object) -> None:
        self.host.close()

    def end_process(self) -> None:
        self._simulated.kill(self.process)

    def touch_all(self) -> None:
        phases = self._simulated.record("sleeper").phases
        before = len(phases)
        while len(phases) == before:
            self.host.wait_until(self.host.now_s() + 1.0)

    def allow_huge(self) -> None:
        pass

    def own_cgroup(self) -> CgroupPath:
        return self._own


class SimulatedStageV2(SimulatedStage):
    cgroup_version = 2
