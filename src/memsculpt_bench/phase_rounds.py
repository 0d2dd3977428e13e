# SPDX-License-Identifier: Apache-2.0
"""The whole of bench phases: its parts, their rounds, what was run apart put together again, and the figures.

Time lost to faults is what late turns take, on average, beyond the same program's with room enough, in the same round.
What came to an end before its time is never left out in silence:

- an arm that the kernel killed has no lost time: its rounds are counted, in a figure of their own;
- an arm that was too slow, and ended by the bench, counts with the turns that it finished, which understates its loss;
- where it is memsculpt that did not take all its turns, each of its figures is missed, whatever the other rounds say.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from memsculpt.errors import UsageError
from memsculpt_bench import contract, phase_uniform, phases
from memsculpt_bench.contract import Figure
from memsculpt_bench.lab import LabUnavailable, sweep
from memsculpt_bench.phase_programs import MIB, Scenario
from memsculpt_bench.phases import ARMS, KERNEL, MEMSCULPT, Arm

Result = dict[str, Any]
Runs = dict[str, list[Result]]
Say = Callable[[str], None]

PARTS = ("random", "nightly", "tight", "uniform")
MANAGED = ("random", "nightly", "tight")
QUICK_PERIODS = 5
RANDOM = Scenario()
NIGHTLY = Scenario(habit="nightly", limit_bytes=208 * MIB, touches=4 * RANDOM.set_bytes // 8)
# Found by trying: here the kernel kills the program, with swap that is nearly empty.
TIGHT = Scenario(limit_bytes=240 * MIB, is_rested=False, periods=4)
# A turn is not known better than to this share of it: what is lost is not taken for less.
RESOLUTION_RATIO = 0.02


def run(
    *,
    rounds: int,
    quick: bool,
    say: Say,
    part: Sequence[str] | None = None,
    merge: Sequence[Path] | None = None,
    first_round: int = 1,
) -> Result:
    """Run the bench, or some parts of it, and return the contract's object. Raises LabUnavailable.

    `merge` names the results of parts that were run before: they are put together, and nothing is run.
    """
    if merge is not None:
        return merged(merge)
    parts = part or PARTS
    if unknown := set(parts) - set(PARTS):
        raise LabUnavailable(f"no part {min(unknown)!r}: there are {', '.join(PARTS)}")
    for leftover in sweep():
        say(f"removed {leftover}, left by an earlier bench")
    numbers = range(first_round, first_round + rounds)
    found: dict[str, Runs] = {}
    for name in parts:
        if name == "uniform":
            found[name] = {"memsculpt": _uniform_rounds(numbers, say, quick=quick)}
            continue
        scenario, arms = _part(name)
        scenario = replace(scenario, periods=QUICK_PERIODS) if quick else scenario
        found[name] = _rounds(name, scenario, arms, numbers, say)
    return _result(found)


def merged(paths: Sequence[Path]) -> Result:
    """Return the object of runs that were made apart. Raises UsageError where they do not belong together."""
    parts: dict[str, Runs] = {}
    machines: list[object] = []
    for path in paths:
        written = _read(path)
        machines.append(written["machine"])
        for name, runs in written["parts"].items():
            for arm, results in runs.items():
                kept = parts.setdefault(name, {}).setdefault(arm, [])
                seeds = {run["seed"] for run in kept} & {run["seed"] for run in results}
                if seeds:
                    problem = f"{name}, {arm}: round {min(seeds)} is there twice"
                    raise UsageError(place=str(path), problem=problem, fix="give each round once (--first-round)")
                kept += results
    for path, machine in zip(paths, machines, strict=True):
        if machine != machines[0]:
            problem = f"not of the machine (or kernel, or Python) of {paths[0]}"
            raise UsageError(place=str(path), problem=problem, fix="merge rounds of one machine")
    return _result(parts)


def figures_of(parts: Mapping[str, Runs]) -> dict[str, Figure]:
    """Return the issue's figures: ratios within a round, their median and range over the rounds."""
    figures: dict[str, Figure] = {}
    for name in ("random", "nightly"):
        if name in parts:
            figures |= {f"{figure}_{name}": found for figure, found in _figures_of_turns(parts[name]).items()}
    ours = [run for runs in parts.values() for run in runs["memsculpt"]]
    if ours:
        figures["oom_kills"] = contract.at_most(0.0, [float(sum(run["oom_kills"] for run in ours))])
    if "tight" in parts:
        figures["oom_kills_of_kernel_tight"] = contract.at_least(
            1.0, [float(run["oom_kills"]) for run in parts["tight"]["kernel"]]
        )
        missing = [float(run["missing_turns"]) for run in parts["tight"]["memsculpt"]]
        figures["missing_turns_tight"] = contract.at_most(0.0, missing, also=not any(missing))
    if "uniform" in parts:
        figures |= _figures_of_uniform(parts["uniform"]["memsculpt"])
    return figures


def _read(path: Path) -> Result:
    fix = "give what `bench phases --json` printed"
    try:
        written: Result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(place=str(path), problem=f"cannot be read: {error}", fix=fix) from error
    if written.get("bench") != "phases":
        raise UsageError(place=str(path), problem="not a result of bench phases", fix=fix)
    return written


