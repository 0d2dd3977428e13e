# SPDX-License-Identifier: Apache-2.0
"""A host over a directory of text files: real reads and writes of cgroup files, without a kernel behind them.

It does to what is written what the kernel does: sizes are rounded down to pages, "unlimited" has the kernel's spelling,
files of a cgroup that is gone are absent. `limits_in_one_file` is cgroup v1, where LIMIT and HARD are the same file.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.vm import BalloonSet, VmId
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.errors import Transient, Vanished
from memsculpt.host.protocol import Capability, LimitValue, Moved

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
V1_UNLIMITED = (UNLIMITED_BYTES // PAGE_BYTES) * PAGE_BYTES


class TextHost:
    """Cgroups as folders below `root`; `cgroup.procs` holds "pid start_ticks" lines."""

    name = "text"

    def __init__(self, root: Path, *, limits_in_one_file: bool = True) -> None:
        self.root = root
        self.limits_in_one_file = limits_in_one_file
        self.time_s = 0.0
        self.movable_bytes: dict[Instance, int] = {}  # what page_out can send out
        self.refuse_below_bytes = 0  # EBUSY for limits under this
        self.before_write: Callable[[], None] = lambda: None

    # --- what a test sets up ----------------------------------------------------------------------------------------

    def add_cgroup(self, cgroup: str, **texts: str) -> None:
        """Make a cgroup; `limit`, `guarantee`, `hard` are the texts of its files."""
        folder = self.root / cgroup
        folder.mkdir(parents=True, exist_ok=True)
        unlimited = f"{V1_UNLIMITED}\n" if self.limits_in_one_file else "max\n"
        for kind in LimitKind:
            path = self._file(cgroup, kind)
            if kind.value in texts or not path.exists():
                path.write_text(texts.get(kind.value, unlimited))
        (folder / "cgroup.procs").touch()

    def add_process(self, cgroup: str, process: Instance) -> None:
        """Put a process into a cgroup."""
        with (self.root / cgroup / "cgroup.procs").open("a") as procs:
            procs.write(f"{process.pid} {process.start_ticks}\n")

    def text(self, cgroup: str, kind: LimitKind) -> str:
        """The file's bytes, as they are."""
        return self._file(cgroup, kind).read_text()

    def write_as_somebody_else(self, cgroup: str, kind: LimitKind, text: str) -> None:
        """What an administrator's `echo` does."""
        self._file(cgroup, kind).write_text(text)

    def contents(self) -> dict[str, bytes]:
        """Every file below the root, byte for byte."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def add_vm(self, vm: str, size_bytes: int) -> None:
        """Give the host a VM whose balloon goes where it is asked at once."""
        (self.root / f"{vm}.balloon").write_text(f"{size_bytes}\n")

    # --- the protocol -----------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        self.time_s += 0.001
        return self.time_s

    def wait_until(self, deadline_s: float) -> bool:
        self.time_s = max(self.time_s, deadline_s)
        return False

    def observe(self) -> Observation:
        raise NotImplementedError("no test of act observes")

    def capabilities(self) -> Mapping[str, Capability]:
        return {}

    def watch(self, partitions: Sequence[PartitionSettings]) -> None:
        pass

    def close(self) -> None:
        pass

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        return self._moved(process, size_bytes, sign=-1)

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        return self._moved(process, size_bytes, sign=1)

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        try:
            text = self._file(cgroup, kind).read_text()
        except FileNotFoundError:
            raise Vanished(place=f"cgroup {cgroup!r}") from None
        size = UNLIMITED_BYTES if text.strip() == "max" else int(text)
        return LimitValue(text=text, size_bytes=UNLIMITED_BYTES if size >= V1_UNLIMITED else size)

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        self.read_limit(cgroup, kind)
        if size_bytes < self.refuse_below_bytes:
            raise Transient(place=f"cgroup {cgroup!r}", problem="is busy", retry_in_s=1.0)
        self.before_write()
        whole = size_bytes // PAGE_BYTES * PAGE_BYTES
        text = "max\n" if whole >= V1_UNLIMITED and not self.limits_in_one_file else f"{min(whole, V1_UNLIMITED)}\n"
        self._file(cgroup, kind).write_text(text)
        return self.read_limit(cgroup, kind)

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        value = self.read_limit(cgroup, kind)
        if "max" not in text and int(text) < self.refuse_below_bytes:
            raise Transient(place=f"cgroup {cgroup!r}", problem="is busy", retry_in_s=1.0)
        self.before_write()
        if value.text != text:
            self._file(cgroup, kind).write_text(text)
        return self.read_limit(cgroup, kind)

    def reclaim(self, cgroup: CgroupPath, size_bytes: int, *, only_cache: bool = False) -> Moved:
        """As on v1: the limit steps down and up again."""
        before = self.read_limit(cgroup, LimitKind.LIMIT)
        self.write_limit(cgroup, LimitKind.LIMIT, min(1 << 20, before.size_bytes))
        self.restore_limit(cgroup, LimitKind.LIMIT, before.text)
        return Moved(asked_bytes=size_bytes, moved_bytes=size_bytes, duration_s=0.0, cpu_s=0.0)

    def read_balloon(self, vm: VmId) -> int:
        try:
            return int((self.root / f"{vm}.balloon").read_text())
        except FileNotFoundError:
            raise Vanished(place=f"vm {vm}") from None

    def set_balloon(self, vm: VmId, size_bytes: int) -> BalloonSet:
        before_bytes = self.read_balloon(vm)
        self.before_write()
        self.add_vm(vm, size_bytes)
        return BalloonSet(asked_bytes=size_bytes, before_bytes=before_bytes)

    def create_cgroup(self, cgroup: CgroupPath) -> None:
        self.before_write()
        self.add_cgroup(cgroup)

    def remove_cgroup(self, cgroup: CgroupPath) -> None:
        folder = self.root / cgroup
        if not folder.exists():
            raise Vanished(place=f"cgroup {cgroup!r}")
        if (folder / "cgroup.procs").read_text():
            raise Transient(place=f"cgroup {cgroup!r}", problem="still has processes", retry_in_s=1.0)
        self.before_write()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def sweep(self) -> tuple[CgroupPath, ...]:
        return ()

    def cgroup_of(self, process: Instance) -> CgroupPath:
        for procs in self.root.rglob("cgroup.procs"):
            if _line(process) in procs.read_text().splitlines():
                return CgroupPath(str(procs.parent.relative_to(self.root)))
        raise Vanished(place=f"pid {process.pid}")

    def move_process(self, process: Instance, cgroup: CgroupPath) -> int:
        source = self.root / self.cgroup_of(process) / "cgroup.procs"
        target = self.root / cgroup / "cgroup.procs"
        if not target.exists():
            raise Vanished(place=f"cgroup {cgroup!r}")
        self.before_write()
        left = [line for line in source.read_text().splitlines() if line != _line(process)]
        source.write_text("".join(f"{line}\n" for line in left))
        self.add_process(cgroup, process)
        return PAGE_BYTES

    def _moved(self, process: Instance, size_bytes: int, *, sign: int) -> Moved:
        if process not in self.movable_bytes:
            raise Vanished(place=f"pid {process.pid}")
        moved = min(size_bytes, self.movable_bytes[process]) if sign < 0 else size_bytes
        self.movable_bytes[process] += sign * moved
        return Moved(asked_bytes=size_bytes, moved_bytes=moved, duration_s=0.001, cpu_s=0.001)

    def _file(self, cgroup: str, kind: LimitKind) -> Path:
        if self.limits_in_one_file:
            names = {LimitKind.GUARANTEE: "memory.soft_limit_in_bytes"}
            return self.root / cgroup / names.get(kind, "memory.limit_in_bytes")
        names = {LimitKind.GUARANTEE: "memory.min", LimitKind.LIMIT: "memory.high", LimitKind.HARD: "memory.max"}
        return self.root / cgroup / names[kind]


def _line(process: Instance) -> str:
    return f"{process.pid} {process.start_ticks}"
