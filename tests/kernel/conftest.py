# SPDX-License-Identifier: Apache-2.0
"""This machine, as root: swap of our own, cgroups of our own, and processes that hold memory in them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.host import open_host
from memsculpt.host.protocol import Host

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup/unified")
HOLDER = Path(__file__).with_name("holder.py")


def poll(condition, what: str, *, within_s: float = 20.0) -> None:
    """Return when the condition holds; fail at the deadline."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {within_s:g} s for {what}"
        time.sleep(0.01)


def remove_when_empty(folder: Path) -> None:
    """Remove a cgroup; a killed process leaves it a moment after it was reaped."""

    def gone() -> bool:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    poll(gone, f"{folder} to be empty")


class Holder:
    """A process that holds memory; see holder.py."""

    def __init__(self, size_bytes: int, cgroups: tuple[Path, ...] = (), program: str | bytes | None = None) -> None:
        self.size_bytes = size_bytes

        self._process = subprocess.Popen(
            [
                os.fsdecode(program or sys.executable),
                "-I",
                "-S",
                str(HOLDER),
                str(size_bytes),
                *map(os.fsdecode, cgroups),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.address = int(self._answer())
        self.instance = Instance(pid=self.pid, start_ticks=int(self.stat(22)))

    def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def stat(self, field: int) -> str:
        """A field of proc_pid_stat(5) by its number there."""
        content = Path(f"/proc/{self.pid}/stat").read_bytes()
        return content.rpartition(b")")[2].split()[field - 3].decode()

    def faults(self) -> tuple[int, int]:
        """Minor and major faults so far."""
        return int(self.stat(10)), int(self.stat(12))

    def status_bytes(self, name: str) -> int:
        """A size of /proc/PID/status: the second source beside the page tables."""
        lines = Path(f"/proc/{self.pid}/status").read_bytes().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name}:".encode()))
        return int(line.split()[1]) * 1024

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="session")
def own_swap() -> Iterator[None]:
    """Swap of our own: compressed memory, of the lowest priority, so that nobody else's pages come to it first."""
    control = Path("/sys/class/zram-control")
    number = (control / "hot_add").read_text().strip()
    device, system = Path(f"/dev/zram{number}"), Path(f"/sys/block/zram{number}")
    try:
        poll(device.exists, f"{device}")
        (system / "disksize").write_text(str(512 * MIB))
        subprocess.run(["mkswap", str(device)], check=True, capture_output=True)
        subprocess.run(["swapon", str(device)], check=True)
        yield
    finally:
        if str(device) in Path("/proc/swaps").read_text():
            subprocess.run(["swapoff", str(device)], check=True)
        (system / "reset").write_text("1")
        (control / "hot_remove").write_text(number)


@pytest.fixture
def cgroup(own_cgroup_name: str) -> Iterator[CgroupPath]:
    """An empty memory cgroup of our own."""
    folder = CGROUPS / own_cgroup_name
    folder.mkdir()
    yield CgroupPath(own_cgroup_name)
    remove_when_empty(folder)


@pytest.fixture
def start_holder(cgroup: CgroupPath) -> Iterator[type[Holder]]:
    """Start processes that hold memory in the cgroup; all are gone after the test."""
    with ExitStack() as stack:

        def start(size_bytes: int = 32 * MIB, program: str | bytes | None = None, also: tuple[Path, ...] = ()):
            holder = Holder(size_bytes, (CGROUPS / cgroup, *also), program)
            stack.callback(holder.end)
            return holder

        yield start


@pytest.fixture
def host() -> Iterator[Host]:
    """This machine, as the agent opens it."""
    opened = open_host(Settings())
    yield opened
    opened.close()
