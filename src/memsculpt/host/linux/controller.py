# SPDX-License-Identifier: Apache-2.0
"""The memory controller as one small protocol, so that the rest of the host never asks which version it is."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.protocol import LimitValue


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStat:
    """What a cgroup and all below it hold: one reading. Counters are cumulative since the cgroup was made."""

    used_bytes: int  # charged: usage_in_bytes, memory.current
    anon_bytes: int
    file_bytes: int  # page cache without shmem
    shmem_bytes: int
    swapped_bytes: int
    reclaimable_bytes: int  # clean page cache that nobody maps
    unevictable_bytes: int
    kernel_bytes: int
    minor_faults_count: int
    major_faults_count: int
    refaults_count: int  # of anonymous pages: back from swap soon after they left
    has_refaults: bool  # False: this kernel does not count them
    oom_kills_count: int
    limit_hits_count: int


class Controller(Protocol):
    """One version of the memory controller. Every method may raise Vanished, Transient and Unavailable."""

    version: int  # 1 or 2
    root: bytes  # mount point; readers take it as an argument, so tests hand in a tree of text files

    def folder(self, cgroup: CgroupPath) -> bytes:
        """Return the cgroup's directory; raises Refused for a path that leads outside of the root."""
        ...

    def stat(self, cgroup: CgroupPath) -> MemoryStat:
        """Read what the cgroup holds."""
        ...

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """As the host's."""
        ...

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        """As the host's."""
        ...

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """As the host's."""
        ...

    def reclaim(self, cgroup: CgroupPath, size_bytes: int) -> int:
        """Have the kernel take `size_bytes`; return the bytes that left, and leave every limit as it was."""
        ...

    def create(self, cgroup: CgroupPath) -> None:
        """As the host's `create_cgroup`."""
        ...

    def remove(self, cgroup: CgroupPath) -> None:
        """As the host's `remove_cgroup`; raises Refused for one that memsculpt did not make."""
        ...

    def is_own(self, cgroup: CgroupPath) -> bool:
        """Tell whether memsculpt made it, also in an earlier life."""
        ...

    def pids(self, cgroup: CgroupPath) -> Sequence[int]:
        """Return the processes of the cgroup itself, children not included."""
        ...

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process; tell whether its charges went with it (False: what it had stays where it came from)."""
        ...

    def cgroup_in(self, lines: bytes) -> CgroupPath:
        """Return this controller's path in the text of /proc/PID/cgroup; "" is the root."""
        ...


def encode(cgroup: CgroupPath) -> bytes:
    """Return the path as the kernel has it: bytes that are no UTF-8 go back unchanged."""
    return os.fsencode(cgroup)


def decode(path: bytes) -> CgroupPath:
    """Return a path as we carry it, relative to the root."""
    return CgroupPath(os.fsdecode(path.strip(b"/")))
