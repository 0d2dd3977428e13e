# SPDX-License-Identifier: Apache-2.0
"""`memsculpt explain [ACTION]`: why something was done, how it went, what came of it."""

import argparse
from typing import Any

from memsculpt.domain.units import format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.plan import action_line


def add_command(subparsers: Subparsers) -> None:
    """Add `explain`."""
    parser = options.add_parser(
        subparsers,
        "explain",
        "why an action was taken, with its figures",
        "Explain one action by its number; without a number, list the most recent actions.",
        "memsculpt explain 12",
    )
    parser.add_argument("action", nargs="?", type=int, metavar="ACTION", help="number from `plan` or `explain`")
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    client = options.client_of(parsed)
    if parsed.action is None:
        options.show(client.get("/v1/actions"), _list_words, as_json=parsed.json)
    else:
        options.show(client.get(f"/v1/actions/{parsed.action}"), _words, as_json=parsed.json)
    return 0


def _list_words(told: dict[str, Any]) -> str:
    return "\n".join(action_line(one) for one in told["recent"]) or "no actions yet"


def _words(told: dict[str, Any]) -> str:
    applied = told["applied"]
    action = applied["action"]
    head = f"action {applied['id']} ({action['kind']}), {format_duration_s(applied['age_s'])} ago"
    lines = [f"  {words.printable(line)}" for line in told["explanation"]]
    figures = action["reason"]["figures"]
    rows = [(f"  {name}", f"{value:,.6g}") for name, value in figures.items()]
    return "\n".join([head, *lines, *([words.table(("  FIGURE", "VALUE"), rows)] if rows else [])])