def _figures_of_turns(runs: Runs) -> dict[str, Figure]:
    lost = {arm: _lost_s(runs, arm) for arm in runs}
    ours, oracle = _turns_s(runs["memsculpt"]), _turns_s(runs["oracle"])
    managed = runs["memsculpt"]
    is_whole = not any(run["missing_turns"] for run in managed)
    return {
        "lost_kernel_over_ours": contract.at_least(4.0, _ratios(lost["kernel"], lost["memsculpt"]), also=is_whole),
        "lost_readahead_over_ours": contract.at_least(
            1.0, _ratios(lost["readahead"], lost["memsculpt"]), also=is_whole
        ),
        # The same in the program's processor time: that of a neighbour is not in it, nor is waiting for a lock.
        "lost_cpu_kernel_over_ours": contract.reported(
            _ratios(_lost_s(runs, "kernel", "late_turn_cpu_s"), _lost_s(runs, "memsculpt", "late_turn_cpu_s"))
        ),
        # A learned predictor that does not beat the replay is left out.
        "lost_replay_over_ours": contract.at_least(1.0, _ratios(lost["replay"], lost["memsculpt"]), also=is_whole),
        "turn_ours_over_oracle": contract.at_most(1.25, _ratios(ours, oracle), also=is_whole),
        "recall": contract.at_least(0.9, _known(managed, "recall"), also=is_whole),
        "precision": contract.at_least(0.85, _known(managed, "precision"), also=is_whole),
        **{f"rounds_killed_{arm}": contract.reported([_count_killed(runs[arm])]) for arm in runs if arm != "roomy"},
        "manager_cpu": contract.reported(_known(managed, "manager_cpu_ratio")),
        "manager_cpu_looking": contract.reported(_known(managed, "looking_cpu_ratio")),
        "manager_cpu_learning": contract.reported(_known(managed, "learning_cpu_ratio")),
    }


def _figures_of_uniform(runs: Sequence[Result]) -> dict[str, Figure]:
    groups = [ratio for run in runs for ratio in run["managed_over_alone"]]
    is_whole = not any(run["missing_groups"] for run in runs)
    return {
        "uniform_managed_over_alone": contract.at_most(1.01, groups, also=is_whole),
        **{
            f"uniform_{name}": contract.reported([ratio for run in runs for ratio in run[name]])
            for name in ("managed_over_alone_cpu", "alone_over_alone", "alone_over_alone_cpu")
        },
        "uniform_missing_groups": contract.at_most(0.0, [float(sum(run["missing_groups"] for run in runs))]),
    }


def _part(name: str) -> tuple[Scenario, Sequence[Arm]]:
    return {"random": (RANDOM, ARMS), "nightly": (NIGHTLY, ARMS), "tight": (TIGHT, (KERNEL, MEMSCULPT))}[name]


def _rounds(name: str, scenario: Scenario, arms: Sequence[Arm], numbers: Sequence[int], say: Say) -> Runs:
    say(f"-- {name}, limit {scenario.limit_bytes // MIB} MiB, {scenario.turns} turns")
    runs: Runs = {arm.name: [] for arm in arms}
    for number in numbers:
        shift = number % len(arms)  # no arm always runs first, on a rested machine
        for arm in (*arms[shift:], *arms[:shift]):
            result = phases.run_arm(arm, scenario, seed=number)
            say(f"round {number}: {phases.summary_of(result)}")
            runs[arm.name].append(result)
    return runs


def _uniform_rounds(numbers: Sequence[int], say: Say, *, quick: bool) -> list[Result]:
    say("-- uniform, managed and alone in turns")
    found: list[Result] = []
    for number in numbers:
        found.append(phase_uniform.run_once(number, quick=quick))
        say(f"round {number}: {phase_uniform.summary_of(found[-1])}")
    return found


def _result(parts: Mapping[str, Runs]) -> Result:
    scenarios = {"random": RANDOM, "nightly": NIGHTLY, "tight": TIGHT, "uniform": phase_uniform.UNIFORM}
    return contract.result(
        "phases",
        max(len(results) for runs in parts.values() for results in runs.values()),
        parts.get("random", {}),
        figures_of(parts),
        parts=dict(parts),
        scenarios={name: _plain(scenarios[name]) for name in parts},
    )


def _plain(scenario: Scenario) -> dict[str, Any]:
    return {name: getattr(scenario, name) for name in scenario.__slots__}


def _count_killed(runs: Sequence[Result]) -> float:
    return float(sum(run["oom_kills"] > 0 for run in runs))


def _turns_s(runs: Sequence[Result], name: str = "late_turn_s") -> list[float | None]:
    """Return the mean late turn of each round; None where it was killed, or no late turn was finished."""
    return [mean(run[name]) if run[name] and not run["oom_kills"] else None for run in runs]


def _lost_s(runs: Runs, arm: str, name: str = "late_turn_s") -> list[float | None]:
    roomy = _turns_s(runs["roomy"], name)
    return [
        None if mine is None or room is None else max(mine - room, RESOLUTION_RATIO * room)
        for mine, room in zip(_turns_s(runs[arm], name), roomy, strict=True)
    ]


def _ratios(ones: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True) if one is not None and other is not None]


def _known(runs: Sequence[Result], name: str) -> list[float]:
    return [float(run[name]) for run in runs if run[name] is not None]
