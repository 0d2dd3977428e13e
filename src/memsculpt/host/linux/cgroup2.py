# SPDX-License-Identifier: Apache-2.0
"""cgroup v2 memory (Documentation/admin-guide/cgroup-v2.rst)."""

import errno
import os
import time

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux import controller, procfs
from memsculpt.host.linux.controller import Charge
from memsculpt.host.protocol import LimitValue, Moved

FILES = {LimitKind.GUARANTEE: "memory.min", LimitKind.LIMIT: "memory.high", LimitKind.HARD: "memory.max"}


def parse_limit(content: bytes) -> LimitValue:
    """Return a budget with the kernel's own text. Raises ValueError for what is no number."""
    text = content.decode("ascii").removesuffix("\n")
    return LimitValue(text=text, size_bytes=UNLIMITED_BYTES if text == "max" else int(text))


def charge_from(current_bytes: int, swapped_bytes: int, stat: dict[bytes, int], events: dict[bytes, int]) -> Charge:
    """Return the charge of a cgroup with its subtree from its files' tables."""
    shmem, anon = stat.get(b"shmem", 0), stat.get(b"anon", 0)
    file = max(stat.get(b"file", 0) - shmem, 0)
    busy = stat.get(b"file_mapped", 0) + stat.get(b"file_dirty", 0) + stat.get(b"file_writeback", 0)
    return Charge(
        used_bytes=current_bytes,
        anon_bytes=anon,
        file_bytes=file,
        shmem_bytes=shmem,
        swapped_bytes=swapped_bytes,
        reclaimable_bytes=max(file - busy, 0),
        unevictable_bytes=stat.get(b"unevictable", 0),
        kernel_bytes=max(current_bytes - anon - stat.get(b"file", 0), 0),
        minor_faults=max(stat.get(b"pgfault", 0) - stat.get(b"pgmajfault", 0), 0),
        major_faults=stat.get(b"pgmajfault", 0),
        refaults=stat.get(b"workingset_refault_anon", 0) + stat.get(b"workingset_refault_file", 0),
        oom_kills=events.get(b"oom_kill", 0),
        limit_hits=events.get(b"max", 0),
    )


class CgroupV2:
    """The unified hierarchy mounted at `root`, with the memory controller."""

    version = 2

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, cgroup: CgroupPath) -> str:
        """Return the cgroup's folder."""
        return f"{self.root}/{cgroup}" if cgroup else self.root

    def read_charge(self, cgroup: CgroupPath) -> Charge:
        """Read what the cgroup holds."""
        folder = self.folder(cgroup)
        return charge_from(
            int(procfs.read_file(f"{folder}/memory.current")),
            _number(f"{folder}/memory.swap.current"),
            controller.parse_table(procfs.read_file(f"{folder}/memory.stat")),
            controller.parse_table(procfs.read_file(f"{folder}/memory.events")),
        )

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget."""
        return parse_limit(procfs.read_file(f"{self.folder(cgroup)}/{FILES[kind]}"))

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> None:
        """Write one budget, as text."""
        controller.write_text(f"{self.folder(cgroup)}/{FILES[kind]}", text)

    def text_of(self, size_bytes: int) -> str:
        """Return how a budget is written."""
        return "max" if size_bytes >= UNLIMITED_BYTES else str(size_bytes)

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Write memory.reclaim; EAGAIN says that part of it was taken, which is measured, not believed."""
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        folder = self.folder(cgroup)
        before = int(procfs.read_file(f"{folder}/memory.current"))
        words = [str(size_bytes)]
        if only_cache:
            words.insert(0, f"{size_bytes} swappiness=0")  # older kernels know no such word: EINVAL
        while words:
            try:
                controller.write_text(f"{folder}/memory.reclaim", words.pop(0))
            except OSError as error:
                if error.errno == errno.EINVAL and words:
                    continue
                if error.errno != errno.EAGAIN:
                    raise
            break
        after = int(procfs.read_file(f"{folder}/memory.current"))
        return Moved(
            asked_bytes=size_bytes,
            moved_bytes=max(before - after, 0),
            duration_s=time.monotonic() - begin_s,
            cpu_s=time.thread_time() - begin_cpu_s,
        )

    def create(self, cgroup: CgroupPath) -> None:
        """Make the cgroup and those above it, and hand the memory controller down to it."""
        above = self.root
        for part in cgroup.split("/"):
            enabled = procfs.read_file(f"{above}/cgroup.subtree_control").split()
            if b"memory" not in enabled:
                controller.write_text(f"{above}/cgroup.subtree_control", "+memory")
            above = f"{above}/{part}"
            os.makedirs(above, exist_ok=True)

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process; v2 never moves the charge."""
        controller.write_text(f"{self.folder(cgroup)}/cgroup.procs", str(pid))
        return False


def _number(path: str) -> int:
    try:
        return int(procfs.read_file(path))
    except FileNotFoundError:  # a kernel without swap accounting
        return 0
