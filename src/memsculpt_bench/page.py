# SPDX-License-Identifier: Apache-2.0
"""The page that a bench writes with `--html`: self-contained, plots inline as SVG, nothing fetched from anywhere.

`page` draws whatever a bench printed: its figures against their bars, and of each arm every measure that is a number,
round by round. A bench that has more to show has a module of its own, out of the same pieces.
"""

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, cast

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

MIB = 1 << 20
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}
.yes{color:#2c6e2b}.no{color:#a22}svg{max-width:100%;height:auto}figure{margin:1.5rem 0}figcaption{color:#555}
"""
PLOT_COLUMNS = 3
# How a measure is shown, by the end of its name: the field's units, not the machine's.
UNITS: Mapping[str, tuple[str, float]] = {
    "_bytes": ("MiB", MIB),
    "_s": ("s", 1.0),
    "_us": ("µs", 1.0),
    "_ms": ("ms", 1.0),
}

Columns = Mapping[str, Sequence[float]]


def page(result: Mapping[str, Any]) -> str:
    """Return the whole page for the object that a bench printed."""
    arms = {arm: columns_of(runs) for arm, runs in result["arms"].items()}
    parts = [opening(str(result["bench"]), f"bench {result['bench']}"), machine(result), "<h2>Figures</h2>"]
    parts += [figures(result["figures"]), "<h2>Arms</h2>", _arms(arms)]
    measures = sorted({name for columns in arms.values() for name in columns})
    parts.append(figure(_plot(arms, measures), "Every round of every arm."))
    return "\n".join(parts)


def opening(title: str, heading: str) -> str:
    """Return the head of a page."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>memsculpt: {html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(heading)}</h1>"
    )


def machine(result: Mapping[str, Any]) -> str:
    """Say where and how often it was measured."""
    facts = result["machine"]
    return (
        f"<p>Linux {html.escape(facts['kernel'])}, {facts['cpus']} processors, "
        f"{facts['memory_bytes'] / MIB / 1024:.0f} GiB; {result['rounds']} interleaved rounds; medians, with the range "
        "in brackets.</p>"
    )


def figures(told: Mapping[str, Any]) -> str:
    """Return the figures against their bars."""
    rows = [
        [
            html.escape(name),
            "not measured" if one["value"] is None else f"{one['value']:.3g}",
            "" if one["low"] is None else f"{one['low']:.3g} to {one['high']:.3g}",
            html.escape(one["bar"]),
            "<span class=yes>holds</span>" if one["holds"] else "<span class=no>missed</span>",
        ]
        for name, one in told.items()
    ]
    return table(["figure", "median", "range", "bar", ""], rows)


def middle(values: Sequence[float], form: str) -> str:
    """Return the median, with the range in brackets."""
    if not values:
        return "none"
    return f"{form.format(median(values))} <small>({form.format(min(values))}–{form.format(max(values))})</small>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are markup already."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def figure(svg: str, caption: str) -> str:
    """Return a plot with its caption."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def svg_of(drawn: Any) -> str:
    """Return a matplotlib figure as SVG, and close it."""
    drawn.tight_layout()
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg")
    plt.close(drawn)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def columns_of(runs: object) -> dict[str, list[float]]:
    """Return an arm's measures by name, a value for each round.

    An arm is a list of rounds, each an object, or an object of lists; what is no number is left out.
    """
    if isinstance(runs, Mapping):
        lists = {str(name): values for name, values in cast("Mapping[str, object]", runs).items()}
        found = {
            name: _numbers(cast("list[object]", values)) for name, values in lists.items() if isinstance(values, list)
        }
    else:
        rounds = [
            cast("Mapping[str, object]", run) for run in cast("Sequence[object]", runs) if isinstance(run, Mapping)
        ]
        names = dict.fromkeys(name for run in rounds for name in run)
        found = {name: _numbers([run.get(name) for run in rounds]) for name in names}
    return {name: values for name, values in found.items() if values}


def _numbers(values: Sequence[object]) -> list[float]:
    return [
        float(value)
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _shown(name: str) -> tuple[str, Callable[[float], float]]:
    for end, (unit, scale) in UNITS.items():
        if name.endswith(end):
            return f"{name.removesuffix(end)}, {unit}", lambda value, scale=scale: value / scale
    return name, lambda value: value


def _arms(arms: Mapping[str, Columns]) -> str:
    measures = list(dict.fromkeys(name for columns in arms.values() for name in columns))
    rows = [
        [html.escape(_shown(name)[0])]
        + [middle([_shown(name)[1](value) for value in columns.get(name, ())], "{:.4g}") for columns in arms.values()]
        for name in measures
    ]
    return table(["measure", *map(html.escape, arms)], rows)


def _plot(arms: Mapping[str, Columns], measures: Sequence[str]) -> str:
    lines = max(1, math.ceil(len(measures) / PLOT_COLUMNS))
    drawn, panels = cast("Any", plt.subplots(lines, PLOT_COLUMNS, figsize=(10, 2.2 * lines), squeeze=False))
    for panel, name in zip(panels.flat, measures, strict=False):
        title, scaled = _shown(name)
        for number, columns in enumerate(arms.values()):
            values = [scaled(value) for value in columns.get(name, ())]
            panel.scatter([number] * len(values), values, s=14, alpha=0.7)
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(arms)), list(arms), fontsize=7, rotation=20)
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
    for panel in list(panels.flat)[len(measures) :]:
        panel.set_visible(False)
    return svg_of(drawn)
