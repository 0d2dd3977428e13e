# SPDX-License-Identifier: Apache-2.0
"""The command line: help, exit codes, objects for programs and words for people."""

import json
import subprocess
import sys

import pytest

from memsculpt.doors.api import ApiServer
from memsculpt.doors.cli import main
from memsculpt.doors.cli.command_line import COMMANDS
from tests.doors.scene import HOSTILE, Scene
from tests.house.test_light_commands import HEAVY, PROGRAM
from tests.house.tree import ROOT

ALL = (*COMMANDS, "bench")


@pytest.fixture(scope="module")
def served(scene, tmp_path_factory):
    """The socket of a scene's agent."""
    server = ApiServer(scene, socket_path=str(tmp_path_factory.mktemp("run") / "agent.sock"))
    yield server.start().socket_path
    server.stop()


@pytest.mark.parametrize("command", ALL)
def test_each_command_has_help_with_an_example(command, capsys):
    """And every one can print an object."""
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"memsculpt {command}" in shown.partition("example:")[2]
    assert "--json" in shown


def test_the_help_lists_every_command(capsys):
    """Also those from elsewhere."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [command for command in ALL if f"\n    {command} " not in shown] == []


@pytest.mark.parametrize("command", ["status", "partitions", "plan", "explain"])
def test_a_question_prints_one_object_or_words(served, command, capsys):
    """With --json exactly one object; without, lines that a terminal can be trusted with."""
    assert main([command, "--json", "--socket", served]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert main([command, "--socket", served]) == 0
    shown = capsys.readouterr()
    assert all(line.isprintable() for line in shown.out.splitlines())
    assert not shown.err


def test_a_hostile_name_is_shown_harmlessly(served, capsys):
    """Its line end and its colour are written out."""
    main(["status", "--all", "--socket", served])
    shown = capsys.readouterr().out
    assert r"lab/we\nird \x1b[31m\xff" in shown
    assert HOSTILE not in shown


def test_an_action_is_explained(served, scene, capsys):
    """By its number, with its figures."""
    number = str(scene.report.applied[-1].action_id)
    assert main(["explain", number, "--socket", served]) == 0
    shown = capsys.readouterr().out
    assert f"action {number} " in shown
    assert "FIGURE" in shown


def test_an_unknown_action_fails(served, capsys):
    """Exit code 1; the object on stdout for programs, the words on stderr for people."""
    assert main(["explain", "999999", "--json", "--socket", served]) == 1
    shown = capsys.readouterr()
    assert set(json.loads(shown.out)["error"]) == {"place", "problem", "fix"}
    assert "fix:" in shown.err


@pytest.mark.parametrize(("size", "answer", "code"), [("1MiB", {"enough", "resized"}, 0), ("800GiB", {"refused"}, 1)])
def test_a_request_is_granted_or_refused(tmp_path, size, answer, code, capsys):
    """Exit code 1 when it was refused; the object says why in both cases."""
    scene = Scene()
    scene.tick(3)
    server = ApiServer(scene, socket_path=str(tmp_path / "agent.sock"))
    path = server.start().socket_path
    try:
        assert main(["request", "lab/redis", size, "--within", "10s", "--json", "--socket", path]) == code
    finally:
        server.stop()
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] in answer
    assert told["reason"]["text"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["status", "--loud"],
        ["explain", "twelve"],
        ["request", "a"],
        ["request", "a", "64"],
        ["request", "a", "64MB"],
        ["request", "a", "64MiB", "--within", "soon"],
        ["run", "--observe", "--apply"],
        ["run", "--duration", "60"],
        ["exec", "--partition", "p"],
        ["exec", "--", "true"],
        ["status", "--config", "/no/such/file.toml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told(words, capsys):
    """Exit code 2, with a fix, as an object too when that was asked for; nothing else happens."""
    before = [*words[:1], "--json", *words[1:]] if words and words[0] not in {"fly", "exec"} else words
    assert main(before) == 2
    shown = capsys.readouterr()
    assert "fix:" in shown.err
    if "--json" in before:
        assert json.loads(shown.out)["error"]["fix"]


def test_every_complaint_of_a_configuration_is_in_the_object(tmp_path, capsys):
    """All at once, each with its own line."""
    config = tmp_path / "memsculpt.toml"
    config.write_text('[agent]\ninterval = "1 parsec"\nmodus = "apply"\n')
    words = ["run", "--json", "--config", str(config), "--socket", str(tmp_path / "s"), "--state", str(tmp_path / "t")]
    assert main(words) == 2
    complaints = json.loads(capsys.readouterr().out)["error"]["complaints"]
    assert sorted(one["place"] for one in complaints) == [f"{config}:2", f"{config}:3"]


@pytest.mark.timeout(60)
def test_a_reader_who_leaves_is_no_fault(served):
    """`memsculpt status | head -0` ends without a traceback."""
    command = f"'{sys.executable}' -m memsculpt status --all --socket '{served}' | true"
    ran = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=50, check=False)
    assert not ran.stderr


@pytest.mark.timeout(60)
@pytest.mark.parametrize("arguments", [["explain"], ["request", "a", "1MiB"], ["request", "--help"]], ids=" ".join)
def test_a_question_loads_nothing_heavy(arguments):
    """As tests/house says of the others: neither numpy nor an HTTP library."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=50
    )
    loaded = set(ran.stdout.rpartition("loaded:")[2].split())
    assert "memsculpt" in loaded
    assert not HEAVY & loaded


def test_the_docs_name_every_command_and_option(capsys):
    """docs/reference/commands.md has a part for each command, and names each of its options there."""
    text = (ROOT / "docs/reference/commands.md").read_text()
    for command in ALL:
        _, found, part = text.partition(f"\n## `memsculpt {command}")
        assert found, command
        main([command, "--help"])
        words = (
            capsys.readouterr()
            .out.partition("example:")[0]
            .replace(",", " ")
            .replace("]", " ")
            .replace("[", " ")
            .split()
        )
        options = {word for word in words if word.startswith("--") and len(word) > 2} - {"--help", "--json"}
        assert [option for option in options if option not in part.partition("\n## ")[0]] == [], command
