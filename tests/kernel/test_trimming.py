# SPDX-License-Identifier: Apache-2.0
"""A real agent trims the page cache of a cgroup that is configured so, and of that nothing but the page cache."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import MIB

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/hosts reclaims page cache on every host"),
    pytest.mark.timeout(90),
]

READER = """
import os, sys
held = bytearray(os.urandom(1 << 20) * 32)
with open({path!r}, "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    while file.read(1 << 20):
        pass
print("read", flush=True)
for line in sys.stdin:
    print(len(held), flush=True)
"""


def held(folder: Path) -> dict[str, int]:
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return {name: int(value) for name, value in lines}


@pytest.fixture
def run_agent(tmp_path, own_folder):
    """Run an agent in apply mode that trims `own_folder`; ended, and everything undone, when it is called."""
    config = tmp_path / "memsculpt.toml"
    config.write_text(
        f'[agent]\nmode = "apply"\ninterval = "500ms"\nsocket = "{tmp_path}/agent.sock"\nstate = "{tmp_path}/state"\n'
        f'[[partition]]\nname = "batch"\nmatch = {{ cgroup = "{own_folder.name}" }}\ntrim = true\n'
    )
    started = subprocess.Popen(
        [sys.executable, "-m", "memsculpt", "run", "--no-listen", "--config", str(config)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "MEMSCULPT_MACHINE_LOCK": str(tmp_path / "machine.lock")},
    )
    yield started
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
    started.wait(timeout=30)


def test_page_cache_that_was_read_once_leaves(tmp_path, own_folder, own_swap, start, run_agent):
    """A file that was read once is no longer held, the reader's own memory is, with swap on; no budget is different."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(MIB) * 96)
    subprocess.run(["sync", "-d", path], check=True, timeout=60)
    budgets = ("memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness")
    before = [(own_folder / name).read_text() for name in budgets]
    reader = start(READER.format(path=str(path)), own_folder)
    assert reader.first == "read"
    deadline_s = time.monotonic() + 40
    while held(own_folder)["cache"] > 48 * MIB:
        assert time.monotonic() < deadline_s, held(own_folder)
        time.sleep(0.1)
    run_agent.send_signal(signal.SIGTERM)
    run_agent.wait(timeout=30)

    assert held(own_folder)["rss"] >= 32 * MIB
    assert held(own_folder)["swap"] == 0
    assert reader.ask("still there?") == str(32 * MIB)
    assert [(own_folder / name).read_text() for name in budgets] == before
