# SPDX-License-Identifier: Apache-2.0
"""Who cannot write down what he changes must not change it: state folders that cannot be written, really."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="the journal's own tests refuse writes on every host"),
    pytest.mark.timeout(90),
]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of our own, taken down at the end."""
    place = tmp_path / "small"
    place.mkdir()

    def mounted(options: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "memsculpt-test", str(place)], check=True)
        return place

    yield mounted
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def a_file(tmp_path: Path, _mount: Callable[..., Path]) -> Path:
    (tmp_path / "taken").write_text("no folder\n")
    return tmp_path / "taken"


def read_only(_tmp_path: Path, mount: Callable[..., Path]) -> Path:
    return mount("size=64k,ro") / "state"


def full(_tmp_path: Path, mount: Callable[..., Path]) -> Path:
    place = mount("size=64k")
    (place / "state").mkdir(mode=0o700)
    with pytest.raises(OSError, match="No space left"):
        (place / "filler").write_bytes(bytes(1 << 20))
    return place / "state"


@pytest.mark.parametrize("broken", [a_file, read_only, full])
def test_the_agent_only_observes_and_says_so(broken, tmp_path, mount, own_folder):
    """--apply with a partition whose guarantee is to be set: it is not, the ticks go on, and the reason is told."""
    state = broken(tmp_path, mount)
    config = tmp_path / "memsculpt.toml"
    config.write_text(
        f'[agent]\nmode = "apply"\ninterval = "500ms"\nsocket = "{tmp_path}/agent.sock"\nstate = "{state}"\n'
        f'[[partition]]\nname = "kept"\nmatch = {{ cgroup = "{own_folder.name}" }}\nkind = "fixed"\nsize = "96MiB"\n'
    )
    limit = own_folder / "memory.limit_in_bytes"
    before = limit.read_bytes()
    seen = subprocess.run(
        [sys.executable, "-m", "memsculpt", "run", "--no-listen", "--json", "--duration", "3s", "--config", config],
        capture_output=True,
        text=True,
        env={**os.environ, "MEMSCULPT_MACHINE_LOCK": str(tmp_path / "machine.lock")},
        timeout=60,
        check=False,
    )
    summary = json.loads(seen.stdout)

    assert limit.read_bytes() == before
    assert summary["tick_count"] >= 3
    assert summary["failed_count"] == 0
    assert "done" not in summary["actions"]
    assert str(state) in seen.stderr
    assert seen.returncode == 0
