# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md answers "where is ...?", so every path in it exists."""

import re

import pytest

from tests.house.tree import ROOT, SOURCE

DOCUMENT = ROOT / "docs/architecture.md"
# `host/linux/psi.py`, `doors/api/`, `native/bpf/tasks.bpf.c`; not `a -> b`, not `memory.high`, not /proc.
PATH = re.compile(r"`((?:[\w.\-]+/)+[\w.\-]*|[\w\-]+\.(?:py|toml|md))`")
BASES = (ROOT, SOURCE, SOURCE / "memsculpt", ROOT / "docs")


def paths_in(text: str) -> list[str]:
    """Every path of the repository that the text names; lines that say "planned" speak of later."""
    return [path for line in text.splitlines() if "planned" not in line for path in PATH.findall(line)]


@pytest.mark.skipif(not DOCUMENT.exists(), reason="docs/architecture.md is not written yet")
def test_every_path_in_the_architecture_exists():
    """The document names it, so it is there."""
    named = sorted(set(paths_in(DOCUMENT.read_text())))
    missing = [path for path in named if not any((base / path).exists() for base in BASES)]
    assert named
    assert not missing, f"docs/architecture.md names what does not exist: {missing}"


def test_the_rule_finds_paths():
    """Paths are found in tables; kernel names, commands and later things are not."""
    text = (
        "| RSS | `host/linux/procfs.py`, `agent.py` |\n"
        "| x | `memory.high`, `/proc/self/stat`, `make run` |\n"
        "| y | `web/` (planned) |"
    )
    assert paths_in(text) == ["host/linux/procfs.py", "agent.py"]
