# SPDX-License-Identifier: Apache-2.0
"""`memsculpt exec`: start a program inside a partition from its first page on; nothing stays charged elsewhere."""

import argparse

from memsculpt.doors import places
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import UsageError


def add_command(subparsers: Subparsers) -> None:
    """Add `exec`."""
    parser = options.add_parser(
        subparsers,
        "exec",
        "start a program inside a partition",
        "Put this process into the partition's cgroup and become the program: all of its memory is charged there.\n"
        "With --share its identical pages may be merged with those of the same group's programs (KSM).",
        "sudo memsculpt exec --partition batch -- ./worker",
    )
    parser.add_argument("--config", metavar="FILE", help=f"default: {places.SYSTEM_CONFIG}, where there is one")
    parser.add_argument("--partition", metavar="NAME", required=True, help="a partition that the configuration names")
    parser.add_argument("--share", metavar="GROUP", help="let identical pages be merged (opt-in, a trust decision)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the program")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Enter the partition and become the program; returns only by raising."""
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not command:
        raise UsageError(
            place="memsculpt exec", problem="names no program", fix="say: memsculpt exec --partition P -- CMD"
        )
    from memsculpt.doors.cli import launching

    launching.become(command, partition=parsed.partition, share=parsed.share, config=parsed.config)
    return 1
