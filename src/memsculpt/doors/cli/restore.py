# SPDX-License-Identifier: Apache-2.0
"""`memsculpt restore`: undo whatever an agent left behind."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memsculpt.domain.units import format_bytes
from memsculpt.doors import places, words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers

if TYPE_CHECKING:
    from memsculpt.act import RestoreReport


def add_command(subparsers: Subparsers) -> None:
    """Add `restore`."""
    parser = options.add_parser(
        subparsers,
        "restore",
        "undo whatever an agent left behind",
        "Put back every value that a killed agent changed, from its journal. A value that somebody else has changed\n"
        "since is left alone and told. Doing it twice does no harm.",
        "sudo memsculpt restore",
    )
    parser.add_argument("--state", metavar="DIR", help="where the journal is (default: the configuration's)")
    parser.add_argument("--config", metavar="FILE", help=f"default: {places.SYSTEM_CONFIG}, where there is one")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Undo and print; 1 when something could not be put back."""
    from memsculpt.doors.cli.undoing import undo

    report = undo(state=parsed.state, config=parsed.config)
    options.show(report_view(report), _words, as_json=parsed.json)
    return 0 if report.is_complete else 1


def report_view(report: "RestoreReport") -> dict[str, Any]:
    """Return what was undone, for programs."""
    changes = [{**asdict(one), "outcome": one.outcome.value} for one in report.changes]
    return {
        "complete": report.is_complete,
        "changes": [{name: words.text_of(value) for name, value in one.items()} for one in changes],
        "notes": [words.text_of(note) for note in report.notes],
        "paged_out_bytes": report.paged_out_bytes,
        "paged_in_bytes": report.paged_in_bytes,
    }


def _words(told: dict[str, Any]) -> str:
    return "\n".join(report_lines(told)) or "nothing to undo"


def report_lines(told: dict[str, Any]) -> list[str]:
    """Return what was undone, for people."""
    lines = [f"note: {words.printable(note)}" for note in told["notes"]]
    for one in told["changes"]:
        value = f", holds {one['value']}" if one["value"] else ""
        problem = f": {one['problem']}" if one["problem"] else ""
        lines.append(words.printable(f"{one['outcome']:<10}  {one['what']}{value}{problem}"))
    if told["paged_out_bytes"]:
        lines.append(f"{format_bytes(told['paged_out_bytes'])} were paged out; they come back when they are touched")
    return lines
