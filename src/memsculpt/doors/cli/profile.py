# SPDX-License-Identifier: Apache-2.0
"""`memsculpt profile ...`: what lasts of each workload, from the store of a state folder. Needs no running agent."""

import argparse
from pathlib import Path
from typing import Any

from memsculpt.domain.units import parse_duration_s
from memsculpt.doors import places
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import UsageError

DEFAULT_SPAN_S = 86_400.0


def add_command(subparsers: Subparsers) -> None:
    """Add `profile` and the commands below it."""
    parser = subparsers.add_parser(
        "profile",
        help="what lasts of each workload: list, show, diff, export, import, check",
        description="Read the profile store: series at several resolutions, models, heat. It lasts across restarts.",
        epilog="example: memsculpt profile show system.slice/redis.service --span 7d --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(below, "list", "who is in the store", "memsculpt profile list --json | jq -r '.workloads[].id'")

    show = _add(below, "show", "one workload's series", "memsculpt profile show redis --span 7d --png week.png")
    _add_workload(show)
    _add_span(show)
    show.add_argument("--png", metavar="FILE", type=Path, help="draw series and forecasts (needs the plots extra)")

    diff = _add(
        below, "diff", "what changed: a span of time against an earlier one", "memsculpt profile diff redis --back 7d"
    )
    _add_workload(diff)
    diff.add_argument("other", metavar="OTHER", nargs="?", help="compare with this workload, over the same time")
    _add_span(diff)
    diff.add_argument("--back", metavar="7d", type=duration, help="how far back the earlier span is (default: --span)")

    export = _add(below, "export", "write the store as a Parquet file", "memsculpt profile export profiles.parquet")
    export.add_argument("file", metavar="FILE", type=Path)
    export.add_argument("--workload", metavar="NAME", help="this one only")

    take = _add(below, "import", "read a Parquet file into the store", "memsculpt profile import profiles.parquet")
    take.add_argument("file", metavar="FILE", type=Path)

    _add(below, "check", "whether everything in the store is whole", "memsculpt profile check")


def _add(below: Any, name: str, line: str, example: str) -> argparse.ArgumentParser:
    parser = options.add_parser(below, name, line, f"{line[0].upper()}{line[1:]}.", example)
    parser.add_argument("--state", metavar="DIR", help="where the store is (default: the configuration's)")
    parser.add_argument("--config", metavar="FILE", help=f"default: {places.SYSTEM_CONFIG}, where there is one")
    parser.set_defaults(run=run, verb=name)
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workload", metavar="WORKLOAD", help="its name, or a part that only one has")


def _add_span(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--span", metavar="1d", type=duration, default=DEFAULT_SPAN_S, help="how much time (1d)")
    parser.add_argument(
        "--resolution", metavar="5min", type=duration, help="1s, 10s, 1min, 5min or 1h; default: what suits the span"
    )


def run(parsed: argparse.Namespace) -> int:
    """Do what the word below `profile` says."""
    from memsculpt.doors.cli import profile_verbs  # loads numpy

    return profile_verbs.VERBS[parsed.verb](parsed)


def duration(text: str) -> float:
    """Return the seconds of a duration. Raises UsageError."""
    try:
        found = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(place="duration", problem=str(error), fix='say for example "1d"') from error
    if found < 1.0:
        raise UsageError(place="duration", problem=f"{text} is too short", fix="1s is the least")
    return found
