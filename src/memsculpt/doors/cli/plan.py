# SPDX-License-Identifier: Apache-2.0
"""`memsculpt plan`: what the last tick decided and why."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers


def add_command(subparsers: Subparsers) -> None:
    """Add `plan`."""
    parser = options.add_parser(
        subparsers,
        "plan",
        "what the last tick decided, in order, and what it held back",
        "Show how the capacity is divided, what is done (in observe mode: would be done), and what was held back.",
        "memsculpt plan",
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    options.show(options.client_of(parsed).get("/v1/plan"), _words, as_json=parsed.json)
    return 0


def _words(told: dict[str, Any]) -> str:
    if told["age_s"] is None:
        return "no plan yet: the first tick is not over"
    blocks = ["the last tick's plan" + ("" if told["mode"] == "apply" else ", rehearsed only (observe mode)")]
    division = told["division"]
    if division is not None and division["shares"]:
        heads = ("PARTITION", "USED", "NEEDED", "SIZE", "MAY FALL SHORT")
        rows = [
            (
                words.printable(one["name"]),
                format_bytes(one["used_bytes"]),
                format_bytes(one["needed_bytes"]),
                format_bytes(one["size_bytes"]),
                words.percent(one["shortfall_ratio"]),
            )
            for one in division["shares"]
        ]
        shared = format_bytes(division["capacity_bytes"])
        blocks.append(f"{words.table(heads, rows, paint=words.paints())}\n{shared} are shared")
    blocks.append("\n".join(action_line(one) for one in told["actions"]) or "nothing to do")
    held = [f"held back ({one['code']}): {words.printable(one['text'])}" for one in told["held_back"]]
    return "\n\n".join([*blocks, "\n".join(held)] if held else blocks)


def action_line(one: dict[str, Any]) -> str:
    """Return one action for people, on one line."""
    return f"{one['id']:>6}  {one['status']:<10}  {words.printable(one['action']['text'])}"
