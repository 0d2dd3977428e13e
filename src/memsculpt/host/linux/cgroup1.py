# SPDX-License-Identifier: Apache-2.0
"""cgroup v1 memory (Documentation/admin-guide/cgroup-v1/memory.rst)."""

import errno
import os
import time

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.host.linux import controller, procfs
from memsculpt.host.linux.controller import Charge
from memsculpt.host.protocol import LimitValue, Moved

FILES = {
    LimitKind.GUARANTEE: "memory.soft_limit_in_bytes",
    LimitKind.LIMIT: "memory.limit_in_bytes",
    LimitKind.HARD: "memory.limit_in_bytes",
}
# Without a limit the kernel prints LONG_MAX rounded down to a page; the exact number depends on the page size.
NO_LIMIT_FROM_BYTES = 1 << 60
RECLAIM_STEP_BYTES = 8 << 20


def parse_limit(content: bytes) -> LimitValue:
    """Return a budget with the kernel's own text. Raises ValueError for what is no number."""
    text = content.decode("ascii").removesuffix("\n")
    size = int(text)
    return LimitValue(text=text, size_bytes=UNLIMITED_BYTES if size >= NO_LIMIT_FROM_BYTES else size)


def charge_from(usage_bytes: int, stat: dict[bytes, int], oom: dict[bytes, int], failcnt: int) -> Charge:
    """Return the charge of a cgroup with its subtree from its files' tables."""
    shmem = stat.get(b"total_shmem", 0)
    cache, rss = stat.get(b"total_cache", 0), stat.get(b"total_rss", 0)
    file = max(cache - shmem, 0)
    busy = stat.get(b"total_mapped_file", 0) + stat.get(b"total_dirty", 0) + stat.get(b"total_writeback", 0)
    return Charge(
        used_bytes=usage_bytes,
        anon_bytes=rss,
        file_bytes=file,
        shmem_bytes=shmem,
        swapped_bytes=stat.get(b"total_swap", 0),
        reclaimable_bytes=max(file - busy, 0),
        unevictable_bytes=stat.get(b"total_unevictable", 0),
        kernel_bytes=max(usage_bytes - rss - cache, 0),
        minor_faults=max(stat.get(b"total_pgfault", 0) - stat.get(b"total_pgmajfault", 0), 0),
        major_faults=stat.get(b"total_pgmajfault", 0),
        refaults=stat.get(b"total_workingset_refault_anon", 0) + stat.get(b"total_workingset_refault_file", 0),
        oom_kills=oom.get(b"oom_kill", 0),
        limit_hits=failcnt,
    )


class CgroupV1:
    """The v1 memory hierarchy mounted at `root`."""

    version = 1

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, cgroup: CgroupPath) -> str:
        """Return the cgroup's folder."""
        return f"{self.root}/{cgroup}" if cgroup else self.root

    def read_charge(self, cgroup: CgroupPath) -> Charge:
        """Read what the cgroup holds."""
        folder = self.folder(cgroup)
        return charge_from(
            int(procfs.read_file(f"{folder}/memory.usage_in_bytes")),
            controller.parse_table(procfs.read_file(f"{folder}/memory.stat")),
            controller.parse_table(procfs.read_file(f"{folder}/memory.oom_control")),
            int(procfs.read_file(f"{folder}/memory.failcnt")),
        )

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget."""
        return parse_limit(procfs.read_file(f"{self.folder(cgroup)}/{FILES[kind]}"))

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> None:
        """Write one budget, as text; EBUSY when the kernel cannot reclaim that far now."""
        controller.write_text(f"{self.folder(cgroup)}/{FILES[kind]}", text)

    def text_of(self, size_bytes: int) -> str:
        """Return how a budget is written."""
        return "-1" if size_bytes >= UNLIMITED_BYTES else str(size_bytes)

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """Step the limit down just below the use, and put it back at once; v1 has no other way.

        The old limit is back before this returns, also when a step fails; a crash in between leaves a limit
        a step below the use, which the journal does not know: so the steps are small. For `only_cache` the
        cgroup's swappiness is 0 meanwhile, and likewise put back; left behind, it would spare the swap.
        """
        path = f"{self.folder(cgroup)}/memory.swappiness"
        before = procfs.read_file(path).decode("ascii").strip() if only_cache else "0"
        if before == "0":
            return self._reclaim(cgroup, size_bytes)
        controller.write_text(path, "0")
        try:
            return self._reclaim(cgroup, size_bytes)
        finally:
            controller.write_text(path, before)

    def _reclaim(self, cgroup: CgroupPath, size_bytes: int) -> Moved:
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        path = f"{self.folder(cgroup)}/memory.limit_in_bytes"
        usage = f"{self.folder(cgroup)}/memory.usage_in_bytes"
        before = procfs.read_file(path).decode("ascii").removesuffix("\n")
        first = now = int(procfs.read_file(usage))
        try:
            while first - now < size_bytes:
                controller.write_text(path, str(max(now - RECLAIM_STEP_BYTES, 0)))
                after = int(procfs.read_file(usage))
                if after >= now:
                    break
                now = after
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.EINTR}:  # nothing more can be taken; what was taken counts
                raise
            now = int(procfs.read_file(usage))
        finally:
            controller.write_text(path, before)
        return Moved(
            asked_bytes=size_bytes,
            moved_bytes=max(first - now, 0),
            duration_s=time.monotonic() - begin_s,
            cpu_s=time.thread_time() - begin_cpu_s,
        )

    def create(self, cgroup: CgroupPath) -> None:
        """Make the cgroup, and those above it."""
        os.makedirs(self.folder(cgroup), exist_ok=True)

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process; its charge goes along where the kernel still can (gone since 6.11: EINVAL)."""
        folder = self.folder(cgroup)
        flag = f"{folder}/memory.move_charge_at_immigrate"
        takes_charge = True
        before = "0"
        try:
            before = procfs.read_file(flag).decode("ascii").strip()
            controller.write_text(flag, "3")
        except OSError:  # EINVAL or absent: the charge stays where it is, and the caller is told
            takes_charge = False
        try:
            controller.write_text(f"{folder}/cgroup.procs", str(pid))
        finally:
            if takes_charge:  # the cgroup may be somebody else's: it keeps its own setting
                controller.write_text(flag, before)
        return takes_charge
