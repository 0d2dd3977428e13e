# SPDX-License-Identifier: Apache-2.0
"""`memsculpt pool-stats POOL`: what sculpting a pool came to."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.errors import UsageError

ZONES_SHOWN = 8


def add_command(subparsers: Subparsers) -> None:
    """Add `pool-stats`."""
    parser = options.add_parser(
        subparsers,
        "pool-stats",
        "what sculpting a pool came to",
        "Show a pool's zones, what was moved, and faults, stalls and huge pages before and after the last sculpt.",
        "memsculpt pool-stats system.slice/redis.service --json",
    )
    parser.add_argument(
        "pool", metavar="POOL", help="its name, as `pools` shows it; of a VM also its name alone, or its UUID"
    )
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    pools = options.client_of(parsed).get("/v1/pools")["pools"]
    found = next((one for one in pools if parsed.pool in names_of(one)), None)
    if found is None:
        known = ", ".join(words.printable(one["pool"]) for one in pools) or "none"
        raise UsageError(
            place=f"pool {parsed.pool}",
            problem=f"there is none of this name; there are: {known}",
            fix="memsculpt pools",
        )
    options.show(found, in_words, as_json=parsed.json)
    return 0


def names_of(told: dict[str, Any]) -> set[str]:
    """Return what a pool may be called: of a VM also its name and its UUID."""
    vm = told["vm"]
    return {told["pool"]} | ({vm["name"], vm["id"]} if vm is not None else set())


def in_words(told: dict[str, Any]) -> str:
    """Return a pool's stats for people."""
    zones = ", ".join(f"{name} {format_bytes(size)}" for name, size in told["zones"].items())
    rows = [
        ("resident", format_bytes(told["resident_before_bytes"]), format_bytes(told["resident_after_bytes"])),
        ("in huge pages", format_bytes(told["huge_before_bytes"]), format_bytes(told["huge_after_bytes"])),
        ("longest run", format_bytes(told["longest_run_before_bytes"]), format_bytes(told["longest_run_after_bytes"])),
        ("major faults/s", _figure(told["faults_before"]), _figure(told["faults_after"])),
        ("stalled", _share(told["stall_before_ratio"]), _share(told["stall_after_ratio"])),
    ]
    moves = ("collapsed", "split", "paged_out", "brought_in", "undone")
    sums = ", ".join(f"{name.replace('_', ' ')} {format_bytes(told[f'{name}_bytes'])}" for name in moves)
    lines = [
        f"{words.printable(told['pool'])}: {told['verdict']}" + (f", {told['reason']}" if told["reason"] else ""),
        zones,
        "",
        words.table(("LAST SCULPT", "BEFORE", "AFTER"), rows, left=1, paint=words.paints()),
        "",
        f"in all: {sums}; {format_duration_s(told['cpu_s'])} of the agent's processor time",
    ]
    moved = told["to_slow_node_bytes"], told["from_slow_node_bytes"]
    if any(moved) or told["on_slow_node_bytes"]:
        to, back, there = (format_bytes(size) for size in (*moved, told["on_slow_node_bytes"]))
        lines.append(f"slow node: {there} lies there now; {to} went there, {back} came back")
    if told["vm"] is not None:
        lines[1:1] = [guest_in_words(told["vm"])]
    prefetch = told["prefetch"]
    if prefetch["precision"] is not None:
        lines.append(f"prefetch: recall {_share(prefetch['recall'])}, precision {_share(prefetch['precision'])}")
        if prefetch["timeliness"] is not None:
            lines[-1] += f", there in time {_share(prefetch['timeliness'])}"
    lines += [f"left: {format_bytes(size)} {cause}" for cause, size in told["problems"].items()]
    return "\n".join(lines)


def guest_in_words(vm: dict[str, Any]) -> str:
    """Return what a VM's pool is, and what cannot be done with it."""
    lines = [f"VM {words.printable(vm['name'])} ({words.printable(vm['id'])}), {vm['state']}, {vm['backing']} memory"]
    lines += [f"it cannot {why}" for why in vm["cannot"]]
    for zone in ("hot", "cold", "prefetch"):
        parts = [one for one in vm["zones"] if one["zone"] == zone]
        if parts:
            shown = ", ".join(f"{one['start']:#x}-{one['end']:#x}" for one in parts[:ZONES_SHOWN])
            more = f" and {len(parts) - ZONES_SHOWN} more" if len(parts) > ZONES_SHOWN else ""
            lines.append(f"{zone} for the guest: {shown}{more}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else words.percent(value)
