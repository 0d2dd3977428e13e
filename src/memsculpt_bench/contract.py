# SPDX-License-Identifier: Apache-2.0
"""What every bench prints: one object with its arms, raw rounds and figures against their bars."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of merit: median over rounds, the range, and the bar it has to meet."""

    value: float | None  # None: could not be measured, which never holds
    low: float | None
    high: float | None
    bar: str  # "<= 1.3"
    holds: bool

    def as_json(self) -> dict[str, Any]:
        """Return the figure as the contract's plain object."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "bar": self.bar,
            "holds": self.holds,
        }


def at_most(bar: float, values: Sequence[float], *, also: bool = True) -> Figure:
    """Make a figure that holds when the median of `values` is at most `bar`, and `also` is true."""
    return _figure(f"<= {bar:g}", values, lambda middle: middle <= bar and also)


def at_least(bar: float, values: Sequence[float], *, also: bool = True) -> Figure:
    """Make a figure that holds when the median of `values` is at least `bar`, and `also` is true."""
    return _figure(f">= {bar:g}", values, lambda middle: middle >= bar and also)


def reported(values: Sequence[float]) -> Figure:
    """Make a figure without a bar: something that a reader has to know beside the others."""
    return _figure("none", values, lambda _: True)


def _figure(bar: str, values: Sequence[float], holds: Callable[[float], bool]) -> Figure:
    if not values:
        return Figure(value=None, low=None, high=None, bar=bar, holds=False)
    middle = median(values)
    return Figure(value=middle, low=min(values), high=max(values), bar=bar, holds=bool(holds(middle)))


def machine_facts() -> Mapping[str, Any]:
    """Return what a reader needs to judge the figures: kernel, processors, memory. No names, no paths."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": int(meminfo["MemTotal"].split()[0]) * 1024,
        "python": platform.python_version(),
    }


def result(
    bench: str, rounds: int, arms: Mapping[str, Any], figures: Mapping[str, Figure], **more: Any
) -> dict[str, Any]:
    """Return the object that `bench NAME --json` prints."""
    return {
        "bench": bench,
        "rounds": rounds,
        "machine": dict(machine_facts()),
        "arms": dict(arms),
        "figures": {name: figure.as_json() for name, figure in figures.items()},
        **more,
    }


def all_hold(result_object: Mapping[str, Any]) -> bool:
    """Tell whether every figure of a result meets its bar."""
    return all(figure["holds"] for figure in result_object["figures"].values())
