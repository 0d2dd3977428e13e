# SPDX-License-Identifier: Apache-2.0
"""`memsculpt partitions`: what each is promised, has, uses, and will need."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers

SHOWN_LEVEL = 0.99


def add_command(subparsers: Subparsers) -> None:
    """Add `partitions`."""
    parser = options.add_parser(
        subparsers,
        "partitions",
        "promised, used and forecast memory of each partition",
        "Show each partition's guarantee, size, ceiling and use, the forecast of its peak, and who is in it.",
        "memsculpt partitions --json | jq '.partitions[] | {name, size_bytes}'",
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    options.show(options.client_of(parsed).get("/v1/partitions"), _words, as_json=parsed.json)
    return 0


def partition_table(partitions: list[dict[str, Any]]) -> str:
    """Return the partitions for people."""
    heads = ("PARTITION", "KIND", "GUARANTEE", "USED", "SIZE", "CEILING", "LIMIT", "FORECAST", "MAY FALL SHORT")
    rows = [
        (
            words.printable(one["name"]),
            one["kind"],
            format_bytes(one["guarantee_bytes"]),
            format_bytes(one["used_bytes"]),
            format_bytes(one["size_bytes"]),
            format_bytes(one["ceiling_bytes"]),
            "none" if one["limit_bytes"] is None else format_bytes(one["limit_bytes"]),
            shown_quantile(one["forecast"]),
            "–" if one["shortfall_ratio"] is None else words.percent(one["shortfall_ratio"]),
        )
        for one in partitions
    ]
    return words.table(heads, rows, left=2, paint=words.paints())


def shown_quantile(forecast: dict[str, Any]) -> str:
    """Return the forecast of the peak at the level that people are shown, such as "1.2 GiB in 3.0 s"."""
    levels, quantiles = forecast["levels"], forecast["quantiles_bytes"]
    if not levels:
        return "–"
    row = levels.index(SHOWN_LEVEL) if SHOWN_LEVEL in levels else len(levels) - 1
    return f"{format_bytes(quantiles[row])} in {format_duration_s(forecast['horizon_s'])}"


def _words(told: dict[str, Any]) -> str:
    partitions = told["partitions"]
    if not partitions:
        return "no partitions: the configuration names none, so every workload is only observed"
    lines = [partition_table(partitions), ""]
    lines.append(f"FORECAST is the peak that will hold with {words.level_name(SHOWN_LEVEL)}.")
    for one in partitions:
        members = ", ".join(words.printable(name) for name in one["workloads"]) or "nobody matches now"
        lines.append(f"{words.printable(one['name'])}: {members}")
    return "\n".join(lines)
