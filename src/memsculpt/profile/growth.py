# SPDX-License-Identifier: Apache-2.0
"""Which functions made a process grow: stacks with weights -> totals, a flame graph, and speedscope's format. Pure."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from memsculpt.domain.growth import GrowthStack
from memsculpt.domain.units import format_bytes

SURE = 1.96  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionGrowth:
    """One function's part: by itself, and with all that it called."""

    function: str
    module: str
    self_bytes: int
    total_bytes: int
    held_bytes: int  # of self_bytes
    held_total_bytes: int
    total_error_bytes: int = 0  # where it is estimated from samples: 95 % of such totals are off by no more
    held_total_error_bytes: int = 0


def error_bytes(variance: float) -> int:
    """Return how far 95 % of estimates with this variance are off at most, where many samples stand behind them."""
    return int(SURE * sqrt(variance))


def by_function(stacks: Iterable[GrowthStack]) -> tuple[FunctionGrowth, ...]:
    """Return the functions, the largest total first. One that calls itself counts once."""
    sums: dict[tuple[str, str], list[int]] = {}
    variances: dict[tuple[str, str], list[float]] = {}
    for one in stacks:
        for frame in set(one.frames):
            row = sums.setdefault(frame, [0, 0, 0, 0])
            row[1] += one.touched_bytes
            row[3] += one.held_bytes
            unsure = variances.setdefault(frame, [0.0, 0.0])
            unsure[0] += one.touched_variance
            unsure[1] += one.held_variance
        if one.frames:
            row = sums[one.frames[0]]
            row[0] += one.touched_bytes
            row[2] += one.held_bytes
    found = [
        FunctionGrowth(
            function=name,
            module=module,
            self_bytes=row[0],
            total_bytes=row[1],
            held_bytes=row[2],
            held_total_bytes=row[3],
            total_error_bytes=error_bytes(variances[name, module][0]),
            held_total_error_bytes=error_bytes(variances[name, module][1]),
        )
        for (name, module), row in sums.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.total_bytes, -one.self_bytes, one.function, one.module)))


def by_module(stacks: Iterable[GrowthStack]) -> dict[str, tuple[int, int]]:
    """Return (touched, held) bytes by the module of the innermost function, the largest first."""
    sums: dict[str, list[int]] = {}
    for one in stacks:
        row = sums.setdefault(one.frames[0][1] if one.frames else "[unknown]", [0, 0])
        row[0] += one.touched_bytes
        row[1] += one.held_bytes
    return {name: (row[0], row[1]) for name, row in sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))}


@dataclass(slots=True)
class _Node:
    name: str
    module: str
    size_bytes: int = 0
    held_bytes: int = 0
    children: dict[tuple[str, str], "_Node"] = field(default_factory=dict[tuple[str, str], "_Node"])


def _tree(stacks: Iterable[GrowthStack], title: str) -> _Node:
    root = _Node(title, "")
    for one in stacks:
        at = root
        for step in [*reversed(one.frames)] or [("[unknown]", "[unknown]")]:
            at.size_bytes += one.touched_bytes
            at.held_bytes += one.held_bytes
            at = at.children.setdefault(step, _Node(*step))
        at.size_bytes += one.touched_bytes
        at.held_bytes += one.held_bytes
    return root


WIDTH, ROW, PAD, LETTER = 1200.0, 18, 10, 6.6
SMALLEST = 0.4  # narrower boxes cannot be seen
COLOURS = ("#e8743b", "#d9a441", "#c25b4e", "#b7894b", "#de8f5a", "#c9a66b", "#d2604a", "#e3b04b")

# Zoom into a box by a click, back by a click on the lowest row; Ctrl-F is the browser's own.
SCRIPT = """
(function(){var s=document.currentScript.closest('svg')||document.querySelector('svg.flame'),W=%(width)d;
function all(){return s.querySelectorAll('g[data-x]')}
function zoom(x,w,d){all().forEach(function(g){var gx=+g.dataset.x,gw=+g.dataset.w,gd=+g.dataset.d,
nx=(gx-x)/w*W,nw=gw/w*W,on=nx+nw>0.01&&nx<W-0.01&&(gd>=d||(gx<=x+1e-6&&gx+gw>=x+w-1e-6));
g.style.display=on?'':'none';if(!on)return;if(nx<0){nw+=nx;nx=0}if(nx+nw>W)nw=W-nx;
var r=g.querySelector('rect'),t=g.querySelector('text');r.setAttribute('x',nx);
r.setAttribute('width',Math.max(nw-0.5,0.1));
t.setAttribute('x',nx+3);var n=Math.floor((nw-6)/%(letter)s),full=g.dataset.n;
t.textContent=n<3?'':(full.length<=n?full:full.slice(0,n-1)+'\\u2026')})}
all().forEach(function(g){g.addEventListener('click',function(){zoom(+g.dataset.x,+g.dataset.w,+g.dataset.d)})})})();
"""


