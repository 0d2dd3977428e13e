# SPDX-License-Identifier: Apache-2.0
"""`memsculpt exec` on a real cgroup of the test's own: the program is in it, and nothing else is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup/memory")
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="guests with cgroup v2 are in tests/vm"),
    pytest.mark.needs("cgroup_limits"),
]


@pytest.fixture
def cgroup():
    """An empty cgroup, removed afterwards."""
    path = ROOT / f"memsculpt-test-{os.getpid()}-exec"
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def call(tmp_path, cgroup):
    """Run `memsculpt exec` with a configuration of three partitions."""
    config = tmp_path / "memsculpt.toml"
    rules = {"named": cgroup.name, "pattern": f"{cgroup.name}*", "absent": f"{cgroup.name}/absent"}
    config.write_text(
        "".join(f'[[partition]]\nname = "{name}"\nmatch = {{ cgroup = "{rule}" }}\n' for name, rule in rules.items())
    )

    def run(partition, *command):
        words = [sys.executable, "-m", "memsculpt", "exec", "--config", str(config), "--partition", partition, "--"]
        return subprocess.run([*words, *command], capture_output=True, text=True, timeout=50, check=False)

    return run


def test_the_program_is_in_the_partition(call, cgroup):
    """From its first page on, and its exit code is ours."""
    ran = call("named", "/bin/sh", "-c", "cat /proc/self/cgroup; exit 7")
    assert f":memory:/{cgroup.name}\n" in ran.stdout
    assert ran.returncode == 7


@pytest.mark.parametrize(("partition", "code"), [("pattern", 2), ("absent", 1), ("unknown", 2)])
def test_where_there_is_nothing_to_enter_it_says_so(call, cgroup, partition, code):
    """The program is not started, and no cgroup is made behind its owner's back."""
    ran = call(partition, "echo", "started")
    assert ran.returncode == code, ran.stderr
    assert "started" not in ran.stdout
    assert "fix:" in ran.stderr
    assert [path for path in cgroup.iterdir() if path.is_dir()] == []


def test_a_program_that_is_not_there_is_told(call):
    """With its name."""
    ran = call("named", "no-such-program")
    assert ran.returncode == 1
    assert "no-such-program" in ran.stderr
