# SPDX-License-Identifier: Apache-2.0
"""bench sense, the part about growth: is memory that functions keep told as theirs, in C and in Python."""

import sys
from collections.abc import Callable
from typing import Any

from memsculpt_bench import known_growth
from memsculpt_bench.contract import Figure, at_most

SAMPLED_EVERY = 8


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return, by round, the largest relative error: over the functions of a C program, and of a Python program's whole.

    Debian's Python 3.11 writes no map of its functions (3.12 does, with -X perf), so of the Python program it is asked
    how much of what it grew by is told as the interpreter's.
    """
    told: dict[str, Any] = {"c": [], "c_by_function": [], "c_sampled": [], "python": []}
    for _ in range(rounds):
        with known_growth.grower() as one:
            by_function = known_growth.errors_by_function(known_growth.recorded(one))
            sampled = known_growth.errors_by_function(known_growth.recorded(one, SAMPLED_EVERY))
        told["c_by_function"].append(by_function)
        told["c"].append(max(by_function.values()))
        told["c_sampled"].append(max(sampled.values()))
        with known_growth.worker(sys.executable, "-c", known_growth.PYTHON) as one:
            told["python"].append(_python_error(known_growth.recorded(one)))
        say(f"growth: off by {100 * told['c'][-1]:.2f} % in C, {100 * told['python'][-1]:.2f} % in Python")
    return told


def figures(told: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures that the issue asks for."""
    return {"growth_error_c": at_most(0.05, told["c"]), "growth_error_python": at_most(0.05, told["python"])}


def _python_error(recording: known_growth.GrowthRecording) -> float:
    if recording.after is None:
        raise ValueError("the program ended before its recording")
    grown_bytes = recording.after.own_bytes - recording.before.own_bytes
    held_bytes = sum(
        one.held_bytes
        for one in recording.stacks
        if one.kind != "file" and any("python3" in module for _, module in one.frames)
    )
    return abs(held_bytes - grown_bytes) / grown_bytes
