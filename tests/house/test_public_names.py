# SPDX-License-Identifier: Apache-2.0
"""Every package says what it offers (style rule 10)."""

import ast
import importlib

import pytest

from tests.house.tree import SOURCE, parsed, python_files, short

PACKAGES = [path for path in python_files("src") if path.name == "__init__.py"]


@pytest.mark.parametrize("path", PACKAGES, ids=short)
def test_a_package_lists_its_public_names(path):
    """`__all__` is there, and each name in it is too."""
    assigned = {
        target.id
        for node in parsed(path).body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned, f"{short(path)} lists no public names: give it an __all__, may it be empty"
    module = importlib.import_module(".".join(path.parent.relative_to(SOURCE).parts))
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, f"{short(path)} promises names that it does not have: {missing}"


def test_every_folder_with_code_is_a_package():
    """A folder without __init__.py would be left out of the wheel and of the import contract."""
    folders = {path.parent for path in python_files("src")}
    wrong = [short(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not wrong, f"give these an __init__.py with docstring and __all__: {wrong}"
