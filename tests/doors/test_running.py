# SPDX-License-Identifier: Apache-2.0
"""The command line as people type it: a real agent observing this machine, asked, doubled, ended; and bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def environment(tmp_path):
    """A lock of the test's own, so that an agent on this machine is no hindrance."""
    return {**os.environ, "MEMSCULPT_MACHINE_LOCK": str(tmp_path / "machine.lock")}


@pytest.fixture
def call(tmp_path, environment):
    """Run memsculpt with these words to its end."""

    def run(*words):
        command = [sys.executable, "-m", "memsculpt", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment, check=False)

    return run


@pytest.fixture
def start(tmp_path, environment):
    """Start an agent that observes, with all of its places in the test's folder; wait until it answers."""
    started = []

    def begin(*words):
        socket = tmp_path / "agent.sock"
        command = [sys.executable, "-m", "memsculpt", "run", "--no-listen", "--json", "--socket", str(socket)]
        command += ["--state", str(tmp_path / "state"), *words]
        agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(agent)
        deadline_s = time.monotonic() + 20
        while not socket.exists():
            assert agent.poll() is None, agent.communicate()[1]
            assert time.monotonic() < deadline_s, "the agent does not listen"
            time.sleep(0.02)
        return agent, str(socket)

    yield begin
    for agent in started:
        if agent.poll() is None:
            agent.kill()
        agent.communicate()


def status_with_ticks(call, socket, least):
    """Ask until the agent has ticked."""
    deadline_s = time.monotonic() + 20
    while True:
        asked = call("status", "--json", "--socket", socket)
        if asked.returncode == 0 and json.loads(asked.stdout)["agent"]["tick_count"] >= least:
            return json.loads(asked.stdout)
        assert time.monotonic() < deadline_s, asked.stderr


def test_an_agent_observes_answers_and_ends_in_good_order(start, call):
    """Its status has the contract's shape; SIGTERM ends it with a summary and exit code 0."""
    agent, socket = start()
    status = status_with_ticks(call, socket, 2)
    assert status["mode"] == "observe"
    assert {"cpu_share", "resident_bytes"} <= set(status["agent"])
    assert status["workloads"]
    assert status["partitions"] == []
    for command in ("partitions", "plan", "explain"):
        asked = call(command, "--json", "--socket", socket)
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout) is not None
    agent.send_signal(signal.SIGTERM)
    output, errors = agent.communicate(timeout=20)
    summary = json.loads(output)
    assert agent.returncode == 0, errors
    assert summary["failed_count"] == 0
    assert summary["tick_count"] >= 2
    assert "observing" in errors


def test_a_duration_ends_it(start):
    """With a summary, and exit code 0."""
    agent, _ = start("--duration", "2s")
    output, _ = agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert json.loads(output)["tick_count"] in {2, 3}


def test_a_second_agent_is_refused(start, call, tmp_path):
    """It says who is at work, and touches nothing."""
    agent, _ = start()
    places = ("--socket", str(tmp_path / "run" / "2.sock"), "--state", str(tmp_path / "other"))
    second = call("run", "--no-listen", *places)
    assert second.returncode == 1
    assert str(agent.pid) in second.stderr
    assert "fix:" in second.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("address", ["0.0.0.0:8472", "nowhere", "127.0.0.1:99999", "[::]:80"])
def test_an_address_that_cannot_be_is_refused_before_anything_is_made(call, tmp_path, address):
    """Exit code 2, and neither the socket's folder nor the state's is there."""
    places = ("--socket", str(tmp_path / "run" / "agent.sock"), "--state", str(tmp_path / "state"))
    ran = call("run", "--duration", "1s", "--listen", address, *places)
    assert ran.returncode == 2, ran.stderr
    assert "fix:" in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_without_an_agent_the_fix_is_to_start_one(call, tmp_path):
    """Exit code 1."""
    asked = call("status", "--socket", str(tmp_path / "none.sock"))
    assert asked.returncode == 1
    assert "make run" in asked.stderr


BAD = {
    "unknown key": ('[agent]\nintervall = "1s"\n', ":2", "interval"),
    "wrong unit": ('[agent]\ninterval = "1 parsec"\n', ":2", "parsec"),
    "guarantees that do not fit": (
        '[agent]\ncapacity = "1GiB"\n[[partition]]\nname = "a"\nmatch = { exe = "*/a" }\nguarantee = "2GiB"\n',
        "",
        "2.0 GiB",
    ),
    "absent cgroup": ('[[partition]]\nname = "a"\nmatch = { cgroup = "no/such/cgroup" }\n', ":2", "no/such/cgroup"),
    "two rules, one workload": (
        (
            '[[partition]]\nname = "a"\nmatch = { exe = "*python*" }\n'
            '[[partition]]\nname = "b"\nmatch = { exe = "*pyth*" }\n'
        ),
        "",
        '"a"',
    ),
    "no TOML": ("[agent\n", ":1", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_cannot_be_followed_is_refused(case, call, tmp_path):
    """Exit code 2, with file, line where there is one, what is wrong and the fix; nothing is made."""
    text, line, word = BAD[case]
    config = tmp_path / "memsculpt.toml"
    config.write_text(text)
    made = call(
        "run", "--no-listen", "--config", str(config), "--socket", str(tmp_path / "s"), "--state", str(tmp_path / "st")
    )
    assert made.returncode == 2, made.stderr
    assert f"{config}{line}" in made.stderr
    assert word in made.stderr
    assert "fix:" in made.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", [["fly"], ["run", "--duration", "soon"], ["run", "--listen", "0.0.0.0:80"], []])
def test_wrong_usage(words, call, tmp_path):
    """Exit code 2."""
    more = ["--socket", str(tmp_path / "s"), "--state", str(tmp_path / "st")] if words[:1] == ["run"] else []
    assert call(*words, *more).returncode == 2
