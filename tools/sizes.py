# SPDX-License-Identifier: Apache-2.0
"""Print the files and functions past the lengths at which a reviewer asks what the second subject is (style rule 8).

A report, not a rule: a long table of kernel fields is one subject, three short functions can be two.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60
ROOT = Path(__file__).resolve().parents[1]


def long_functions(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def main() -> None:
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        functions.extend(long_functions(path, ast.parse(text)))
        if (lines := text.count("\n")) > FILE_LINES:
            files.append((lines, str(path.relative_to(ROOT))))
    for title, found in (
        (f"files past {FILE_LINES} lines", files),
        (f"functions past {FUNCTION_LINES} lines", functions),
    ):
        print(f"{title}: {len(found)}")
        for lines, where in sorted(found, reverse=True):
            print(f"  {lines:5} {where}")


if __name__ == "__main__":
    main()
