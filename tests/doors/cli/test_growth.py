# SPDX-License-Identifier: Apache-2.0
"""`memsculpt growth`: what it is asked in a way that makes no sense, and a critical workload of a served agent."""

import json
import os
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from memsculpt.agent import Agent
from memsculpt.domain.settings import PartitionSettings, SenseSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.doors.api import ApiServer, make_app
from memsculpt.doors.cli import main
from memsculpt.host.simulated import Constant, Leak, SimulatedHost
from tests.doors.scene import HOSTILE, MIB

pytestmark = pytest.mark.timeout(60)


class Leaking:
    """An agent whose every question is answered by a tick at once."""

    def __init__(self):
        leak = {"base_bytes": 8 * MIB, "leak_bytes_per_s": 2.0 * MIB, "ceiling_bytes": 256 * MIB}
        host = SimulatedHost(
            3,
            workloads=(
                Leak(name="leaky", cgroup="lab/leaky", **leak),
                Leak(name="odd", cgroup=HOSTILE, **leak),
                Constant(name="calm", cgroup="lab/calm", size_bytes=8 * MIB),
            ),
        )
        partitions = (
            PartitionSettings(name="leaky", match=Match(cgroup="lab/leaky"), critical=True),
            PartitionSettings(name="odd", match=Match(cgroup="lab/we*"), critical=True),
            PartitionSettings(name="calm", match=Match(cgroup="lab/calm")),
        )
        host.watch(partitions)
        self._host = host
        self._lock = threading.Lock()
        self.agent = Agent(host=host, settings=Settings(partitions=partitions, sense=SenseSettings(budget_ratio=0.5)))
        for _ in range(15):
            self.agent.tick()
            host.wait_until(host.now_s() + 1.0)

    @property
    def report(self):
        return self.agent.report

    def ask(self, request):
        raise NotImplementedError

    def ask_growth(self, workload):
        answer = self.agent.ask_growth(workload)
        with self._lock:
            self.agent.tick()
        return answer


@pytest.fixture(scope="module")
def leaking():
    return Leaking()


