# SPDX-License-Identifier: Apache-2.0
"""A stage for each host: the same small scene, so that one suite can ask every host the same questions.

The scene: a process that has filled `memory_bytes` of private memory and sleeps, alone in a cgroup without a
limit of its own. A new host gets its tests by having a stage here; `test_discovery.py` fails until it has one.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar

from memsculpt.domain.observation import Observation
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath, Instance, Match
from memsculpt.host.protocol import Host

MIB = 1 << 20


def offers(*capabilities: str, elsewhere: str = ""):
    """Mark a test with what a host must offer for it; on a real machine it skips with doctor's reason.

    `elsewhere` says where the same is asked of a real machine that this one cannot be.
    """

    def mark(test):
        test.offers, test.elsewhere = capabilities, elsewhere
        return test

    return mark


class Stage(AbstractContextManager["Stage"]):
    """One host with the scene on it; leaving the context removes whatever was made."""

    host_package: ClassVar[str]  # the package below memsculpt.host that it tests
    is_real: ClassVar[bool]  # needs what doctor finds; a simulated one always runs

    host: Host
    cgroup: CgroupPath
    process: Instance
    memory_bytes: int = 64 * MIB
    slack_bytes: int  # how far "about" reaches: the process's own overhead, the host's granule

    @abstractmethod
    def end_process(self) -> None:
        """End the process and return when it is gone."""

    @abstractmethod
    def touch_all(self) -> None:
        """Have the process touch all of its memory; return when it has, fail when the content is not as written."""

    @abstractmethod
    def allow_huge(self) -> None:
        """Have the process allow huge pages, of which it has none so far."""

    @abstractmethod
    def own_cgroup(self) -> CgroupPath:
        """Return a path for a cgroup that does not exist, whose name memsculpt may use."""

    def partition(self) -> PartitionSettings:
        """Return a partition that adopts the scene's cgroup."""
        return PartitionSettings(name="scene", match=Match(cgroup=self.cgroup))

    def row(self, seen: Observation) -> int:
        """Return the row of the scene's workload."""
        return [str(cgroup) for cgroup in seen.workloads.cgroups].index(self.cgroup)

    def process_row(self, seen: Observation) -> int:
        """Return the row of the scene's process."""
        pids = seen.processes.pids.tolist()
        assert pids.count(self.process.pid) == 1, f"process {self.process.pid} is not among {len(pids)} rows"
        return pids.index(self.process.pid)
