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
