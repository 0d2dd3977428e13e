# SPDX-License-Identifier: Apache-2.0
"""Where the memory controller and the unified hierarchy are mounted, and in which version."""

import os

from memsculpt.host.linux import procfs
from memsculpt.host.linux.cgroup1 import CgroupV1
from memsculpt.host.linux.cgroup2 import CgroupV2
from memsculpt.host.linux.controller import Controller


def find_controller(mounts: str = "/proc/self/mounts") -> tuple[Controller | None, str | None]:
    """Return the memory controller and the mount point of the unified hierarchy (PSI), None where absent."""
    v1: str | None = None
    v2: str | None = None
    for line in procfs.read_file(mounts).splitlines():
        words = line.split()
        if len(words) >= 4 and words[2] == b"cgroup" and b"memory" in words[3].split(b","):
            v1 = v1 or os.fsdecode(words[1])
        elif len(words) >= 4 and words[2] == b"cgroup2":
            v2 = v2 or os.fsdecode(words[1])
    if v1 is not None:
        return CgroupV1(v1), v2
    if v2 is not None and b"memory" in _controllers(v2):
        return CgroupV2(v2), v2
    return None, v2


def _controllers(root: str) -> list[bytes]:
    try:
        return procfs.read_file(f"{root}/cgroup.controllers").split()
    except OSError:  # a hierarchy that may not be read has nothing to offer
        return []
