# SPDX-License-Identifier: Apache-2.0
"""`memsculpt status`: everything at a glance, of a running agent."""

import argparse
from typing import Any

from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.partitions import partition_table, shown_quantile
from memsculpt.doors.cli.vms import vm_table

FEW_WORKLOADS = 12
FEW_ACTIONS = 5


def add_command(subparsers: Subparsers) -> None:
    """Add `status`."""
    parser = options.add_parser(
        subparsers,
        "status",
        "what a running agent sees, forecasts and did",
        "Show the agent's mode, its own cost, partitions, workloads, how its forecasts did and its last actions.",
        "memsculpt status --json | jq .agent.cpu_share",
    )
    options.add_agent(parser)
    parser.add_argument("--all", action="store_true", help="every workload, not only the largest")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Ask and print."""
    status = options.client_of(parsed).get("/v1/status")
    options.show(status, lambda told: status_words(told, every=parsed.all), as_json=parsed.json)
    return 0


def status_words(status: dict[str, Any], *, every: bool = False) -> str:
    """Return the status for people."""
    blocks = [_head(status)]
    if status["partitions"]:
        blocks.append(partition_table(status["partitions"]))
    if status["workloads"]:
        blocks.append(_workload_table(status["workloads"], len(status["workloads"]) if every else FEW_WORKLOADS))
    if status["vms"]:
        blocks.append(vm_table(status))
    blocks.append("\n".join([_score_line(status["scores"]), *_action_lines(status["actions"])]))
    troubles = [f"note: {words.printable(note)}" for note in status["notes"]]
    if status["last_problem"]:
        troubles.append(f"last problem: {words.printable(status['last_problem'])}")
    if status["backoff"]:
        back = status["backoff"]
        troubles.append(
            f"holding still for {format_duration_s(back['remaining_s'])}: {words.printable(back['reason'])}"
        )
    return "\n\n".join([*blocks, "\n".join(troubles)] if troubles else blocks)


def _head(status: dict[str, Any]) -> str:
    agent, memory = status["agent"], status["memory"]
    ticks = f"{agent['tick_count']} ticks, {agent['late_count']} late, {agent['failed_count']} failed"
    lines = [
        (
            f"memsculpt {status['version']} on the {status['host']} host: {status['mode']}, "
            f"up {format_duration_s(status['uptime_s'])}, {ticks}"
        ),
        (
            f"agent   {words.percent(agent['cpu_share'])} of one processor, {format_bytes(agent['resident_bytes'])} "
            f"resident (peak {format_bytes(agent['peak_resident_bytes'])}), pid {agent['pid']}"
        ),
    ]
    if memory:
        swap_used = memory["swap_total_bytes"] - memory["swap_free_bytes"]
        lines.append(
            f"memory  {format_bytes(memory['total_bytes'])}, {format_bytes(memory['available_bytes'])} available; "
            f"swap {format_bytes(memory['swap_total_bytes'])}, {format_bytes(swap_used)} used; "
            f"partitions may share {format_bytes(status['capacity_bytes'])}"
        )
    if status["overcommit"]:
        lines.append(overcommit_words(status["overcommit"]))
    return "\n".join(lines)


def overcommit_words(overcommit: dict[str, Any]) -> str:
    """Return how far VMs are overcommitted, and the risk, as a line."""
    return (
        f"VMs     {overcommit['vm_count']} may reach {format_bytes(overcommit['reach_bytes'])}, "
        f"{overcommit['ratio']:.2f} times the {format_bytes(overcommit['capacity_bytes'])} there are for them; chance "
        f"that they need more within {format_duration_s(overcommit['horizon_s'])}: "
        f"{words.percent(overcommit['apart_ratio'])}, and {words.percent(overcommit['together_ratio'])} if they peak "
        "together"
    )


def _workload_table(workloads: list[dict[str, Any]], most: int) -> str:
    largest = sorted(workloads, key=lambda one: -one["resident_bytes"])[:most]
    heads = ("WORKLOAD", "PARTITION", "RESIDENT", "NEEDED", "COLD", "RECLAIMABLE", "SWAPPED", "STALL", "FORECAST")
    rows = [
        (
            words.shortened(one["id"], 44),
            words.printable(one["partition"] or ""),
            format_bytes(one["resident_bytes"]),
            format_bytes(one["needed_bytes"]),
            format_bytes(one["cold_bytes"]),
            format_bytes(one["reclaimable_bytes"]),
            format_bytes(one["swapped_bytes"]),
            words.percent(one["some_stall_ratio"]),
            shown_quantile(one["forecast"]),
        )
        for one in largest
    ]
    shown = words.table(heads, rows, left=2, paint=words.paints())
    left_out = len(workloads) - len(largest)
    return f"{shown}\n… and {left_out} more (--all shows them)" if left_out else shown


def _score_line(scores: dict[str, Any] | None) -> str:
    if scores is None or not scores["scored_count"]:
        return "forecasts: none has come to its horizon yet"
    held = ", ".join(
        f"{words.level_name(level)} held {words.percent(covered)}"
        for level, covered in zip(scores["levels"], scores["covered_ratio"], strict=True)
    )
    pinball = sum(scores["pinball_bytes"]) / len(scores["pinball_bytes"])
    return (
        f"forecasts over {format_duration_s(scores['horizon_s'])}: {scores['scored_count']} scored; {held}; "
        f"pinball loss {format_bytes(pinball)}"
    )


def _action_lines(actions: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(actions["counts"].items())) or "none"
    lines = [f"actions: {counts}; {actions['plan_count']} plans had something to do"]
    for one in actions["recent"][:FEW_ACTIONS]:
        ago = format_duration_s(one["age_s"])
        lines.append(f"  {one['id']:>6}  {ago:>8} ago  {one['status']:<10}  {words.printable(one['action']['text'])}")
    return lines
