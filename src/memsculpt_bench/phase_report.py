# SPDX-License-Identifier: Apache-2.0
"""The page of bench phases: every turn of each arm, besides its figures."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt

from memsculpt_bench.page import figure, figures, machine, middle, opening, svg_of, table


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page for the object that the bench printed."""
    parts = [
        opening("phases", "Working sets that take turns, under a limit for one of them"),
        machine(result),
        "<h2>Figures</h2>",
        figures(result["figures"]),
    ]
    for name, runs in result["parts"].items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts += (
            [_groups(runs["memsculpt"])]
            if name == "uniform"
            else [_arms(runs), figure(_plot(runs), "Each turn's length, all rounds.")]
        )
    return "\n".join(parts)


def _arms(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    head = ["arm", "late turn, s", "major faults", "recall", "precision", "OOM kills", "manager's processor"]
    return table(
        head,
        [
            [
                html.escape(arm),
                middle([second for run in results for second in run["late_turn_s"]], "{:.3f}"),
                middle([run["late_major_faults"] for run in results], "{:.0f}"),
                middle([run["recall"] for run in results if run["recall"] is not None], "{:.3f}"),
                middle([run["precision"] for run in results if run["precision"] is not None], "{:.3f}"),
                str(sum(run["oom_kills"] for run in results)),
                middle([run["manager_cpu_ratio"] for run in results], "{:.3f}"),
            ]
            for arm, results in runs.items()
        ],
    )


def _groups(results: Sequence[Mapping[str, Any]]) -> str:
    head = ["round", "managed ÷ alone, by group", "alone ÷ alone", "major faults", "looks", "manager's processor"]
    return table(
        head,
        [
            [
                str(run["seed"]),
                *(" ".join(f"{one:.3f}" for one in run[name]) for name in ("managed_over_alone", "alone_over_alone")),
                str(run["major_faults"]),
                str(run["looks"]),
                f"{run['manager_cpu_ratio']:.3f}",
            ]
            for run in results
        ],
    )


def _plot(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    drawn, axes = cast("Any", plt.subplots(figsize=(9, 3)))
    for arm, results in runs.items():
        turns = [turn for run in results for turn in run["turns"]]
        lengths = [turn["end_s"] - turn["start_s"] for turn in turns]
        axes.scatter([turn["turn"] for turn in turns], lengths, s=14, alpha=0.7, label=arm)
    axes.set(xlabel="turn", ylabel="length, s", yscale="log")
    axes.legend(ncols=6, fontsize=8, frameon=False)
    return svg_of(drawn)
