# SPDX-License-Identifier: Apache-2.0
"""`memsculpt doctor`: what this machine offers, what is degraded and why. Needs no running agent."""

import argparse
from typing import Any

from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers


def add_command(subparsers: Subparsers) -> None:
    """Add `doctor`."""
    parser = options.add_parser(
        subparsers,
        "doctor",
        "what this machine offers, what is degraded and why",
        "Examine this machine as this user: what can be read and changed, and what would help where it cannot.",
        "sudo memsculpt doctor",
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Examine and print."""
    from memsculpt.host import doctor  # loads numpy, which the other commands' help does without

    found = [
        {"name": one.name, "available": one.available, "reason": one.reason, "fix": one.fix}
        for one in doctor.examine().values()
    ]
    options.show({"capabilities": found}, _words, as_json=parsed.json)
    return 0


def _words(told: dict[str, Any]) -> str:
    rows = [
        ("yes" if one["available"] else "no", words.printable(one["name"]), words.printable(_why(one)))
        for one in told["capabilities"]
    ]
    missing = sum(not one["available"] for one in told["capabilities"])
    summary = f"{missing} of {len(rows)} are not available here" if missing else "everything is available"
    return f"{words.table(('HERE', 'WHAT', 'WHY'), rows, left=3, paint=words.paints())}\n\n{summary}"


def _why(one: dict[str, Any]) -> str:
    return one["reason"] if one["available"] or not one["fix"] else f"{one['reason']}; fix: {one['fix']}"
