# SPDX-License-Identifier: Apache-2.0
"""The files that the rules of the house are about: what git tracks, as it is on disk now."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Every tracked file that exists; without git (an unpacked release) every file outside build folders."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, timeout=10
        )
        paths = [ROOT / name.decode() for name in listing.stdout.split(b"\0") if name]
    else:
        skipped = {".venv", "build", "dist", ".git", "node_modules", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    """The tracked Python files below the given folders of the repository."""
    return [
        path
        for path in tracked()
        if path.suffix == ".py" and any(path.is_relative_to(ROOT / folder) for folder in folders)
    ]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_bytes(), filename=str(path))


def short(path: Path) -> str:
    """The path as a person in the repository writes it."""
    return str(path.relative_to(ROOT))
