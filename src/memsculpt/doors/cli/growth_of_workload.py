# SPDX-License-Identifier: Apache-2.0
"""`memsculpt growth --workload NAME`: what a running agent has sampled of a critical workload."""

import argparse
from typing import Any
from urllib.parse import quote

from memsculpt.domain.growth import GrowthStack
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options

ANSWER_WITHIN_S = 120.0  # a tick, and a worker that reads large symbol tables


def ask(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the agent's answer. Raises MemsculptError."""
    return options.client_of(parsed).get(
        f"/v1/workloads/{quote(parsed.workload, safe='')}/growth", timeout_s=ANSWER_WITHIN_S
    )


def title_of(told: dict[str, Any]) -> str:
    """Return a title for drawings."""
    return f"growth of {words.printable(told['workload'])} in {format_duration_s(told['interval_s'])}"


def stacks_of(told: dict[str, Any]) -> tuple[GrowthStack, ...]:
    """Return the stacks of an answer, for drawings."""
    return tuple(
        GrowthStack(
            frames=tuple(zip(one["frames"], one["frame_modules"], strict=True)),
            kind=one["kind"],
            touched_bytes=one["touched_bytes"],
            held_bytes=one["held_bytes"],
            fault_count=one["faults"],
        )
        for one in told["stacks"]
    )


def in_words(told: dict[str, Any], top: int) -> str:
    """Return the answer for people."""
    grown = told["grown_bytes"]
    by_counters = "" if grown is None else f"; by the kernel's counters it changed by {_signed(grown)}"
    lines = [
        (
            f"{words.printable(told['workload'])}: {_estimate(told, 'touched')} came by page faults in the last "
            f"{format_duration_s(told['interval_s'])}, {_estimate(told, 'held')} of it is still held{by_counters}"
        ),
        f"from {told['recorded']} recorded of {told['faults']} faults, one page in {told['sampled_every']}",
    ]
    whole = max(1, told["touched_bytes"])
    rows = [
        (
            words.shortened(one["function"], 56),
            words.shortened(one["module"], 36),
            format_bytes(one["total_bytes"]),
            f"±{format_bytes(one['total_error_bytes'])}",
            words.percent(one["total_bytes"] / whole),
            format_bytes(one["self_bytes"]),
            format_bytes(one["held_total_bytes"]),
            f"±{format_bytes(one['held_total_error_bytes'])}",
        )
        for one in told["functions"][:top]
    ]
    heads = ("FUNCTION", "MODULE", "TOTAL", "", "SHARE", "SELF", "HELD", "")
    lines += ["", words.table(heads, rows, left=2, paint=words.paints())]
    if len(told["functions"]) > top:
        lines.append(f"… and {len(told['functions']) - top} more (--top, or --json)")
    return "\n".join([*lines, *[f"note: {words.printable(note)}" for note in told["notes"]]])


def _estimate(told: dict[str, Any], what: str) -> str:
    return f"{format_bytes(told[f'{what}_bytes'])} ±{format_bytes(told[f'{what}_error_bytes'])}"


def _signed(size_bytes: int) -> str:
    return f"-{format_bytes(-size_bytes)}" if size_bytes < 0 else format_bytes(size_bytes)