@pytest.fixture(scope="module")
def served(leaking, tmp_path_factory):
    server = ApiServer(leaking, socket_path=str(tmp_path_factory.mktemp("run") / "agent.sock"))
    yield server.start().socket_path
    server.stop()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["1", "--workload", "lab/leaky"],
        ["--workload", "lab/leaky", "--for", "3s"],
        ["--workload", "lab/leaky", "--every", "3"],
        ["1", "--every", "0"],
        ["1", "--top", "none"],
        ["-7"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_wrong_usage(words, capsys):
    assert main(["growth", *words, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["problem"]
    assert told["fix"]


def test_a_workload_is_told_and_drawn(served, capsys, tmp_path):
    files = {name: tmp_path / f"growth.{name}" for name in ("svg", "html", "speedscope")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["growth", "--workload", "lab/leaky", "--json", "--socket", served, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sampled_every"] == 1
    assert told["touched_bytes"] == pytest.approx(told["grown_bytes"], rel=0.1)
    assert told["held_bytes"] == told["touched_bytes"]
    assert told["touched_error_bytes"] == told["held_error_bytes"] == 0
    assert [one["function"] for one in told["functions"]] == ["main", "fill", "serve", "grow"]
    assert told["modules"] == [
        {"module": "/usr/bin/leaky", "touched_bytes": told["touched_bytes"], "held_bytes": told["held_bytes"]}
    ]
    assert "serve" in files["svg"].read_text()
    assert "<table>" in files["html"].read_text()
    assert sum(json.loads(files["speedscope"].read_text())["profiles"][0]["weights"]) == told["touched_bytes"]


def test_a_workload_is_told_in_words(served, capsys):
    assert main(["growth", "--workload", "lab/leaky", "--socket", served, "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "one page in 1" in shown
    assert "… and 2 more" in shown
    assert "±0 B" in shown


def test_a_hostile_name_is_found_and_shown_harmlessly(served, capsys):
    name = HOSTILE.replace("\udcff", "\\xff")
    assert main(["growth", "--workload", name, "--socket", served]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(("name", "problem"), [("lab/calm", "not sampled"), ("no/such", "there is none of this name")])
def test_who_is_not_sampled_is_refused(served, name, problem, capsys):
    assert main(["growth", "--workload", name, "--json", "--socket", served]) == 1
    assert problem in json.loads(capsys.readouterr().out)["error"]["problem"]


def test_no_agent_is_said_so(tmp_path, capsys):
    assert main(["growth", "--workload", "x", "--socket", str(tmp_path / "none")]) == 1
    assert "no agent answers here" in capsys.readouterr().err


def test_who_reads_on_loopback_cannot_make_the_agent_work(leaking):
    anybody = TestClient(make_app(leaking, takes_requests=False), base_url="http://127.0.0.1:8472")
    assert anybody.get(f"/v1/workloads/{quote('lab/leaky', safe='')}/growth").status_code == 404


def test_the_status_tells_what_it_costs(leaking):
    owner = TestClient(make_app(leaking, takes_requests=True), base_url="http://localhost")
    status = owner.get("/v1/status").json()
    assert status["growth"]["is_on"]
    assert 0.0 <= status["growth"]["spent_ratio"] <= status["growth"]["allowed_ratio"]
    by_id = {one["id"]: one["growth"] for one in status["workloads"]}
    assert by_id["lab/leaky"]["recorded"] > 0
    assert by_id["lab/leaky"]["sampled_every"] == 1
    assert by_id["lab/calm"] is None


# --- a process that cannot be looked at -------------------------------------------------------------------------------


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["kernel thread", "zombie", "thread"])
def test_what_has_no_memory_of_its_own_is_refused(kind, capsys):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    pid = {"kernel thread": 2, "zombie": child.pid, "thread": thread.native_id}[kind]
    try:
        assert main(["growth", str(pid), "--for", "100ms", "--json"]) == 1
    finally:
        done.set()
        thread.join()
        child.wait()
    expected = {"kernel thread": "a thread of the kernel", "zombie": "a zombie", "thread": "is a thread of process"}
    assert expected[kind] in json.loads(capsys.readouterr().out)["error"]["problem"]


@pytest.mark.needs("root")
def test_a_user_without_privilege_is_told(tmp_path):
    """Another user's process, and one's own: neither can be recorded, and both say why."""
    own = subprocess.Popen(["sleep", "60"], user=65534, group=65534, extra_groups=[])
    other = subprocess.Popen(["sleep", "60"])
    try:
        for pid, words in ((other.pid, "belongs to another user"), (own.pid, "does not allow it to this user")):
            ran = subprocess.run(
                [sys.executable, "-m", "memsculpt", "growth", str(pid), "--for", "100ms", "--json"],
                user=65534,
                group=65534,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 3, ran.stderr
            assert words in json.loads(ran.stdout)["error"]["problem"]
    finally:
        for each in (own, other):
            each.kill()
            each.communicate()


@pytest.mark.needs("root")
def test_in_a_container_with_pids_of_its_own_nothing_wrong_is_told():
    """The kernel's program would watch somebody else, or nobody."""
    command = [sys.executable, "-m", "memsculpt", "growth", "1", "--for", "100ms", "--json"]
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 3, ran.stderr
    assert "PID namespace" in json.loads(ran.stdout)["error"]["problem"]


def test_a_file_that_cannot_be_written_is_refused_before_the_wait(capsys):
    assert main(["growth", str(os.getpid()), "--for", "1h", "--svg", "/nowhere/growth.svg"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_refusal_leaves_no_empty_drawing(tmp_path, capsys):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert main(["growth", str(child.pid), "--for", "100ms", "--svg", str(tmp_path / "growth.svg")]) in {1, 3}
    assert list(tmp_path.iterdir()) == []
