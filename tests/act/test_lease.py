# SPDX-License-Identifier: Apache-2.0
"""Limits expire when their agent dies or hangs: real processes, really killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memsculpt.act import Lease, lease_for, restore_command
from memsculpt.domain.plan import LimitKind
from tests.act.builders import new_host

ROOT = Path(__file__).parents[2]
OLD = "8589934592\n"
pytestmark = pytest.mark.timeout(60)


def until(holds, what, deadline_s=40.0):
    """Poll until it holds."""
    end_s = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end_s, f"waited in vain for: {what}"
        time.sleep(0.02)


def is_alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class StandIn:
    """A running stand-in for the agent, which squeezed the cgroup "cache"."""

    def __init__(self, folder, lease_s):
        self.host = new_host(folder / "host")
        self.state = folder / "state"
        arguments = ["agent", folder / "host", self.state, str(lease_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.act.stand_in", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.guardian = int(self.process.stdout.readline())
        assert self.limit() == "1048576\n"

    def limit(self):
        """What the cgroup's limit holds now."""
        return self.host.text("cache", LimitKind.LIMIT)

    def log(self):
        """What the guardian said."""
        return (self.state / "guardian.log").read_text()


@pytest.fixture
def stand_in(tmp_path):
    started = []

    def start(lease_s):
        started.append(StandIn(tmp_path, lease_s))
        return started[-1]

    yield start
    for each in started:
        each.process.stdin.close()  # a normal end, where it is still alive
        try:
            each.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()
        each.process.stdout.close()
        until(lambda each=each: not is_alive(each.guardian), "the guardian's end")


def test_a_killed_agent_is_undone(stand_in):
    """After kill -9 and one lease, every value is as before, and the guardian is gone."""
    agent = stand_in(0.5)
    agent.process.kill()
    until(lambda: agent.limit() == OLD, "the limit to be restored")
    until(lambda: not is_alive(agent.guardian), "the guardian's end")
    assert "is gone without having restored" in agent.log()


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_an_agent_that_does_not_renew_is_ended_and_undone(stand_in, how):
    """A stopped or hung agent cannot lift its squeeze, so it is killed when its lease is over."""
    agent = stand_in(1.5)
    if how == "stopped":
        agent.process.send_signal(signal.SIGSTOP)
    else:
        agent.process.stdin.write("hang\n")
        agent.process.stdin.flush()
    until(lambda: agent.limit() == OLD, "the limit to be restored")
    assert agent.process.wait() == -signal.SIGKILL
    assert "has not renewed its lease" in agent.log()


def test_a_living_agent_keeps_its_limits(stand_in):
    """Many leases long, as long as it renews."""
    agent = stand_in(1.0)
    end_s = time.monotonic() + 3.0
    until(lambda: time.monotonic() > end_s, "three leases")
    assert agent.limit() == "1048576\n"
    assert agent.process.poll() is None
    assert agent.log() == ""


def test_a_normal_end_dismisses_the_guardian(stand_in):
    """The agent restores by itself; the guardian does nothing and is gone with it."""
    agent = stand_in(30.0)
    agent.process.stdin.close()
    assert agent.process.wait(timeout=20) == 0
    assert agent.limit() == OLD
    until(lambda: not is_alive(agent.guardian), "the guardian's end", deadline_s=5.0)
    assert agent.log() == ""


def test_the_guardian_survives_what_ends_the_agents_group(stand_in):
    """Ctrl-C and a service manager's SIGTERM do not end it before the agent has restored."""
    agent = stand_in(0.5)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(agent.guardian, number)
    assert os.getsid(agent.guardian) != os.getsid(agent.process.pid)
    agent.process.kill()
    until(lambda: agent.limit() == OLD, "the limit to be restored")


def test_no_signal_finds_the_guardian_before_its_trap(tmp_path):
    """Not even one that comes while its shell still starts; ours are handled as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    lease = Lease.start(tmp_path, lease_s=30.0, now_s=0.0, command=("true",))
    status = Path(f"/proc/{lease.pid}/status").read_text().splitlines()
    masks = dict(line.split(":") for line in status if line.startswith(("SigBlk", "SigIgn")))
    unheard = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
    lease.end()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert unheard >> (number - 1) & 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_the_guardian_is_small(stand_in):
    """Waiting costs a few MiB at most, its children included."""
    agent = stand_in(30.0)
    pids = [agent.guardian]
    for pid in pids:
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    pss_kib = sum(
        int(line.split()[1])
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
    assert 0 < pss_kib < 4096, f"{len(pids)} processes, {pss_kib} KiB"


def test_a_guardian_that_went_away_is_replaced(tmp_path):
    """A lease is never without its guardian for longer than a tick."""
    lease = Lease.start(tmp_path, lease_s=30.0, now_s=0.0, command=("false",))
    first = lease.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_alive(first), "the guardian's death")
    lease.renew(1.0)
    second = lease.pid
    assert second not in (None, first)
    assert is_alive(second)
    assert lease.replaced_count == 1
    lease.end()
    assert lease.pid is None
    assert not is_alive(second)


def test_a_lease_is_long_enough_for_slow_agents():
    """Four ticks may be missed, and never less than some seconds."""
    assert lease_for(1.0) == 15.0
    assert lease_for(60.0) == 240.0


def test_the_command_works_from_any_folder(monkeypatch, tmp_path):
    """The guardian runs in /, so the state folder is named in full."""
    monkeypatch.chdir(tmp_path)
    assert restore_command("state")[-1] == str(tmp_path / "state")
