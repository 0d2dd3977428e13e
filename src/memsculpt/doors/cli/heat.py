# SPDX-License-Identifier: Apache-2.0
"""`memsculpt heat PID`: which pages of a process are touched, by address, module and time. Needs no running agent."""

import argparse
import sys
from pathlib import Path
from typing import Any

from memsculpt.domain.units import parse_duration_s, parse_size_bytes
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import UsageError

DEFAULT_FOR_S = 10.0
SHORTEST_S = 0.05


def add_command(subparsers: Subparsers) -> None:
    """Add `heat`."""
    parser = options.add_parser(
        subparsers,
        "heat",
        "page-exact heat map and working set of a process",
        "Clear the accessed bits of a process, wait, and read which pages it touched. A live picture on a terminal;\n"
        "Ctrl-C ends it and prints what was found so far.",
        "sudo memsculpt heat 4711 --for 30s --png heat.png",
    )
    parser.add_argument("pid", metavar="PID", type=process_number)
    parser.add_argument("--for", dest="for_s", metavar="30s", type=duration, default=DEFAULT_FOR_S)
    parser.add_argument(
        "--every", dest="every_s", metavar="1s", type=duration, help="how often the live picture and the PNG look"
    )
    parser.add_argument("--block", metavar="64KiB", type=_block, default=64 << 10, help="a power of two from 64KiB on")
    parser.add_argument("--png", metavar="FILE", type=Path, help="draw address x time and heat by module")
    parser.add_argument("--source", metavar="NAME", help="bpf, damon, page_idle or smaps; default: the best there is")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Watch the process and print what was touched."""
    from memsculpt.doors.cli import heat_watch, heat_words

    if parsed.png is not None:
        heat_watch.check_picture(parsed.png)
    is_live = not parsed.json and sys.stdout.isatty()
    needs_frames = is_live or parsed.png is not None or parsed.every_s is not None
    recording = heat_watch.record(
        parsed.pid,
        for_s=parsed.for_s,
        every_s=(parsed.every_s or max(1.0, parsed.for_s / 60.0)) if needs_frames else None,
        wanted=parsed.source,
        on_frame=heat_words.live_picture() if is_live else None,
    )
    if parsed.png is not None:
        heat_watch.draw(recording, parsed.png)
    told: dict[str, Any] = heat_words.as_json(recording, parsed.block)
    options.show(told, heat_words.in_words, as_json=parsed.json)
    return 0


def process_number(text: str) -> int:
    """Return the pid that was named. Raises UsageError."""
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise UsageError(place="PID", problem=f"{text!r} is no process number", fix="name one from `ps`, such as 4711")
    return int(text)


def duration(text: str) -> float:
    """Return the seconds of a duration. Raises UsageError."""
    try:
        found = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(place="duration", problem=str(error), fix='say for example "30s"') from error
    if found < SHORTEST_S:
        raise UsageError(place="duration", problem=f"{text} is too short", fix="50ms is the least")
    return found


def _block(text: str) -> int:
    fix = 'say "64KiB", "128KiB", ... up to "2MiB"'
    try:
        found = parse_size_bytes(text)
    except ValueError as error:
        raise UsageError(place="--block", problem=str(error), fix=fix) from error
    if found & (found - 1) or not 64 << 10 <= found <= 2 << 20:
        raise UsageError(place="--block", problem=f"{text} is no size of a block", fix=fix)
    return found
