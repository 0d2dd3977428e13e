# SPDX-License-Identifier: Apache-2.0
"""The test session's own promises (tests/conftest.py): skips with a reason, refused where all is required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import sweep_cgroups

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

DOCTOR = """
from types import SimpleNamespace
def examine():
    return {
        "zram": SimpleNamespace(name="zram", available=False, reason="no zram device", fix="modprobe zram"),
        "psi": SimpleNamespace(name="psi", available=True, reason="", fix=""),
    }
"""

SAMPLE = """
import pytest

@pytest.mark.needs("psi")
def test_runs(): pass

@pytest.mark.needs("zram")
def test_lacks(): pass

@pytest.mark.needs("zram", elsewhere="tests/vm has it")
def test_lacks_but_runs_elsewhere(): pass

@pytest.mark.elsewhere("not for this host")
def test_skips_for_a_declared_reason(): pytest.skip("declared")

@pytest.mark.needs("typo")
def test_misspelt(): pass
"""


def run_sample(folder: Path, require: str) -> str:
    """Run the sample tests under our conftest with a made-up doctor; return what pytest printed."""
    package = folder / "memsculpt/host"
    package.mkdir(parents=True)
    (folder / "memsculpt/__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "doctor.py").write_text(DOCTOR)
    (folder / "conftest.py").write_text(CONFTEST.read_text().replace('"/sys/fs/cgroup', f'"{folder}/none'))
    (folder / "test_sample.py").write_text(SAMPLE)
    (folder / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\nmarkers =\n    needs(c, elsewhere=None)\n    elsewhere(r)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsfE", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={**os.environ, "MEMSCULPT_REQUIRE": require},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return ran.stdout + ran.stderr


@pytest.mark.timeout(60)
def test_a_skip_tells_doctors_reason(tmp_path):
    """What the machine lacks is skipped with doctor's words; a misspelt need is an error."""
    printed = run_sample(tmp_path, require="")
    assert "1 passed, 3 skipped, 1 error" in printed
    assert "zram: no zram device (fix: modprobe zram)" in printed
    assert "doctor knows no such capability; it knows psi, zram" in printed
    assert "memsculpt: this machine offers psi" in printed
    assert "memsculpt: not tested here: zram: no zram device" in printed


@pytest.mark.timeout(60)
def test_where_all_is_required_a_skip_fails(tmp_path):
    """Only a skip that says where the test runs instead stays a skip."""
    printed = run_sample(tmp_path, require="all")
    assert "1 passed, 2 skipped, 2 errors" in printed
    assert "everything is required here" in printed


def test_leftovers_of_a_dead_session_are_removed_and_nothing_else(tmp_path):
    """A living session's cgroup, other people's, and one that cannot be removed stay."""
    dead, ours, foreign, full = (
        tmp_path / name
        for name in (
            "memsculpt-test-99999999-0",
            f"memsculpt-test-{os.getpid()}-0",
            "memsculpt-lab",
            "memsculpt-test-99999999-1",
        )
    )
    for folder in (dead / "child", ours, foreign, full):
        folder.mkdir(parents=True)
    (full / "holds-something").touch()

    lines = sweep_cgroups((str(tmp_path),))

    assert not dead.exists()
    assert ours.exists()
    assert foreign.exists()
    assert full.exists()
    assert [("was removed" in line, "could not be removed" in line) for line in lines] == [
        (True, False),
        (True, False),
        (False, True),
    ]
