# SPDX-License-Identifier: Apache-2.0
"""A laboratory on this machine: one memory-limited cgroup with tenants in it, and a swap of its own.

Everything that is made here carries `memsculpt-lab` in its name and is removed on the way out, also
on failure; `sweep()` removes what a killed bench left. Nothing that the lab did not make is touched.
Works on cgroup v1 (memory) with PSI from the unified hierarchy, and on cgroup v2.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "memsculpt-lab"
V1_MEMORY = Path("/sys/fs/cgroup/memory")
V1_UNIFIED = Path("/sys/fs/cgroup/unified")
V2 = Path("/sys/fs/cgroup")
PAGE = 4096


class LabUnavailable(Exception):
    """This machine cannot hold a lab; the text says what is missing."""


def poll(condition: Callable[[], bool], *, what: str, timeout_s: float = 20.0) -> None:
    """Wait until `condition()`; raise TimeoutError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantReading:
    """A tenant's memory now; counters since its cgroup was made."""

    used_bytes: int
    swapped_bytes: int
    limit_bytes: int
    major_faults: int
    some_stall_s: float
    full_stall_s: float
    oom_kills: int


@dataclass(slots=True)
class Lab:
    """The lab cgroup and its tenants; use `open_lab`."""

    name: str
    tenants: tuple[str, ...]
    is_v1: bool
    processes: list["subprocess.Popen[str]"] = field(default_factory=list["subprocess.Popen[str]"])

    def memory_folder(self, tenant: str = "") -> Path:
        """Return the cgroup's folder in the hierarchy that has the memory controller."""
        return (V1_MEMORY if self.is_v1 else V2) / self.name / tenant

    def pressure_folder(self, tenant: str = "") -> Path:
        """Return the cgroup's folder in the hierarchy that has PSI."""
        return (V1_UNIFIED if self.is_v1 else V2) / self.name / tenant

    def make(self) -> None:
        """Create the cgroups."""
        for root in {self.memory_folder(), self.pressure_folder()}:
            root.mkdir()
            if not self.is_v1:
                (root / "cgroup.subtree_control").write_text("+memory")
            for tenant in self.tenants:
                (root / tenant).mkdir()

    def limit(self, size_bytes: int | None, tenant: str = "") -> None:
        """Set the hard limit of the lab, or of one tenant; None lifts it."""
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        unlimited = "-1" if self.is_v1 else "max"
        (self.memory_folder(tenant) / name).write_text(unlimited if size_bytes is None else str(size_bytes))

    def forbid_swap(self, tenant: str) -> None:
        """Keep a tenant's memory from being swapped, whatever swap is on."""
        name = "memory.swappiness" if self.is_v1 else "memory.swap.max"
        (self.memory_folder(tenant) / name).write_text("0")

    def start(
        self,
        tenant: str,
        command: list[str],
        *,
        cpus: set[int] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> "subprocess.Popen[str]":
        """Start a program inside a tenant's cgroup, pinned to `cpus`."""
        folders = {self.memory_folder(tenant), self.pressure_folder(tenant)}

        def enter() -> None:
            for folder in folders:
                (folder / "cgroup.procs").write_text("0")
            if cpus:
                os.sched_setaffinity(0, cpus)

        # The hook is safe here: the bench has no other thread that could hold a lock while it forks.
        process = subprocess.Popen(
            command,
            preexec_fn=enter,  # noqa: PLW1509
            text=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
        )
        self.processes.append(process)
        return process

    def read(self, tenant: str) -> TenantReading:
        """Read a tenant's counters."""
        folder = self.memory_folder(tenant)
        stat = _read_table(folder / "memory.stat")
        some_us, full_us = _read_pressure(self.pressure_folder(tenant) / "memory.pressure")
        if self.is_v1:
            return TenantReading(
                used_bytes=int((folder / "memory.usage_in_bytes").read_text()),
                swapped_bytes=stat.get("swap", 0),
                limit_bytes=int((folder / "memory.limit_in_bytes").read_text()),
                major_faults=stat["pgmajfault"],
                some_stall_s=some_us / 1e6,
                full_stall_s=full_us / 1e6,
                oom_kills=_read_table(folder / "memory.oom_control").get("oom_kill", 0),
            )
        high = (folder / "memory.high").read_text().strip()
        return TenantReading(
            used_bytes=int((folder / "memory.current").read_text()),
            swapped_bytes=int((folder / "memory.swap.current").read_text()),
            limit_bytes=(1 << 62) if high == "max" else int(high),
            major_faults=stat["pgmajfault"],
            some_stall_s=some_us / 1e6,
            full_stall_s=full_us / 1e6,
            oom_kills=_read_table(folder / "memory.events").get("oom_kill", 0),
        )

    def used_bytes(self) -> int:
        """Return what the whole lab is charged for."""
        name = "memory.usage_in_bytes" if self.is_v1 else "memory.current"
        return int((self.memory_folder() / name).read_text())

    def peak_bytes(self, tenant: str) -> int:
        """Return the most that a tenant was ever charged for, as the kernel counts it: page cache, slab and all."""
        name = "memory.max_usage_in_bytes" if self.is_v1 else "memory.peak"
        return int((self.memory_folder(tenant) / name).read_text())

    def kinds(self, tenant: str) -> Mapping[str, int]:
        """Return what a tenant holds now by kind, in bytes."""
        stat = _read_table(self.memory_folder(tenant) / "memory.stat")
        if self.is_v1:
            return {"anon": stat["rss"], "file": stat["cache"] - stat["shmem"], "dirty": stat["dirty"]}
        return {"anon": stat["anon"], "file": stat["file"] - stat["shmem"], "dirty": stat["file_dirty"]}

    def close(self) -> None:
        """End every process in the lab and remove its cgroups."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.processes.clear()
        for root in {self.memory_folder(), self.pressure_folder()}:
            remove_cgroup_tree(root)


def remove_cgroup_tree(root: Path) -> None:
    """End what is left inside a cgroup that the lab made, and remove it with its children."""
    if not root.exists():
        return
    if PREFIX not in root.as_posix():
        raise ValueError(f"{root}: not a lab's cgroup, left alone")
    for folder in [*sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True), root]:

        def empty(folder: Path = folder) -> bool:
            pids = (folder / "cgroup.procs").read_text().split()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            return not pids

        poll(empty, what=f"{folder} to become empty")

        def removed(folder: Path = folder) -> bool:
            try:
                folder.rmdir()
            except OSError:  # the kernel is still tearing down the last task
                return False
            return True

        poll(removed, what=f"{folder} to be removed")


def sweep() -> list[str]:
    """Remove the cgroups of labs whose bench no longer lives; return their names."""
    swept: list[str] = []
    for base in (V1_MEMORY, V1_UNIFIED, V2):
        for root in base.glob(f"{PREFIX}-*") if base.exists() else ():
            owner = root.name.removeprefix(f"{PREFIX}-").split("-")[0]
            # A name that a lab does not give is somebody else's, whatever it begins with.
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                remove_cgroup_tree(root)
                swept.append(root.as_posix())
    return swept


@contextmanager
def open_lab(tenants: tuple[str, ...]) -> Generator[Lab]:
    """Make a lab and take it down again whatever happens."""
    if os.geteuid() != 0:
        raise LabUnavailable("the lab makes cgroups and a swap device: run it as root")
    is_v1 = (V1_MEMORY / "memory.limit_in_bytes").exists()
    if not is_v1 and "memory" not in (V2 / "cgroup.controllers").read_text().split():
        raise LabUnavailable("no memory controller at /sys/fs/cgroup (neither v1 nor v2)")
    lab = Lab(name=f"{PREFIX}-{os.getpid()}", tenants=tenants, is_v1=is_v1)
    try:
        lab.make()
        yield lab
    finally:
        lab.close()


@contextmanager
def zram_swap(size_bytes: int, priority: int = 100) -> Generator[Path]:
    """Swap on a zram device of our own; swap it off and remove the device at the end."""
    control = Path("/sys/class/zram-control")
    if not (control / "hot_add").exists():
        raise LabUnavailable("no zram: the kernel lacks /sys/class/zram-control (modprobe zram)")
    number = (control / "hot_add").read_text().strip()
    device = Path(f"/dev/zram{number}")
    system = Path(f"/sys/block/zram{number}")
    try:
        poll(device.exists, what=f"{device} to appear")
        (system / "disksize").write_text(str(size_bytes))
        subprocess.run(["mkswap", str(device)], check=True, capture_output=True)
        subprocess.run(["swapon", "--priority", str(priority), str(device)], check=True)
        yield system
    finally:
        if str(device) in Path("/proc/swaps").read_text():
            subprocess.run(["swapoff", str(device)], check=True)
        (system / "reset").write_text("1")
        (control / "hot_remove").write_text(number)


@contextmanager
def file_swap(size_bytes: int, folder: Path, priority: int = 1) -> Generator[Path]:
    """Swap on a file on disk; swap it off and delete the file at the end."""
    path = folder / f"{PREFIX}-{os.getpid()}.swap"
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        path.chmod(0o600)
        subprocess.run(["mkswap", str(path)], check=True, capture_output=True)
        subprocess.run(["swapon", "--priority", str(priority), str(path)], check=True)
        yield path
    finally:
        if str(path) in Path("/proc/swaps").read_text():
            subprocess.run(["swapoff", str(path)], check=True)
        path.unlink(missing_ok=True)


def zram_used_bytes(system: Path) -> int:
    """Return the main memory that a zram device takes for what it holds (mm_stat, third field)."""
    return int((system / "mm_stat").read_text().split()[2])


def _read_table(path: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _read_pressure(path: Path) -> tuple[int, int]:
    """Return the "some" and "full" totals in microseconds; 0 where the kernel has no PSI."""
    if not path.exists():
        return 0, 0
    totals = {line.split()[0]: int(line.rsplit("total=", 1)[1]) for line in path.read_text().splitlines()}
    return totals.get("some", 0), totals.get("full", 0)
