# SPDX-License-Identifier: Apache-2.0
"""The whole of bench phases: two programs, a limit at which the kernel kills, a program without a pattern; figures.

Time lost to faults is what a late turn takes beyond the same program's with room enough, in the same round.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from memsculpt_bench import contract, phases
from memsculpt_bench.contract import Figure
from memsculpt_bench.lab import sweep
from memsculpt_bench.phases import ARMS, KERNEL, MEMSCULPT, MIB, Arm, Scenario

Result = dict[str, Any]
Runs = dict[str, list[Result]]
Say = Callable[[str], None]

# Found by trying: at these limits the kernel kills the program, with swap that is nearly empty.
TIGHT_LIMIT_BYTES = 200 * MIB
UNIFORM_LIMIT_BYTES = 260 * MIB
UNIFORM_TURNS_PERIODS = 12
# A turn is not known better than to this share of it: what is lost is not taken for less.
RESOLUTION_RATIO = 0.02


def run(*, rounds: int, quick: bool, say: Say) -> Result:
    """Run the bench and return the contract's object. Raises LabUnavailable."""
    for leftover in sweep():
        say(f"removed {leftover}, left by an earlier bench")
    periods = 6 if quick else 8
    turns = Scenario(periods=periods)
    parts: dict[str, Runs] = {"random": _rounds(turns, ARMS, rounds, say)}
    if not quick:
        analytics = replace(turns, habit="analytics", touches=4 * turns.set_bytes // 8)
        parts["analytics"] = _rounds(analytics, ARMS, rounds, say)
    tight = replace(turns, limit_bytes=TIGHT_LIMIT_BYTES)
    parts["tight"] = _rounds(tight, (KERNEL, MEMSCULPT), rounds, say)
    uniform = replace(turns, habit="uniform", limit_bytes=UNIFORM_LIMIT_BYTES, periods=UNIFORM_TURNS_PERIODS)
    parts["uniform"] = _rounds(uniform, (KERNEL, MEMSCULPT), rounds, say)
    return contract.result(
        "phases",
        rounds,
        parts["random"],
        figures_of(parts),
        parts=parts,
        scenario={name: getattr(turns, name) for name in turns.__slots__},
        tight_limit_bytes=TIGHT_LIMIT_BYTES,
        uniform_limit_bytes=UNIFORM_LIMIT_BYTES,
    )


def figures_of(parts: Mapping[str, Runs]) -> dict[str, Figure]:
    """Return the issue's figures: ratios within a round, their median and range over the rounds."""
    figures: dict[str, Figure] = {}
    for name in ("random", "analytics"):
        if name not in parts:
            continue
        runs, end = parts[name], "" if name == "random" else f"_{name}"
        lost = {arm: _lost_s(runs, arm) for arm in runs}
        ours, oracle = _turns_s(runs["memsculpt"]), _turns_s(runs["oracle"])
        figures |= {
            f"lost_kernel_over_ours{end}": contract.at_least(4.0, _ratios(lost["kernel"], lost["memsculpt"])),
            # A learned predictor that does not beat the replay is left out.
            f"lost_replay_over_ours{end}": contract.at_least(1.0, _ratios(lost["replay"], lost["memsculpt"])),
            f"turn_ours_over_oracle{end}": contract.at_most(1.25, _ratios(ours, oracle)),
            f"recall{end}": contract.at_least(0.9, _known(runs["memsculpt"], "recall")),
            f"precision{end}": contract.at_least(0.85, _known(runs["memsculpt"], "precision")),
        }
    killed = sum(run["oom_kills"] for runs in parts.values() for run in runs["memsculpt"])
    figures["oom_kills"] = contract.at_most(0.0, [float(killed)])
    figures["oom_kills_of_kernel_at_tight_limit"] = contract.at_least(
        1.0, [float(run["oom_kills"]) for run in parts["tight"]["kernel"]]
    )
    uniform = parts["uniform"]
    figures["uniform_over_kernel"] = contract.at_most(
        1.01, _ratios(_turns_s(uniform["memsculpt"]), _turns_s(uniform["kernel"]))
    )
    return figures


def _rounds(scenario: Scenario, arms: Sequence[Arm], rounds: int, say: Say) -> Runs:
    say(f"-- {scenario.habit}, limit {scenario.limit_bytes // MIB} MiB, {scenario.turns} turns")
    runs: Runs = {arm.name: [] for arm in arms}
    for number in range(rounds):
        shift = number % len(arms)  # no arm always runs first, on a rested machine
        for arm in (*arms[shift:], *arms[:shift]):
            result = phases.run_arm(arm, scenario, seed=number + 1)
            say(f"round {number + 1}: {phases.summary_of(result)}")
            runs[arm.name].append(result)
    return runs


def _turns_s(runs: Sequence[Result]) -> list[float | None]:
    """Return the median late turn of each round; None where turns are missing: it was killed, or far too slow."""
    return [median(run["late_turn_s"]) if run["late_turn_s"] and not run["missing_turns"] else None for run in runs]


def _lost_s(runs: Runs, arm: str) -> list[float | None]:
    roomy = _turns_s(runs["roomy"])
    return [
        None if mine is None or room is None else max(mine - room, RESOLUTION_RATIO * room)
        for mine, room in zip(_turns_s(runs[arm]), roomy, strict=True)
    ]


def _ratios(ones: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True) if one is not None and other is not None]


def _known(runs: Sequence[Result], name: str) -> list[float]:
    return [float(run[name]) for run in runs if run[name] is not None]


def say_to_stderr(text: str) -> None:
    """Tell a person how the bench goes; stdout belongs to --json."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
