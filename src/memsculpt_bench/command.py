# SPDX-License-Identifier: Apache-2.0
"""`memsculpt bench [NAME]`: joins the command line through the entry-point group `memsculpt.commands`."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from memsculpt.doors.cli.command_line import Subparsers
from memsculpt_bench import contract
from memsculpt_bench.lab import LabUnavailable

BENCHES = {
    "isolation": "a cache beside two analytic jobs under one limit: five ways of managing memory",
    "sense": "are touched pages found, and what does looking cost",
    "store": "how many bytes a kept sample takes, what keeping costs, how fast history is read",
    "forecasting": "what forecasting 1,000 workloads costs, and whether its quantiles come true",
    "hotzone": "what is hot is gathered in huge pages, what is sparse is not: throughput and memory",
    "cold": "how much of a program's memory can be taken before it notices",
    "phases": "a program with working sets that take turns under a limit for one of them: six ways of bringing back",
    "vms": "VMs whose days come one after the other, in less memory than their days need together: four ways",
    "planning": "how long it takes to divide memory among 10,000 partitions",
}


def add_command(subparsers: Subparsers) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="side-by-side experiments, with a report",
        description="Run an experiment with its arms interleaved, and report ratios and their range.",
        epilog="example: memsculpt bench isolation --rounds 5 --html isolation.html",
    )
    parser.add_argument("name", nargs="?", choices=sorted(BENCHES), help="without a name: list the benches")
    parser.add_argument("--rounds", type=_count, default=None, help="rounds of each arm (default 5, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="a short form for a demonstration")
    parser.add_argument("--swap", choices=("zram", "disk", "both"), default="both", help="isolation: what swap is on")
    parser.add_argument("--html", type=Path, default=None, help="write a self-contained page with plots")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the bench that was named; 0 when every figure holds, 3 when this machine cannot."""
    if args.name is None:
        for name, line in BENCHES.items():
            sys.stdout.write(f"{name:<12} {line}\n")
        return 0
    rounds = args.rounds or (1 if args.quick else 5)
    try:
        result = _run(args, rounds)
    except LabUnavailable as error:
        sys.stderr.write(f"bench {args.name}: {error}\n")
        return 3
    if args.json:
        json.dump(result, sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(result)
    return 0 if contract.all_hold(result) else 1


def _run(args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    if args.name == "planning":
        planning = importlib.import_module("memsculpt_bench.planning")
        return planning.run(rounds=rounds, quick=args.quick)
    if args.name == "store":
        store = importlib.import_module("memsculpt_bench.store")
        return store.run(rounds=rounds, quick=args.quick, say=store.say_to_stderr)
    if args.name == "forecasting":
        forecasting = importlib.import_module("memsculpt_bench.forecasting")
        return forecasting.run(rounds=rounds, quick=args.quick, say=forecasting.say_to_stderr)
    if args.name in {"hotzone", "cold"}:
        zones = importlib.import_module(f"memsculpt_bench.{args.name}")
        return zones.run(rounds=rounds, quick=args.quick, say=zones.say_to_stderr)
    if args.name == "vms":
        machines = importlib.import_module("memsculpt_bench.vms_rounds")
        return machines.run(rounds=rounds, quick=args.quick, say=machines.say_to_stderr)
    if args.name == "sense":
        sense = importlib.import_module("memsculpt_bench.sense")
        return sense.run(rounds=rounds, quick=args.quick, say=sense.say_to_stderr)
    if args.name == "phases":
        phases = importlib.import_module("memsculpt_bench.phase_rounds")
        result = phases.run(rounds=rounds, quick=args.quick, say=phases.say_to_stderr)
        if args.html is not None:
            report = importlib.import_module("memsculpt_bench.phase_report")
            args.html.write_text(report.page(result), encoding="utf-8")
            sys.stderr.write(f"wrote {args.html}\n")
        return result
    rounds_module = importlib.import_module("memsculpt_bench.isolation_rounds")
    swaps = ("zram", "disk") if args.swap == "both" else (args.swap,)
    swaps = swaps[:1] if args.quick else swaps
    result = rounds_module.run(rounds=rounds, quick=args.quick, swaps=swaps, say=rounds_module.say_to_stderr)
    if args.html is not None:
        report = importlib.import_module("memsculpt_bench.report")
        args.html.write_text(report.page(result), encoding="utf-8")
        sys.stderr.write(f"wrote {args.html}\n")
    return result


def _print(result: dict[str, Any]) -> None:
    for line in result.get("verdict", ()):
        sys.stdout.write(f"{line}\n")
    for name, figure in result["figures"].items():
        mark = "holds" if figure["holds"] else "MISSED"
        value = "not measured" if figure["value"] is None else f"{figure['value']:.3g}"
        span = "" if figure["low"] is None else f" ({figure['low']:.3g} to {figure['high']:.3g})"
        sys.stdout.write(f"{mark:<7} {name}: {value}{span}, bar {figure['bar']}\n")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: rounds are a whole number from 1")
    return int(text)
