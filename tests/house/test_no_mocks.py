# SPDX-License-Identifier: Apache-2.0
"""Our own code is not mocked: a test hands in a simulated host (style rule 28)."""

import ast
from collections.abc import Iterator

import pytest

from tests.house.tree import parsed, python_files, short

PATCHERS = {"patch", "object", "dict", "multiple", "setattr", "delattr"}
OURS = ("memsculpt", "memsculpt_bench")


def is_ours(module: str | None) -> bool:
    """Whether the dotted name belongs to one of our packages."""
    return (module or "").split(".")[0] in OURS


def our_names(tree: ast.Module) -> set[str]:
    """Names in a module that an import bound to something of ours."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names if is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def mocked_lines(tree: ast.Module) -> Iterator[int]:
    """Lines that patch something of ours: mock.patch("memsculpt..."), patch.object(ours, ...), monkeypatch.setattr."""
    ours = our_names(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in PATCHERS:
            continue
        if called in ("object", "dict", "multiple") and "patch" not in ast.unparse(node.func):
            continue
        if called in ("setattr", "delattr") and not isinstance(node.func, ast.Attribute):
            continue
        target = node.args[0]
        if isinstance(target, ast.Constant) and isinstance(target.value, str) and is_ours(target.value):
            yield node.lineno
        while isinstance(target, ast.Attribute):
            target = target.value
        if isinstance(target, ast.Name) and target.id in ours:
            yield node.lineno


def test_our_own_code_is_not_mocked():
    """No test replaces a part of memsculpt behind its back."""
    wrong = [
        f"{short(path)}:{line}" for path in python_files("tests", "examples") for line in mocked_lines(parsed(path))
    ]
    assert not wrong, f"hand in a simulated host, a root folder or a clock instead of patching: {wrong}"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("from unittest import mock\nmock.patch('memsculpt.host.linux.psi.read')", [2]),
        ("from memsculpt.host import doctor\nmonkeypatch.setattr(doctor, 'examine', None)", [2]),
        ("import memsculpt.config as c\nmock.patch.object(c.Settings, 'x')", [2]),
        ("import os\nmonkeypatch.setattr(os, 'x', 1)\nmonkeypatch.setenv('memsculpt', '1')", []),
        ("from memsculpt import domain\nobject.__setattr__(domain.x, 'y', 1)\nsetattr(domain, 'x', 1)", []),
    ],
)
def test_the_rule_finds_what_it_should(code, lines):
    """Each way to patch is found, and what only looks like one is not."""
    assert list(mocked_lines(ast.parse(code))) == lines