def flame_svg(stacks: Sequence[GrowthStack], title: str) -> str:
    """Return a flame graph (Gregg, "The Flame Graph", 2016) as one self-contained SVG; callers are below."""
    root = _tree(stacks, title)
    boxes: list[str] = []
    deepest = _draw(root, 0.0, WIDTH, 0, max(root.size_bytes, 1), boxes)
    height = (deepest + 1) * ROW + 2 * PAD + 30
    placed = "\n".join(box.replace("@Y@", "") for box in boxes).replace("@H@", "")
    turned = f'<g transform="translate(0,{height - PAD})">{placed}</g>'
    script = SCRIPT % {"width": int(WIDTH), "letter": LETTER}
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flame" viewBox="0 0 {WIDTH:.0f} {height}" '
        f'width="{WIDTH:.0f}" height="{height}" font-family="ui-monospace,Menlo,Consolas,monospace" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fffdf8"/>'
        f'<text x="{PAD}" y="20" font-size="14" fill="#222">{html.escape(title)}</text>'
        f"{turned}<script><![CDATA[{script}]]></script></svg>\n"
    )


def _draw(node: _Node, x: float, width: float, depth: int, whole: int, boxes: list[str]) -> int:
    label = node.name
    letters = int((width - 6) / LETTER)
    shown = "" if letters < 3 else label if len(label) <= letters else label[: letters - 1] + "…"
    share = 100.0 * node.size_bytes / whole
    tip = (
        f"{label} ({node.module or 'everything'}): {format_bytes(node.size_bytes)}, {share:.1f} %, "
        f"{format_bytes(node.held_bytes)} still held"
    )
    colour = "#8d99ae" if not depth else COLOURS[sum(node.module.encode("utf-8", "replace")) % len(COLOURS)]
    y = -(depth + 1) * ROW
    boxes.append(
        f'<g data-x="{x:.3f}" data-w="{width:.3f}" data-d="{depth}" data-n="{html.escape(label, quote=True)}" '
        f'style="cursor:pointer"><title>{html.escape(tip)}</title>'
        f'<rect x="{x:.2f}" y="{y}" width="{max(width - 0.5, 0.1):.2f}" height="{ROW - 1}" fill="{colour}" rx="2"/>'
        f'<text x="{x + 3:.2f}" y="{y + 12}" fill="#1b1b1b" pointer-events="none">{html.escape(shown)}</text></g>'
    )
    deepest, at = depth, x
    for _, child in sorted(node.children.items()):
        child_width = width * child.size_bytes / max(node.size_bytes, 1)
        if child_width >= SMALLEST:
            deepest = max(deepest, _draw(child, at, child_width, depth + 1, whole, boxes))
        at += child_width
    return deepest


def speedscope(stacks: Sequence[GrowthStack], name: str) -> str:
    """Return the stacks in the file format of speedscope.app (its file-format-schema.json), weights in bytes."""
    numbers: dict[tuple[str, str], int] = {}
    samples = [[numbers.setdefault(frame, len(numbers)) for frame in reversed(one.frames)] for one in stacks]
    weights = [one.touched_bytes for one in stacks]
    document: Mapping[str, Any] = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "memsculpt",
        "shared": {"frames": [{"name": function, "file": module} for function, module in numbers]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "bytes",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
    return json.dumps(document)


def page(stacks: Sequence[GrowthStack], title: str, notes: Sequence[str] = ()) -> str:
    """Return a self-contained HTML page: the flame graph, and the functions as a table."""
    rows = "".join(
        f"<tr><td>{html.escape(one.function)}<td>{html.escape(one.module)}<td>{format_bytes(one.total_bytes)}"
        f"<td>{format_bytes(one.self_bytes)}<td>{format_bytes(one.held_total_bytes)}"
        for one in by_function(stacks)[:60]
    )
    said = "".join(f"<li>{html.escape(note)}" for note in notes)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>body{{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto;"
        "max-width:78rem;padding:0 1rem;color:#1c1c1e}svg{max-width:100%;height:auto}"
        "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
        "td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
        "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left;overflow-wrap:anywhere}</style>"
        f"<h1>{html.escape(title)}</h1><p>Width is memory that came by page faults; callers below, callees above. "
        f"Click a box to zoom in, the lowest to zoom out.</p>{flame_svg(stacks, title)}"
        f"<table><tr><th>function<th>module<th>total<th>self<th>still held</tr>{rows}</table><ul>{said}</ul></html>\n"
    )
