# SPDX-License-Identifier: Apache-2.0
"""Every source file says its licence in its first lines (style rule 36)."""

from pathlib import Path

import pytest

from tests.house.tree import ROOT, short, tracked

SOURCES = {".py", ".sh", ".c", ".h", ".ts", ".tsx", ".js", ".css", ".html", ".toml", ".yml", ".yaml", ".service"}
NAMES = {"Makefile", "Kbuild", "run"}
HEAD_BYTES = 400


def is_source(path: Path) -> bool:
    """Whether the file is written by us and has comments to say a licence in."""
    return path.suffix in SOURCES or path.name in NAMES or path.read_bytes().startswith(b"#!")


def licence_of(path: Path) -> str:
    """What runs inside the kernel is GPL-2.0-only, all else Apache-2.0."""
    return "GPL-2.0-only" if path.is_relative_to(ROOT / "native") else "Apache-2.0"


def test_every_source_file_says_its_licence():
    """The header is there, and it names the licence of the folder."""
    wrong = [
        f"{short(path)}: SPDX-License-Identifier: {licence_of(path)}"
        for path in tracked()
        if is_source(path)
        and f"SPDX-License-Identifier: {licence_of(path)}".encode() not in path.read_bytes()[:HEAD_BYTES]
    ]
    assert not wrong, "these lack their header:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["LICENSE", "LICENSES/Apache-2.0.txt", "LICENSES/GPL-2.0-only.txt"])
def test_the_licences_are_there_in_full(name):
    """A header points to a text that is in the repository."""
    assert len((ROOT / name).read_text()) > 10_000
