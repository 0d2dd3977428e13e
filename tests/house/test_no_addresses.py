# SPDX-License-Identifier: Apache-2.0
"""Nothing tells where it was made: no package index, no mirror, no path of somebody's machine."""

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, short, tracked

# Written so that this file does not match itself.
PATTERNS = {
    "an index": r"(?<!no-emit-)(?:extra-)?index[-_]url",
    "an index, ": r"(?:^|\s)(?:--)?find[-]links\s*[=\s]\s*\S*[/:]",
    "a registry": r"\bregistry\s*[=]\s*\S*//",
    "a resolved address": r'"resolved"[:]\s*"https?:',
    "a local file's address": r"\bfile[:]///\w",
    "a working folder": r"(?<![\w.\-$}/])/work[/]\w",
    "root's home": r"(?<![\w.$}])/root[/]\.",
}
TEXT_LIMIT_BYTES = 2_000_000


def machine_paths() -> list[str]:
    """Where this checkout lies and who made it, where that is telling enough to be looked for."""
    return [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 2]


def complaints(name: str, text: str) -> list[str]:
    """One line for each place in the text that tells where it was made."""
    found = [
        f"{name}:{number}: names {what.strip(', ')}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in PATTERNS.items()
        if re.search(pattern, line)
    ]
    return found + [f"{name}: names {path}" for path in machine_paths() if path in text]


def test_nothing_tells_where_it_was_made():
    """No tracked file names a registry or a path of this machine."""
    found = [
        line
        for path in tracked()
        if path.stat().st_size < TEXT_LIMIT_BYTES
        for line in complaints(short(path), path.read_text(errors="replace"))
    ]
    assert not found, "take these out:\n" + "\n".join(found)


def test_locks_hold_names_versions_and_hashes_only():
    """Every requirement is pinned and hashed, and no line of a lock is anything else."""
    allowed = re.compile(r"#.*|[a-z0-9.\-]+==[\w.]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    for lock in sorted((ROOT / "requirements").iterdir()):
        wrong = [line for line in lock.read_text().splitlines() if not allowed.fullmatch(line)]
        assert not wrong, f"{short(lock)}: made by hand? `make lock` writes no such line: {wrong[:3]}"


def test_what_is_tested_is_what_is_run():
    """The lock for tests holds everything of the lock for running, with the same pins (and perhaps on more Pythons)."""
    run, dev = (
        {line.split(" ")[0] for line in (ROOT / "requirements" / name).read_text().splitlines() if "==" in line}
        for name in ("run.txt", "dev.txt")
    )
    assert sorted(run - dev) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--index" + "-url https://pypi.example/simple", 1),
        ("find" + "-links = /opt/wheels", 1),
        ("pip compile --no-emit-index" + "-url --no-emit-find" + "-links -o x", 0),
        ("see file:" + "///opt/x", 1),
        ("cd /wo" + "rk/elsewhere", 1),
        ("/fra/me/wo" + "rk/x, ../work" + "/x", 0),
        ("the API answers on http://127.0.0.1:8787/", 0),
    ],
)
def test_the_rule_finds_what_it_should(line, found):
    """Each pattern is found, and what only looks like one is not."""
    assert len(complaints("example", line)) == found
