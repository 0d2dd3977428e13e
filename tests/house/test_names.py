# SPDX-License-Identifier: Apache-2.0
"""Rooms and classes are named for what they are about (style rule 7)."""

import ast
import re

from tests.house.tree import SOURCE, parsed, python_files, short

# A room with such a name collects what found no home elsewhere.
NO_ROOM = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "misc", "lib", "shared"}
# Such a class says that it does something, not what it is.
NO_CLASS = re.compile(r"(Manager|Handler|Helper|Processor|Utils?)$")


def test_no_room_collects_leftovers():
    """No package or module of ours has a name that fits anything."""
    wrong = [
        short(path)
        for path in python_files("src")
        if NO_ROOM & {part.removesuffix(".py") for part in path.relative_to(SOURCE).parts}
    ]
    assert not wrong, f"name these after their subject: {wrong}"


def test_no_class_is_named_for_handling():
    """No class of ours is a Manager, Handler, Helper, Processor or Util."""
    wrong = [
        f"{short(path)}:{node.lineno} {node.name}"
        for path in python_files("src")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and NO_CLASS.search(node.name)
    ]
    assert not wrong, f"name these after what they are: {wrong}"
