# SPDX-License-Identifier: Apache-2.0
"""`memsculpt run`: the agent on this machine, observing by default, until it is told to end."""

import argparse
from typing import TYPE_CHECKING

from memsculpt.domain.units import parse_duration_s
from memsculpt.doors import places
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import UsageError

if TYPE_CHECKING:
    from memsculpt.doors.cli.running import Wanted


def add_command(subparsers: Subparsers) -> None:
    """Add `run`."""
    parser = options.add_parser(
        subparsers,
        "run",
        "start the agent on this machine, observing by default",
        "Watch this machine's memory, forecast and plan; with --apply also act on what the configuration names.\n"
        "SIGTERM, Ctrl-C and the end of --duration undo every change and print a summary.",
        "memsculpt run --duration 20s",
    )
    parser.add_argument("--config", metavar="FILE", help=f"default: {places.SYSTEM_CONFIG}, where there is one")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--observe", action="store_true", help="plan, and change nothing (the default)")
    modes.add_argument("--apply", action="store_true", help="carry plans out; needs root and named partitions")
    parser.add_argument("--duration", metavar="60s", type=_duration, help="end by itself after this time")
    listens = parser.add_mutually_exclusive_group()
    listens.add_argument(
        "--listen", metavar="HOST:PORT", help=f"answer reads on loopback (default {places.DEFAULT_LISTEN})"
    )
    listens.add_argument("--no-listen", action="store_true", help="answer on the Unix socket only")
    parser.add_argument("--socket", metavar="PATH", help="the agent's socket")
    parser.add_argument("--state", metavar="DIR", help="where the journal is kept")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Run the agent to its end and print the summary."""
    from memsculpt.doors.cli import running

    return running.run(_wanted(parsed))


def _wanted(parsed: argparse.Namespace) -> "Wanted":
    from memsculpt.doors.cli.running import Wanted

    return Wanted(
        config=parsed.config,
        apply=True if parsed.apply else False if parsed.observe else None,
        duration_s=parsed.duration,
        listen=None if parsed.no_listen else parsed.listen or "",
        socket=parsed.socket,
        state=parsed.state,
        as_json=parsed.json,
    )


def _duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(place="--duration", problem=str(error), fix='say for example "--duration 60s"') from error
