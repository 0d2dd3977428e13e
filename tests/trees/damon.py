# SPDX-License-Identifier: Apache-2.0
"""DAMON's folder in sysfs as files: as a kernel 6.12 shows it when nobody uses it, and with all its slots set up.

A tree of files makes no folders when a number is written, so those that the kernel would make are there from the start.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from memsculpt.host.linux.damon import SLOTS

Tree: TypeAlias = "Mapping[str, str | Tree]"
KDAMONDS = "kernel/mm/damon/admin/kdamonds"


def region(start: int, end: int, accesses: int, age: int = 0) -> Tree:
    return {"start": f"{start}\n", "end": f"{end}\n", "nr_accesses": f"{accesses}\n", "age": f"{age}\n"}


def kdamond(regions: Sequence[Tree] = (), operations: str = "vaddr\nfvaddr\npaddr\n") -> Tree:
    span = {"min": "0\n", "max": "0\n"}
    return {
        "state": "off\n",
        "pid": "-1\n",
        "contexts": {
            "nr_contexts": "0\n",
            "0": {
                "avail_operations": operations,
                "operations": "vaddr\n",
                "monitoring_attrs": {
                    "intervals": {"sample_us": "5000\n", "aggr_us": "100000\n", "update_us": "60000000\n"},
                    "nr_regions": {"min": "10\n", "max": "1000\n"},
                },
                "targets": {"nr_targets": "0\n", "0": {"pid_target": "0\n", "regions": {"nr_regions": "0\n"}}},
                "schemes": {
                    "nr_schemes": "0\n",
                    "0": {
                        "action": "stat\n",
                        "access_pattern": {"sz": span, "nr_accesses": span, "age": span},
                        "watermarks": {"metric": "none\n", "interval_us": "0\n", "high": "0\n", "mid": "0\n"},
                        "stats": {"nr_tried": "0\n", "sz_tried": "0\n"},
                        "tried_regions": {str(number): one for number, one in enumerate(regions)},
                    },
                },
            },
        },
    }


def write_damon(sys: Path, *, count: int = 0, regions: Sequence[Tree] = (), operations: str = "vaddr\n") -> Path:
    """Make the tree below `sys`, with `count` kdamonds that somebody made; return the folder of kdamonds."""
    tree: dict[str, str | Tree] = {"nr_kdamonds": f"{count}\n"}
    tree |= {str(number): kdamond(regions, operations) for number in range(SLOTS)}
    write_tree(sys / KDAMONDS, tree)
    return sys / KDAMONDS


def write_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            write_tree(folder / name, content)


def contents(folder: Path) -> dict[str, str]:
    """Return every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
