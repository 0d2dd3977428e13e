# SPDX-License-Identifier: Apache-2.0
"""The memory controller, v1 or v2: one protocol, two files (cgroup1.py, cgroup2.py)."""

import os
from dataclasses import dataclass
from typing import Protocol

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux import procfs
from memsculpt.host.protocol import LimitValue, Moved

NAME_OF_OURS = "memsculpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a cgroup with its subtree is charged for, and what happened to it. Counters never fall."""

    used_bytes: int
    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swapped_bytes: int
    reclaimable_bytes: int
    unevictable_bytes: int
    kernel_bytes: int
    minor_faults: int
    major_faults: int
    refaults: int
    oom_kills: int
    limit_hits: int


class Controller(Protocol):
    """One version of the memory controller. Every method raises OSError; host.py translates it."""

    version: int
    root: str

    def folder(self, cgroup: CgroupPath) -> str:
        """Return the cgroup's folder."""
        ...

    def read_charge(self, cgroup: CgroupPath) -> Charge:
        """Read what the cgroup holds."""
        ...

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget."""
        ...

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> None:
        """Write one budget, as text."""
        ...

    def text_of(self, size_bytes: int) -> str:
        """Return how a budget is written."""
        ...

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Have the kernel take bytes from the cgroup; `only_cache`: of its page cache."""
        ...

    def create(self, cgroup: CgroupPath) -> None:
        """Make the cgroup, and those above it."""
        ...

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process; tell whether its charge went along."""
        ...


def read_members(folder: str, cgroup: CgroupPath) -> dict[int, CgroupPath]:
    """Return the processes in a cgroup and its subtree with where each lives. Raises OSError when it is gone."""
    found = {int(word): cgroup for word in procfs.read_file(f"{folder}/cgroup.procs").split()}
    with os.scandir(folder) as entries:
        inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in inner:
        try:
            found |= read_members(f"{folder}/{name}", CgroupPath(f"{cgroup}/{name}"))
        except FileNotFoundError:  # a child cgroup that was removed meanwhile has no processes
            continue
    return found


def parse_table(content: bytes) -> dict[bytes, int]:
    """Return "name value" lines as a table; other lines are passed over."""
    result: dict[bytes, int] = {}
    for line in content.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            result[words[0]] = int(words[1])
    return result


def write_text(path: str, text: str) -> None:
    """Write a cgroup file in one write. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, os.fsencode(text))
    finally:
        os.close(descriptor)
