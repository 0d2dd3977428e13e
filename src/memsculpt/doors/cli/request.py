# SPDX-License-Identifier: Apache-2.0
"""`memsculpt request WORKLOAD SIZE --within 5s`: say what a workload is about to need."""

import argparse
from typing import Any

from memsculpt.domain.units import parse_duration_s, parse_size_bytes
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers

REFUSED = "refused"
ANSWER_WITHIN_S = 35.0  # longer than the agent itself waits, so that its own complaint arrives


def add_command(subparsers: Subparsers) -> None:
    """Add `request`."""
    parser = options.add_parser(
        subparsers,
        "request",
        "say what a workload is about to need",
        "Ask for memory ahead of need. The answer is enough, resized, moved, created, or refused with the reason.",
        "memsculpt request system.slice/redis.service 512MiB --within 5s",
    )
    parser.add_argument("workload", metavar="WORKLOAD", help="its identity, as `status` shows it")
    parser.add_argument(
        "size",
        metavar="SIZE",
        type=options.checked(parse_size_bytes),
        help='how much more it will need, such as "512MiB"',
    )
    parser.add_argument(
        "--within", default="5s", metavar="TIME", type=options.checked(parse_duration_s), help="how soon (default: 5s)"
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print; 1 when it was refused."""
    body = {"workload": parsed.workload, "size": parsed.size, "within": parsed.within}
    grant = options.client_of(parsed).post("/v1/requests", body, timeout_s=ANSWER_WITHIN_S)
    options.show(grant, _words, as_json=parsed.json)
    return 1 if grant["answer"] == REFUSED else 0


def _words(grant: dict[str, Any]) -> str:
    return "\n".join(words.printable(line) for line in (grant["text"], *(one["text"] for one in grant["actions"])))
