# SPDX-License-Identifier: Apache-2.0
"""`memsculpt doctor`: what this machine offers, what is degraded and why. Needs no running agent."""

import argparse
from pathlib import Path
from typing import Any

from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import MemsculptError, Unavailable


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
    found.append(profile_store())
    options.show({"capabilities": found}, _words, as_json=parsed.json)
    return 0


def profile_store() -> dict[str, Any]:
    """Return whether profiles are kept where this user's agent keeps them, in the form of a capability.

    Only looked at: a whole check is `memsculpt profile check`'s.
    """
    from memsculpt.doors.cli import preparing
    from memsculpt.profile.store import NAME, Reader, find_set_aside

    try:
        folder = Path(preparing.read_settings(None, is_named=False).state)
    except MemsculptError as error:  # doctor tells of the machine, whatever the configuration says
        return {
            "name": "profile_store",
            "available": False,
            "reason": f"{error.place}: {error.problem}",
            "fix": error.fix,
        }
    problem, fix = "", ""
    try:
        reason = f"{folder / NAME} is there"
        Reader.open(folder).close()
    except Unavailable as error:
        reason = f"{error.place}: {error.problem}"
        if isinstance(error.__cause__, PermissionError):  # then what else is in the folder cannot be told either
            return {"name": "profile_store", "available": False, "reason": reason, "fix": error.fix}
    except MemsculptError as error:
        reason = problem = f"{error.place}: {error.problem}"
        fix = error.fix
    aside = find_set_aside(folder)
    if aside:
        reason += f"; {len(aside)} broken ones were set aside, the last as {aside[-1].name}"
    return {"name": "profile_store", "available": not problem, "reason": reason, "fix": fix}


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
