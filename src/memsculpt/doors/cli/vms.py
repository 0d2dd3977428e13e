# SPDX-License-Identifier: Apache-2.0
"""`memsculpt vms`: virtual machines, as their monitors and guests tell them."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers

UNKNOWN = "-"


def add_command(subparsers: Subparsers) -> None:
    """Add `vms`."""
    parser = options.add_parser(
        subparsers,
        "vms",
        "virtual machines: state, balloon, and what their guests use",
        "Show the virtual machines of this host: what they were built with, what the balloon leaves them, what their "
        "guests say they use, and what keeps a monitor from being asked.",
        "memsculpt vms --json | jq '.vms[] | select(.problem != \"\")'",
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    options.show(options.client_of(parsed).get("/v1/vms"), vm_table, as_json=parsed.json)
    return 0


def vm_table(told: dict[str, Any]) -> str:
    """Return the virtual machines for people; problems below the table, for they are sentences."""
    if not told["vms"]:
        return "no virtual machines: no process of QEMU runs here, or this user may not see it"
    heads = ("NAME", "UUID", "STATE", "RAM", "BALLOON", "NEED", "USED", "AVAILABLE", "VCPU")
    rows = [
        (
            words.shortened(one["name"], 32),
            words.shortened(one["uuid"], 36),
            one["state"],
            format_bytes(one["ram_bytes"]) if one["ram_bytes"] else UNKNOWN,
            _size(one["balloon_bytes"]),
            _size(one["need_bytes"]),
            _size(one["guest"] and one["guest"]["used_bytes"]),
            _size(one["guest"] and one["guest"]["available_bytes"]),
            format_duration_s(one["vcpu_s"]) if one["age_s"] is not None else UNKNOWN,
        )
        for one in told["vms"]
    ]
    troubles = [
        f"{words.printable(one['name'])}: {words.printable(one['problem'])}" for one in told["vms"] if one["problem"]
    ]
    shown = words.table(heads, rows, left=3, paint=words.paints())
    return "\n".join([shown, "", *troubles]) if troubles else shown


def _size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else format_bytes(size_bytes)
