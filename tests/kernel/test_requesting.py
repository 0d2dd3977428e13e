# SPDX-License-Identifier: Apache-2.0
"""An application asks a real agent for memory: a partition is made for it, it is moved there, and all is undone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import CGROUPS, MIB

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/hosts moves processes on every host"),
    pytest.mark.timeout(90),
]


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(","))


@pytest.fixture
def agent(tmp_path):
    """An agent in apply mode that names no partition; ended, and everything undone, at the end."""
    config = tmp_path / "memsculpt.toml"
    config.write_text(
        f'[agent]\nmode = "apply"\ninterval = "500ms"\ncapacity = "1GiB"\n'
        f'socket = "{tmp_path}/agent.sock"\nstate = "{tmp_path}/state"\n'
    )
    environment = {**os.environ, "MEMSCULPT_MACHINE_LOCK": str(tmp_path / "machine.lock")}
    command = [sys.executable, "-m", "memsculpt"]
    started = subprocess.Popen(
        [*command, "run", "--no-listen", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    deadline_s = time.monotonic() + 20
    while not (tmp_path / "agent.sock").exists():
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.02)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        full = [*command, *words, "--json", "--socket", str(tmp_path / "agent.sock")]
        return subprocess.run(full, capture_output=True, text=True, timeout=60, check=False, env=environment)

    yield started, call
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
    started.communicate(timeout=30)


def test_a_partition_is_made_and_undone(agent, start_holder, own_folder):
    """The answer says what stays charged to the old cgroup (the kernel moves no charge); the end takes all back."""
    process, call = agent
    holder = start_holder()
    answer = call("request", own_folder.name, "64MiB", "--within", "5s")
    told = json.loads(answer.stdout)
    deadline_s = time.monotonic() + 20
    while cgroup_of(holder.pid) == f"/{own_folder.name}":
        assert time.monotonic() < deadline_s, told
        time.sleep(0.05)
    made = Path(f"{CGROUPS}{cgroup_of(holder.pid)}")
    seen = json.loads(call("partitions").stdout)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]

    assert answer.returncode == 0, answer.stderr
    assert told["answer"] == "created"
    assert told["stays_charged_bytes"] >= 32 * MIB
    assert told["partition"] in [one["name"] for one in seen["partitions"]]
    assert "memsculpt" in made.parts
    assert process.returncode == 0, said
    assert cgroup_of(holder.pid) == f"/{own_folder.name}"
    assert not made.exists()


def test_more_than_there_is_is_refused_with_figures(agent, start_holder, own_folder):
    """Nothing is made or moved, and the exit code tells."""
    _, call = agent
    holder = start_holder()
    answer = call("request", own_folder.name, "1024GiB", "--within", "5s")
    told = json.loads(answer.stdout)

    assert answer.returncode == 1
    assert told["answer"] == "refused"
    assert "GiB" in told["text"]
    assert cgroup_of(holder.pid) == f"/{own_folder.name}"
