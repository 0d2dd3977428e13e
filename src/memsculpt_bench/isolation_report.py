# SPDX-License-Identifier: Apache-2.0
"""The page of bench isolation: latency and memory of each arm over time, besides its figures."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt

from memsculpt_bench.page import MIB, figure, figures, machine, middle, opening, svg_of, table

COLOURS = {
    "roomy": "#5b8c5a",
    "kernel": "#b5473c",
    "static": "#8a6fb0",
    "reactive": "#d08a2e",
    "memsculpt": "#1f6fb2",
    "all": "#1b9e9e",
}
TENANTS = (("redis", "#b5473c"), ("job-a", "#1f6fb2"), ("job-b", "#5b8c5a"))


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page for the object that the bench printed."""
    parts = [
        opening("isolation", "A cache beside two analytic jobs, in less memory than all three hold"),
        machine(result),
        "<h2>Figures</h2>",
        figures(result["figures"]),
    ]
    for swap, variant in result["variants"].items():
        parts += [f"<h2>Swap on {html.escape(swap)}</h2>", _scenario(variant["scenario"]), _arms(variant["arms"])]
        parts.append(figure(_plot_phases(variant["arms"]), "Each phase's time in order, all rounds. Dashed: later."))
        for arm, runs in variant["arms"].items():
            parts.append(figure(_plot_run(runs[-1]), f"{arm}: Redis latency and memory held, last round."))
    return "\n".join(parts)


def _scenario(scenario: Mapping[str, Any]) -> str:
    return (
        f"<p>Limit {scenario['limit_bytes'] // MIB} MiB for {scenario['keys']:,} Redis keys of 1 KiB and two jobs of "
        f"{scenario['job_bytes'] // MIB} MiB each; period {scenario['period_s']:g} s, {scenario['periods']} periods, "
        "the first two apart.</p>"
    )


def _arms(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    head = ["arm", "p50 µs", "p99", "p99.9", "max", "early phase s", "late phase s", "Redis faults", "stall s"]
    head += ["OOM kills", "held MiB", "agent cpu s"]
    rows: list[list[str]] = []
    for arm, runs in arms.items():
        late = [run["redis"]["late"] for run in runs]
        agents = [run["agent"]["cpu_s"] for run in runs if run["agent"]]
        phases = [value for run in runs for value in run["late_phase_s"]]
        early = [value for run in runs for value in run["early_phase_s"]]
        rows.append(
            [
                arm,
                *[middle([one[key] for one in late], "{:.0f}") for key in ("p50", "p99", "p999", "max")],
                middle(early, "{:.2f}"),
                middle(phases, "{:.2f}"),
                middle([run["late_major_faults"]["redis"] for run in runs], "{:.0f}"),
                middle([sum(run["late_stall_s"].values()) for run in runs], "{:.1f}"),
                str(sum(run["oom_kills"] for run in runs)),
                middle([run["held_bytes"] / MIB for run in runs], "{:.0f}"),
                middle(agents, "{:.1f}") if agents else "",
            ]
        )
    return table(head, rows)


def _plot_phases(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    drawn, axes = cast("Any", plt.subplots(figsize=(9, 3)))
    for arm, runs in arms.items():
        for index, run in enumerate(runs):
            lengths = [phase["end_s"] - phase["start_s"] for job in ("job-a", "job-b") for phase in run["phases"][job]]
            order = [
                phase["phase"] + offset
                for offset, job in ((0, "job-a"), (0.5, "job-b"))
                for phase in run["phases"][job]
            ]
            label = arm if index == 0 else None
            axes.scatter(order, lengths, s=14, alpha=0.7, color=COLOURS[arm], label=label)
    axes.axvline(1.75, color="#999", linestyle="--", linewidth=1)
    axes.set(xlabel="period", ylabel="phase, s", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(ncols=5, fontsize=8, frameon=False)
    return svg_of(drawn)


def _plot_run(run: Mapping[str, Any]) -> str:
    drawn, (upper, lower) = cast("Any", plt.subplots(2, 1, figsize=(9, 4.6), sharex=True))
    bins = run["redis"]["bins"]
    at_s = [one[0] - run["start_s"] for one in bins]
    for column, name, colour in ((1, "p50", "#999"), (2, "p99", "#d08a2e"), (3, "p99.9", "#b5473c")):
        upper.plot(at_s, [one[column] for one in bins], color=colour, linewidth=1, label=name)
    upper.set(ylabel="Redis latency, µs", yscale="log")
    upper.legend(ncols=3, fontsize=8, frameon=False)
    samples = run["samples"]
    shift_s = run["samples_start_s"] - run["start_s"]
    sample_s = [sample["at_s"] + shift_s for sample in samples]
    stack = [[sample[tenant] / MIB for sample in samples] for tenant, _ in TENANTS]
    stack.append([sample["swap"] / MIB for sample in samples])
    colours = [colour for _, colour in TENANTS] + ["#bbb"]
    labels = [tenant for tenant, _ in TENANTS] + ["compressed"]
    lower.stackplot(sample_s, stack, colors=colours, labels=labels, alpha=0.75)
    for job, colour in TENANTS[1:]:
        for phase in run["phases"][job]:
            span = (phase["start_s"] - run["start_s"], phase["end_s"] - run["start_s"])
            upper.axvspan(*span, color=colour, alpha=0.12, linewidth=0)
    lower.set(xlabel="seconds", ylabel="memory held, MiB")
    lower.legend(ncols=4, fontsize=8, frameon=False)
    return svg_of(drawn)
