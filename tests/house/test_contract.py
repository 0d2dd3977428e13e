# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (style rules 1 to 6): the contract in pyproject.toml, run as a test."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.tree import ROOT, SOURCE

# Modules of later issues: the tool refuses a contract that names what is not there, so they join it when they come.
JOIN_WHEN_THEY_COME = ("memsculpt.host.recorded", "memsculpt.doors.top", "memsculpt.doors.metrics", "memsculpt.workers")


@pytest.mark.skipif(not (SOURCE / "memsculpt/doors/cli").is_dir(), reason="the upper rooms are not written yet")
@pytest.mark.timeout(60)
def test_the_import_contract_holds():
    """Rooms import only what lies below them, and stages do not import one another."""
    command = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run(
        [command, "--no-logo", "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("module", JOIN_WHEN_THEY_COME)
def test_the_contract_names_every_module_that_it_should(module):
    """A module that exists by now is named in the contract that is about it."""
    path = SOURCE.joinpath(*module.split("."))
    exists = path.is_dir() or path.with_suffix(".py").exists()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = [
        name
        for contract in contracts
        for key in ("modules", "forbidden_modules", "protected_modules")
        for name in contract.get(key, [])
    ]
    assert not exists or module in named, f"{module} is there now: name it in [tool.importlinter] of pyproject.toml"
