# SPDX-License-Identifier: Apache-2.0
"""`memsculpt sculpt POOL hot|cold|prefetch`: have the agent rearrange a pool's memory."""

import argparse
from typing import Any

from memsculpt.domain.units import parse_duration_s, parse_size_bytes
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.pool_stats import in_words

DEFAULT_SIZE, DEFAULT_WINDOW = "256MiB", "30s"
ANSWER_WITHIN_S = 65.0  # longer than the agent itself waits, so that its own complaint arrives


def add_command(subparsers: Subparsers) -> None:
    """Add `sculpt`."""
    parser = options.add_parser(
        subparsers,
        "sculpt",
        "gather, send out or bring back a pool's memory",
        "Gather what is hot in huge pages, send out what is cold, or bring back what is due. What is not known to pay "
        "is left; the answer says why. An agent that only observes says what it would do.",
        "memsculpt sculpt system.slice/redis.service cold --size 256MiB",
    )
    parser.add_argument(
        "pool", metavar="POOL", help="its name, as `pools` shows it; of a VM also its name alone, or its UUID"
    )
    parser.add_argument("zone", choices=("hot", "cold", "prefetch"), help="what for")
    parser.add_argument(
        "--size",
        metavar="SIZE",
        type=options.checked(parse_size_bytes),
        help=f"of hot and cold, at most so much (default: {DEFAULT_SIZE})",
    )
    parser.add_argument(
        "--window",
        metavar="TIME",
        type=options.checked(parse_duration_s),
        help=f"of prefetch, what is due within so long (default: {DEFAULT_WINDOW})",
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print; 1 when it was refused."""
    body: dict[str, Any] = {"pool": parsed.pool, "zone": parsed.zone}
    if parsed.zone == "prefetch" or parsed.window is not None:
        body["window"] = parsed.window or DEFAULT_WINDOW
    if parsed.zone != "prefetch" or parsed.size is not None:
        body["size"] = parsed.size or DEFAULT_SIZE
    stats = options.client_of(parsed).post("/v1/sculpts", body, timeout_s=ANSWER_WITHIN_S)
    options.show(stats, in_words, as_json=parsed.json)
    return 1 if stats["verdict"] == "refused" else 0
