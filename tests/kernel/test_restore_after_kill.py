# SPDX-License-Identifier: Apache-2.0
"""The promise that everything comes back: a real agent in apply mode, killed, on a real cgroup of our own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup/memory")
BUDGETS = ("memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes")

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/vm runs the same on cgroup v2"),
    pytest.mark.timeout(90),
]


@pytest.fixture
def cgroup(own_cgroup_name):
    """A memory cgroup with a sleeping process in it; both gone afterwards."""
    folder = CGROUPS / own_cgroup_name
    folder.mkdir()
    sleeper = subprocess.Popen(["sleep", "300"])
    try:
        (folder / "cgroup.procs").write_text(str(sleeper.pid))
        yield folder
    finally:
        sleeper.kill()
        sleeper.wait()
        deadline_s = time.monotonic() + 10
        while True:
            try:
                folder.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)


def budgets(folder):
    """Every budget's text, byte for byte."""
    return {name: (folder / name).read_bytes() for name in BUDGETS if (folder / name).exists()}


def write_config(tmp_path, folder):
    config = tmp_path / "memsculpt.toml"
    config.write_text(
        f'[agent]\nmode = "apply"\ninterval = "500ms"\ncapacity = "1GiB"\n'
        f'socket = "{tmp_path}/agent.sock"\nstate = "{tmp_path}/state"\n'
        f'[[partition]]\nname = "kept"\nmatch = {{ cgroup = "{folder.name}" }}\nkind = "fixed"\nsize = "96MiB"\n'
    )
    return config


def start(tmp_path, config):
    environment = {**os.environ, "MEMSCULPT_MACHINE_LOCK": str(tmp_path / "machine.lock")}
    command = [sys.executable, "-m", "memsculpt"]
    agent = subprocess.Popen(
        [*command, "run", "--no-listen", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    return agent, command, environment


def wait_for_change(folder, before, agent):
    deadline_s = time.monotonic() + 20
    while budgets(folder) == before:
        assert agent.poll() is None, agent.communicate()[0]
        assert time.monotonic() < deadline_s, "the agent changed nothing"
        time.sleep(0.02)


def test_restore_after_kill_9(cgroup, tmp_path):
    """Every budget is as before, byte for byte, once `restore` has run in a fresh process."""
    before = budgets(cgroup)
    config = write_config(tmp_path, cgroup)
    agent, command, environment = start(tmp_path, config)
    try:
        wait_for_change(cgroup, before, agent)
        assert (cgroup / "memory.limit_in_bytes").read_text() == f"{96 << 20}\n"
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.communicate()
    assert budgets(cgroup) != before
    words = [*command, "restore", "--json", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    assert budgets(cgroup) == before


def test_a_normal_end_undoes_and_what_others_changed_stays(cgroup, tmp_path):
    """SIGTERM puts back what is ours; a limit that somebody else set meanwhile is left alone and reported."""
    before = budgets(cgroup)
    config = write_config(tmp_path, cgroup)
    agent, _, _ = start(tmp_path, config)
    try:
        wait_for_change(cgroup, before, agent)
        (cgroup / "memory.limit_in_bytes").write_text(str(200 << 20))
    finally:
        agent.send_signal(signal.SIGTERM)
        output, _ = agent.communicate(timeout=30)
    assert (cgroup / "memory.limit_in_bytes").read_text() == f"{200 << 20}\n"
    assert "left" in output
    assert agent.returncode == 0, output


def test_the_next_start_undoes_what_a_killed_agent_left(cgroup, tmp_path):
    """The new agent says so, and puts the values back before it plans anything."""
    before = budgets(cgroup)
    config = write_config(tmp_path, cgroup)
    agent, _, _ = start(tmp_path, config)
    try:
        wait_for_change(cgroup, before, agent)
    finally:
        agent.kill()
        agent.communicate()
    (tmp_path / "agent.sock").unlink()
    agent, _, _ = start(tmp_path, config)
    deadline_s = time.monotonic() + 20
    while not (tmp_path / "agent.sock").exists():
        assert agent.poll() is None, agent.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    wait_for_change(cgroup, before, agent)
    agent.send_signal(signal.SIGTERM)
    output, _ = agent.communicate(timeout=30)
    assert "an earlier agent left changes behind" in output
    assert budgets(cgroup) == before
