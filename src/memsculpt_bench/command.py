# SPDX-License-Identifier: Apache-2.0
"""`memsculpt bench [NAME]`: joins the command line through the entry-point group `memsculpt.commands`."""

import argparse
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsculpt.doors.cli.command_line import Subparsers
from memsculpt_bench import contract
from memsculpt_bench.lab import LabUnavailable

OWN_PAGE = "memsculpt_bench.page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A bench: `run(*, rounds, quick, say, ...)` of its module returns the contract's object."""

    line: str
    module: str
    page: str = OWN_PAGE  # whose `page` draws that object
    options: tuple[str, ...] = ()  # of the command line, handed to `run` besides


BENCHES = {
    "isolation": Bench(
        line="a cache beside two analytic jobs under one limit: ways of managing memory",
        module="isolation_rounds",
        page="memsculpt_bench.isolation_report",
        options=("swap",),
    ),
    "sense": Bench(line="are touched pages found, and what does looking cost", module="sense"),
    "store": Bench(
        line="how many bytes a kept sample takes, what keeping costs, how fast history is read", module="store"
    ),
    "forecasting": Bench(
        line="what forecasting 1,000 workloads costs, and whether its quantiles come true", module="forecasting"
    ),
    "hotzone": Bench(
        line="what is hot is gathered in huge pages, what is sparse is not: throughput and memory", module="hotzone"
    ),
    "cold": Bench(line="how much of a program's memory can be taken before it notices", module="cold"),
    "phases": Bench(
        line="a program with working sets that take turns under a limit for one of them: six ways of bringing back",
        module="phase_rounds",
        page="memsculpt_bench.phase_report",
        options=("part", "merge", "first_round"),
    ),
    "build": Bench(
        line="a parallel build of a C project: how little memory will do before it takes longer",
        module="build_rounds",
        options=("keep", "stop_after"),
    ),
    "sharing": Bench(
        line="identical pages of real guests: what merging was to save and saved, and nothing across trust groups",
        module="sharing",
    ),
    "vm-pool": Bench(
        line="how much of an idle guest's memory leaves, on which backing, and whether it sees its bytes again",
        module="vm_pool",
    ),
    "vms": Bench(
        line="VMs whose days come one after the other, in less memory than their days need together: four ways",
        module="vms_rounds",
        options=("keep", "stop_after"),
    ),
    "planning": Bench(line="how long it takes to divide memory among 10,000 partitions", module="planning"),
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
    parser.add_argument(
        "--part",
        action="append",
        choices=("random", "nightly", "tight", "uniform"),
        help="phases: only this part, and then others named likewise",
    )
    parser.add_argument("--first-round", type=_count, default=1, help="phases: number of the first round (its seed)")
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=None, help="phases: run nothing, put these --json results together"
    )
    parser.add_argument("--html", type=Path, default=None, help="write a self-contained page with plots")
    parser.add_argument(
        "--keep", type=Path, default=None, help="build, vms: write each run to this file, or go on from it"
    )
    parser.add_argument(
        "--stop-after", type=_count, default=None, help="build, vms: begin no run after so many seconds"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the bench that was named; 0 when every figure holds, 3 when this machine cannot."""
    if args.name is None:
        for name, bench in BENCHES.items():
            sys.stdout.write(f"{name:<12} {bench.line}\n")
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
    bench = BENCHES[args.name]
    # Before the bench, which can take an hour: a page that cannot be drawn is told at once.
    html: Path | None = args.html
    page = importlib.import_module(bench.page).page if html is not None else None
    module = importlib.import_module(f"memsculpt_bench.{bench.module}")
    options = {name: getattr(args, name) for name in bench.options}
    result = module.run(rounds=rounds, quick=args.quick, say=_say, **options)
    if html is not None and page is not None:
        html.write_text(page(result), encoding="utf-8")
        _say(f"wrote {html}")
    return result


def _say(line: str) -> None:
    """Tell a person how the bench goes; stdout belongs to --json."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


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
