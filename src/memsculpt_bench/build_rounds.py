# SPDX-License-Identifier: Apache-2.0
"""The whole of bench build: what has to be tried first, the rounds, and the figures.

A bench of half an hour may be run in parts: with `keep` every run of an arm is written to a file as it ends, and a
later call with the same file goes on from there.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from memsculpt_bench import build, build_disk, build_source, contract
from memsculpt_bench.build import MEMSCULPT, MIB, UNLIMITED, Arm
from memsculpt_bench.contract import Figure
from memsculpt_bench.lab import LabUnavailable, sweep

Result = dict[str, Any]
Say = Callable[[str], None]

SLOWER_RATIO = 1.02
HELD_RATIO = 0.45
FIXED_PARTS = (0.45, 0.35, 0.25)  # of what unlimited holds: the limits that are tried
ARMS = ("unlimited", "fixed", "reactive", "memsculpt")


class OutOfTime(Exception):
    """The time for this part of the bench is over."""


@dataclass(slots=True)
class Runs:
    """Runs of arms by key; each is done once, and kept in a file if there is one."""

    archive: Path
    is_quick: bool
    say: Say
    keep: Path | None = None
    stop_at_s: float | None = None  # on the monotonic clock: no run is begun after it
    done: dict[str, Result] = field(default_factory=dict[str, Result])

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep.exists():
            lines = [json.loads(line) for line in self.keep.read_text(encoding="utf-8").splitlines()]
            self.done = {line["key"]: line["result"] for line in lines}

    def once(self, key: str, arm: Arm) -> Result:
        """Return the run of this key, doing it now if it was not done before."""
        if key not in self.done:
            if self.stop_at_s is not None and time.monotonic() >= self.stop_at_s:
                raise OutOfTime(key)
            result = build.run_arm(arm, self.archive, is_quick=self.is_quick)
            self.say(f"{key}: {build.summary_of(result)}")
            self.done[key] = result
            if self.keep is not None:
                with self.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "result": result}) + "\n")
        return self.done[key]


def run(*, rounds: int, quick: bool, say: Say, keep: Path | None = None, stop_after: float | None = None) -> Result:
    """Run the bench, or go on with it, and return the contract's object."""
    for leftover in sweep():
        say(f"removed {leftover}, left by an earlier bench")
    build_source.install_missing(say)
    archive = build_source.ensure_archive(say)
    for leftover in build_disk.sweep(archive.parent):
        say(f"removed {leftover}, left by an earlier bench")
    stop_at_s = None if stop_after is None else time.monotonic() + stop_after
    runs = Runs(archive=archive, is_quick=quick, say=say, keep=keep, stop_at_s=stop_at_s)
    arms: dict[str, list[Result]] = {name: [] for name in ARMS}
    notes: list[str] = []
    try:
        ways = find_ways(runs)
        for number in range(rounds):
            shift = number % len(ways)  # no arm always runs first
            done = {arm.name: runs.once(f"round {number + 1} {arm.name}", arm) for arm in ways[shift:] + ways[:shift]}
            for name, result in done.items():
                arms[name].append(result)
    except OutOfTime as error:
        notes.append(f"not finished: {error} comes next, and {len(arms['unlimited'])} of {rounds} rounds are whole")
    trials = [{**result, "trial": key} for key, result in runs.done.items() if key.startswith("trial")]
    figures = figures_of(arms)
    return contract.result(
        "build",
        len(arms["unlimited"]),
        arms,
        figures,
        trials=trials,
        verdict=[*notes, *verdict(arms)],
    )


def find_ways(runs: Runs) -> list[Arm]:
    """Try limits and both starts of the reactive rule, and return the arms of a round."""
    if runs.is_quick:
        return [UNLIMITED, MEMSCULPT]
    unlimited = runs.once("trial unlimited", UNLIMITED)
    peak = int(unlimited["held_peak_bytes"])
    fixed = [Arm(name="fixed", limit_bytes=int(part * peak) // MIB * MIB) for part in FIXED_PARTS]
    reactive = [Arm(name="reactive", senpai_start_at_usage=start, senpai_max_bytes=peak) for start in (True, False)]
    chosen: list[Arm] = [UNLIMITED]
    for arms in (fixed, reactive):
        tried = {arm.described(): runs.once(f"trial {arm.described()}", arm) for arm in arms}
        try:
            best = build.best_fixed(list(tried.values()), unlimited, SLOWER_RATIO)
        except ValueError as error:
            raise LabUnavailable(f"the arm {arms[0].name} cannot run here: {error}") from error
        chosen.append(next(arm for arm in arms if tried[arm.described()] is best))
    return [*chosen, MEMSCULPT]


def figures_of(arms: Mapping[str, Sequence[Result]]) -> dict[str, Figure]:
    """Return the issue's figure and what it depends on: ratios within a round, median and range over the rounds."""
    ours = arms["memsculpt"]
    held, wall = _ratios(arms, "memsculpt", "held_peak_bytes"), _ratios(arms, "memsculpt", "wall_s")
    failed = [float(bool(result["failed"])) for result in ours]
    in_time = bool(wall) and median(wall) <= SLOWER_RATIO and not any(failed)
    return {
        "held_over_unlimited": contract.at_most(HELD_RATIO, held, also=in_time),
        "time_over_unlimited": contract.at_most(SLOWER_RATIO, wall),
        "failed": contract.at_most(0.0, failed, also=not any(failed)),
    }


def _ratios(arms: Mapping[str, Sequence[Result]], arm: str, column: str) -> list[float]:
    pairs = zip(arms[arm], arms["unlimited"], strict=True)
    return [mine[column] / other[column] for mine, other in pairs]


def verdict(arms: Mapping[str, Sequence[Result]]) -> list[str]:
    """Return a line for each arm: ratios within a round to nobody managing."""
    lines: list[str] = []
    for arm, results in arms.items():
        if not results:
            continue
        held = median(result["held_peak_bytes"] for result in results) / MIB
        anon = median(result["anon_peak_bytes"] for result in results) / MIB
        lines.append(
            f"{results[0]['parameter']:<22} held {median(_ratios(arms, arm, 'held_peak_bytes')):.2f} x unlimited "
            f"({held:.0f} MiB, of which the processes at most {anon:.0f}), "
            f"time {median(_ratios(arms, arm, 'wall_s')):.3f} x unlimited "
            f"({median(result['wall_s'] for result in results):.1f} s), "
            f"stalled {median(result['stall_s'] for result in results):.2f} s, "
            f"{sum(bool(result['failed']) for result in results)} failed"
        )
    return lines
