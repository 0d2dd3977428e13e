# SPDX-License-Identifier: Apache-2.0
"""The page of bench isolation: self-contained HTML, plots inline as SVG, nothing fetched from anywhere."""

import html
import io
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, cast

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

MIB = 1 << 20
COLOURS = {
    "roomy": "#5b8c5a",
    "kernel": "#b5473c",
    "static": "#8a6fb0",
    "reactive": "#d08a2e",
    "memsculpt": "#1f6fb2",
}
TENANTS = (("redis", "#b5473c"), ("job-a", "#1f6fb2"), ("job-b", "#5b8c5a"))

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}
.yes{color:#2c6e2b}.no{color:#a22}svg{max-width:100%;height:auto}figure{margin:1.5rem 0}figcaption{color:#555}
"""


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page for the object that the bench printed."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>memsculpt: isolation</title><style>{STYLE}</style>",
        "<h1>A cache beside two analytic jobs, in less memory than all three hold</h1>",
        _machine(result["machine"], result["rounds"]),
        "<h2>Figures</h2>",
        _figures(result["figures"]),
    ]
    for swap, variant in result["variants"].items():
        parts += [f"<h2>Swap on {html.escape(swap)}</h2>", _scenario(variant["scenario"]), _arms(variant["arms"])]
        parts.append(_figure(_plot_phases(variant["arms"]), "Each phase's time in order, all rounds. Dashed: later."))
        for arm, runs in variant["arms"].items():
            parts.append(_figure(_plot_run(runs[-1]), f"{arm}: Redis latency and memory held, last round."))
    return "\n".join(parts)


def _machine(machine: Mapping[str, Any], rounds: int) -> str:
    memory = machine["memory_bytes"] / MIB / 1024
    return (
        f"<p>Linux {html.escape(machine['kernel'])}, {machine['cpus']} processors, {memory:.0f} GiB; "
        f"{rounds} interleaved rounds; medians, with the range in brackets.</p>"
    )


def _figures(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            html.escape(name),
            "not measured" if figure["value"] is None else f"{figure['value']:.3g}",
            "" if figure["low"] is None else f"{figure['low']:.3g} to {figure['high']:.3g}",
            html.escape(figure["bar"]),
            "<span class=yes>holds</span>" if figure["holds"] else "<span class=no>missed</span>",
        ]
        for name, figure in figures.items()
    ]
    return _table(["figure", "median", "range", "bar", ""], rows)


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
                *[_middle([one[key] for one in late], "{:.0f}") for key in ("p50", "p99", "p999", "max")],
                _middle(early, "{:.2f}"),
                _middle(phases, "{:.2f}"),
                _middle([run["late_major_faults"]["redis"] for run in runs], "{:.0f}"),
                _middle([sum(run["late_stall_s"].values()) for run in runs], "{:.1f}"),
                str(sum(run["oom_kills"] for run in runs)),
                _middle([run["held_bytes"] / MIB for run in runs], "{:.0f}"),
                _middle(agents, "{:.1f}") if agents else "",
            ]
        )
    return _table(head, rows)


def _middle(values: Sequence[float], form: str) -> str:
    if not values:
        return "none"
    return f"{form.format(median(values))} <small>({form.format(min(values))}–{form.format(max(values))})</small>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _plot_phases(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    figure, axes = cast("Any", plt.subplots(figsize=(9, 3)))
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
    return _svg(figure)


def _plot_run(run: Mapping[str, Any]) -> str:
    figure, (upper, lower) = cast("Any", plt.subplots(2, 1, figsize=(9, 4.6), sharex=True))
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
    return _svg(figure)


def _svg(figure: Any) -> str:
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
