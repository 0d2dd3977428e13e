# SPDX-License-Identifier: Apache-2.0
"""The scene on this machine: a child process in a memory cgroup of our own, with a zram swap of our own."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.host import open_host
from tests.hosts.stages import MIB, Stage

CGROUPS = Path("/sys/fs/cgroup/memory")
SLEEPER = Path(__file__).with_name("sleeper.py")


class LinuxStage(Stage):
    host_package = "linux"
    is_real = True
    slack_bytes = 8 * MIB  # Python's own memory, and what the kernel charges in batches

    def __init__(self, name: str) -> None:
        self.cgroup = CgroupPath(name)
        self._own = CgroupPath(f"{name}-own/inner")

    def __enter__(self) -> Self:
        folder = CGROUPS / self.cgroup
        folder.mkdir()

        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SLEEPER), str(self.memory_bytes), str(folder / "cgroup.procs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "filled"
        stat = Path(f"/proc/{self._child.pid}/stat").read_text()
        self.process = Instance(pid=self._child.pid, start_ticks=int(stat.rpartition(")")[2].split()[19]))
        self.host = open_host(Settings())
        return self

    def __exit__(self, *_: object) -> None:
        self.host.close()
        self._child.kill()
        self._child.communicate()
        for cgroup in (self._own, self._own.rpartition("/")[0], self.cgroup):
            folder = CGROUPS / cgroup
            if folder.exists():
                remove_when_empty(folder)

    def end_process(self) -> None:
        self._child.kill()
        self._child.wait()

    def touch_all(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("touch\n")
        self._child.stdin.flush()
        assert self._answer() == "touched 0"

    def allow_huge(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("huge\n")
        self._child.stdin.flush()
        assert self._answer() == "huge"

    def own_cgroup(self) -> CgroupPath:
        return self._own

    def _answer(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


def remove_when_empty(folder: Path) -> None:
    """Remove a cgroup; a killed process leaves it a moment after it was reaped."""
    deadline_s = time.monotonic() + 5.0
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
        else:
            return
