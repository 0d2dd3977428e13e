# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how each command prints: one object for programs, or words for people."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from memsculpt.doors import places
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.client import Client


def add_parser(subparsers: Subparsers, name: str, line: str, description: str, example: str) -> argparse.ArgumentParser:
    """Add a command with its help, an example and `--json`."""
    parser = subparsers.add_parser(
        name,
        help=line,
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Add what says which agent is asked."""
    parser.add_argument("--socket", metavar="PATH", help="the agent's socket (default: the configuration's)")
    parser.add_argument("--config", metavar="FILE", help=f"default: {places.SYSTEM_CONFIG}, where there is one")


def client_of(parsed: argparse.Namespace) -> Client:
    """Return the client of the agent that the options name."""
    return Client(places.socket_to_ask(parsed.socket, parsed.config))


def checked(parse: Callable[[str], float]) -> Callable[[str], str]:
    """Return a check of one argument, so that a typing error needs no agent to be found; the text goes on as it is."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


def show(content: dict[str, Any], words: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    """Print the object itself, or its words."""
    print(json.dumps(content) if as_json else words(content))
