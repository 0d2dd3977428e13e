# SPDX-License-Identifier: Apache-2.0
"""The page of bench phases: self-contained HTML, plots inline as SVG, nothing fetched from anywhere."""

import html
import io
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, cast

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}
svg{max-width:100%;height:auto}
"""


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page for the object that the bench printed."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>memsculpt: phases</title><style>{STYLE}</style>",
        "<h1>Working sets that take turns, under a limit for one of them</h1>",
        _table(
            ["figure", "median", "range", "bar", ""],
            [_figure_row(name, figure) for name, figure in result["figures"].items()],
        ),
    ]
    for name, runs in result["parts"].items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts += [_groups(runs["memsculpt"])] if name == "uniform" else [_arms(runs), _plot(runs)]
    return "\n".join(parts)


def _figure_row(name: str, figure: Mapping[str, Any]) -> list[str]:
    if figure["value"] is None:
        return [name, "not measured", "", figure["bar"], "missed"]
    span = f"{figure['low']:.3g} to {figure['high']:.3g}"
    return [name, f"{figure['value']:.3g}", span, figure["bar"], "holds" if figure["holds"] else "missed"]


def _arms(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    head = ["arm", "late turn, s", "major faults", "recall", "precision", "OOM kills", "manager's processor"]
    return _table(
        head,
        [
            [
                arm,
                _middle([second for run in results for second in run["late_turn_s"]], "{:.3f}"),
                _middle([run["late_major_faults"] for run in results], "{:.0f}"),
                _middle([run["recall"] for run in results if run["recall"] is not None], "{:.3f}"),
                _middle([run["precision"] for run in results if run["precision"] is not None], "{:.3f}"),
                str(sum(run["oom_kills"] for run in results)),
                _middle([run["manager_cpu_ratio"] for run in results], "{:.3f}"),
            ]
            for arm, results in runs.items()
        ],
    )


def _groups(results: Sequence[Mapping[str, Any]]) -> str:
    head = ["round", "managed ÷ alone, by group", "alone ÷ alone", "major faults", "looks", "manager's processor"]
    return _table(
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


def _middle(values: Sequence[float], form: str) -> str:
    return f"{form.format(median(values))} ({form.format(min(values))} to {form.format(max(values))})" if values else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _plot(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    figure, axes = cast("Any", plt.subplots(figsize=(9, 3)))
    for arm, results in runs.items():
        turns = [turn for run in results for turn in run["turns"]]
        lengths = [turn["end_s"] - turn["start_s"] for turn in turns]
        axes.scatter([turn["turn"] for turn in turns], lengths, s=14, alpha=0.7, label=arm)
    axes.set(xlabel="turn", ylabel="length, s", yscale="log")
    axes.legend(ncols=6, fontsize=8, frameon=False)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
