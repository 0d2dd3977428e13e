# SPDX-License-Identifier: Apache-2.0
"""`memsculpt heat`: options that make no sense, and one's own process looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memsculpt.doors.cli.command_line import main


@pytest.mark.parametrize(
    "words",
    [
        ["heat", "abc"],
        ["heat", "0"],
        ["heat", "-5"],
        ["heat", "1", "--for", "soon"],
        ["heat", "1", "--for", "1ms"],
        ["heat", "1", "--block", "48KiB"],
        ["heat", "1", "--block", "4MiB"],
        ["growth", "1", "--every", "0"],
        ["growth", "x"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_wrong_usage(words, capsys):
    assert main([*words, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["problem"]
    assert told["fix"]


@pytest.mark.parametrize("command", ["heat", "growth"])
def test_who_is_not_there_is_said_so(command, capsys):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert main([command, str(child.pid), "--for", "100ms"]) in {1, 3}
    assert "fix:" in capsys.readouterr().err


def test_a_picture_that_cannot_be_kept_is_refused_before_the_wait(capsys):
    assert main(["heat", str(os.getpid()), "--for", "1h", "--png", "/nowhere/heat.png"]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.needs("root")
@pytest.mark.needs("page_walk")
def test_the_object_is_the_contract_s(capsys, tmp_path):
    """And the picture is a PNG."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            (
                "import mmap\nheld = mmap.mmap(-1, 8 << 20)\nprint('ready', flush=True)\n"
                "while True:\n    for at in range(0, 4 << 20, 4096): held[at] = 1"
            ),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        child.stdout.readline()
        picture = tmp_path / "heat.png"
        assert (
            main(["heat", str(child.pid), "--for", "600ms", "--every", "200ms", "--json", "--png", str(picture)]) == 0
        )
        told = json.loads(capsys.readouterr().out)
    finally:
        child.kill()
        child.communicate()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert told["source"] == "bpf"
    assert told["frames"] == 3
    assert told["complete"]
    assert told["interval_s"] == pytest.approx(0.6, rel=0.5)
    assert 1024 <= told["touched_pages"] <= told["resident_pages"]
    assert told["wss_bytes"] == told["touched_pages"] * 4096
    assert sum(one["touched_pages"] for one in told["mappings"]) == told["touched_pages"]
    assert sum(one["resident_pages"] for one in told["mappings"]) == told["resident_pages"]
    for one in told["mappings"]:
        assert sum(count for _, count in one["blocks"]) == one["touched_pages"]
        assert all(one["start"] - 65536 < address < one["end"] for address, _ in one["blocks"])
    assert max(one["touched_pages"] for one in told["mappings"]) >= 1024


def test_another_source_can_be_asked_for(capsys):
    """The coarsest needs no privilege for processes of one's own."""
    assert main(["heat", str(os.getpid()), "--source", "smaps", "--for", "100ms", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source"], told["grain"]) == ("smaps", "mapping")
    assert told["touched_pages"] > 0


@pytest.mark.parametrize(("name", "code"), [("nonsense", 2), ("page_idle", 3)])
def test_a_source_that_is_not_to_be_had_is_refused(name, code, capsys):
    if name == "page_idle" and Path("/sys/kernel/mm/page_idle/bitmap").exists() and os.geteuid() == 0:
        name, code = "page-idle", 2  # it is to be had here, but not by that name
    assert main(["heat", str(os.getpid()), "--source", name, "--for", "100ms", "--json"]) == code
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["place"] == f"source {name}"
    assert told["fix"]
