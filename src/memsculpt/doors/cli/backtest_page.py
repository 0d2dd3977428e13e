# SPDX-License-Identifier: Apache-2.0
"""The page of `backtest --html`: what each forecaster provisions at which risk, and how often its levels hold."""

import html
import math
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 360, 56, 36
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7c3aed", "#a16207", "#475569")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1917 }
table { border-collapse: collapse } th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e7e5e4 }
th:first-child, td:first-child { text-align: left } svg text { font: 12px system-ui, sans-serif }
"""


def page(told: dict[str, Any]) -> str:
    """Return a self-contained page."""
    parts = [_part(one) for one in told["files"]]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>memsculpt backtest</title><style>{STYLE}</style>'
        f"<h1>Forecasts on recorded series</h1>{''.join(parts)}</html>\n"
    )


def _part(one: dict[str, Any]) -> str:
    methods: dict[str, Any] = one["methods"]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{scores['mase']['12']:.3f}</td>"
        + "".join(f"<td>{value:.3f}</td>" for value in scores["pinball"]["12"])
        + "".join(f"<td>{100 * value:.1f} %</td>" for value in scores["coverage"]["12"])
        + f"<td>{100 * scores['violated_ratio']:.2f} %</td>"
        + "".join(f"<td>{100 * at['provisioned_ratio']:.1f} %</td>" for at in scores["at_risk"])
        + "</tr>"
        for name, scores in methods.items()
    )
    return (
        f"<h2>{html.escape(one['file'])}: {html.escape(one['value'])}, {one['series']} series</h2>"
        "<p>Share of capacity that is provisioned when forecasts are stretched so that a share of windows needs more "
        "(to the left: less risk; lower is better).</p>"
        f"{_chart(one['frontier'])}"
        "<table><tr><th>forecaster</th><th>MASE</th><th>pinball .5</th><th>.9</th><th>.99</th><th>held .5</th>"
        "<th>.9</th><th>.99</th><th>violated</th><th>given at 1 %</th><th>at 5 %</th></tr>"
        f"{rows}</table><p>Over 12 steps. Violated: windows that needed more than the 0.99 quantile of their peak.</p>"
    )


def _chart(frontier: dict[str, list[list[float]]]) -> str:
    points = [point for line in frontier.values() for point in line]
    low, high = min(given for _, given in points), max(given for _, given in points)
    low, high = math.floor(low * 20) / 20, max(math.ceil(high * 20) / 20, low + 0.05)
    first, last = math.log(min(risk for risk, _ in points)), math.log(max(risk for risk, _ in points))

    def across(risk: float) -> float:
        return LEFT + (math.log(risk) - first) / (last - first) * (WIDTH - LEFT - 190)

    def up(given: float) -> float:
        return HEIGHT - BOTTOM - (given - low) / (high - low) * (HEIGHT - BOTTOM - 12)

    marks = [
        f'<line x1="{LEFT}" x2="{WIDTH - 190}" y1="{up(at):.1f}" y2="{up(at):.1f}" stroke="#e7e5e4"/>'
        f'<text x="{LEFT - 8}" y="{up(at) + 4:.1f}" text-anchor="end">{100 * at:.0f} %</text>'
        for at in [low + (high - low) * number / 4 for number in range(5)]
    ]
    marks += [
        f'<text x="{across(risk):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{100 * risk:g} %</text>'
        for risk in sorted({risk for risk, _ in points})
    ]
    for number, (name, line) in enumerate(frontier.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(risk):.1f},{up(given):.1f}" for risk, given in line)
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if not number else 1.5}"/>'
        )
        marks.append(f'<text x="{WIDTH - 180}" y="{24 + 20 * number}" fill="{colour}">{html.escape(name)}</text>')
    marks.append(f'<text x="{(WIDTH - 190) / 2}" y="{HEIGHT - 2}" text-anchor="middle">windows that need more</text>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(marks)}</svg>'
