# SPDX-License-Identifier: Apache-2.0
"""`memsculpt pools`: what may be sculpted, its zones, and what came of it."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers

ZONES = ("hot", "warm", "cold", "prefetch")


def add_command(subparsers: Subparsers) -> None:
    """Add `pools`."""
    parser = options.add_parser(
        subparsers,
        "pools",
        "what may be sculpted, and its zones",
        "Show the pools: the VMs and other processes of workloads in a partition, what lies in each zone, and the last "
        "verdict.",
        "memsculpt pools",
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    options.show(options.client_of(parsed).get("/v1/pools"), _words, as_json=parsed.json)
    return 0


def _words(told: dict[str, Any]) -> str:
    if not told["pools"]:
        return "no pools: a pool is a process of a workload in a partition, and the configuration names none that runs"
    heads = ("POOL", *(zone.upper() for zone in ZONES), "HUGE", "MOVED", "VERDICT")
    rows = [
        (
            words.printable(one["pool"]),
            *(format_bytes(one["zones"][zone]) for zone in ZONES),
            format_bytes(one["huge_after_bytes"]),
            format_bytes(one["moved_bytes"]),
            one["verdict"],
        )
        for one in told["pools"]
    ]
    notes = [
        f"{words.printable(one['pool'])} ({one['vm']['backing']} memory) cannot {why}"
        for one in told["pools"]
        if one["vm"] is not None
        for why in one["vm"]["cannot"]
    ]
    return "\n".join([words.table(heads, rows, left=1, paint=words.paints()), *notes])
