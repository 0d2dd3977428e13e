# SPDX-License-Identifier: Apache-2.0
"""What the real tests stand on: a host, a swap of our own, a cgroup of our own, and children that end with the test."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memsculpt.domain.settings import ObserveSettings, Settings
from memsculpt.domain.workload import Instance
from memsculpt.host.linux import LinuxHost
from memsculpt_bench.lab import zram_swap

CGROUPS = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    opened = LinuxHost(Settings(observe=ObserveSettings(detail_interval_s=60.0)))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def own_swap() -> Iterator[None]:
    with zram_swap(256 * MIB):
        yield


class Child:
    """A Python child that answers each line with a line, and ends with the test."""

    def __init__(self, code: str, folder: Path | None = None) -> None:
        def enter() -> None:
            if folder is not None:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,  # noqa: PLW1509  one write, before anything of the child runs
        )
        self.pid = self.popen.pid
        self.first = self.answer()

    def answer(self) -> str:
        return self.popen.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        return self.answer()

    def instance(self) -> Instance:
        return Instance(pid=self.pid, start_ticks=int(self.stat()[19]))

    def stat(self) -> list[str]:
        """The fields of stat from the third on, read here and not by what is tested."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Child]]:
    if "own_folder" in request.fixturenames:  # made before the children and removed after them
        request.getfixturevalue("own_folder")
    children: list[Child] = []

    def started(code: str, folder: Path | None = None) -> Child:
        children.append(Child(code, folder))
        return children[-1]

    yield started
    for child in children:
        child.end()


@pytest.fixture
def own_folder(own_cgroup_name: str) -> Iterator[Path]:
    """An empty memory cgroup; removed when its processes have left."""
    folder = CGROUPS / own_cgroup_name
    folder.mkdir()
    yield folder
    remove(folder)


def remove(folder: Path) -> None:
    """Remove a cgroup; a killed process leaves it a moment after it was reaped."""
    deadline_s = time.monotonic() + 5.0
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)


@pytest.fixture
def start_holder(start: Callable[..., Child], own_folder: Path) -> Callable[..., "Holder"]:
    """Start processes that hold private memory in the cgroup `own_folder`; see holder.py."""
    code = Path(__file__).with_name("holder.py").read_text()

    def started(size_bytes: int = 32 * MIB) -> Holder:
        return Holder(start(code.replace("sys.argv[1]", str(size_bytes)), own_folder), size_bytes)

    return started


class Holder:
    """A child that holds `size_bytes` of private memory at `address`."""

    def __init__(self, child: Child, size_bytes: int) -> None:
        self.pid, self.size_bytes = child.pid, size_bytes
        self.address, self.instance = int(child.first), child.instance()
        self.ask, self.stat, self.end, self.kill = child.ask, child.stat, child.end, child.popen.kill

    def faults(self) -> tuple[int, int]:
        """Minor and major faults so far: fields 10 and 12 of proc_pid_stat(5)."""
        return int(self.stat()[7]), int(self.stat()[9])

    def status_bytes(self, name: str) -> int:
        """A size of /proc/PID/status: the second source beside the page tables."""
        lines = Path(f"/proc/{self.pid}/status").read_bytes().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name}:".encode()))
        return int(line.split()[1]) * 1024
