# SPDX-License-Identifier: Apache-2.0
"""`memsculpt train FILE.parquet...`: learn a gate for the long-term forecaster from recorded series, in a worker."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from memsculpt.domain.units import format_bytes
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.heat import duration
from memsculpt.errors import Refused

DEFAULT_INTERVAL_S = 300.0
TIMEOUT_S = 4 * 3600.0
MEMORY_BYTES = 16 << 30  # of address space; 100,000 moments take some 3 GiB


def add_command(subparsers: Subparsers) -> None:
    """Add `train`."""
    parser = options.add_parser(
        subparsers,
        "train",
        "learn from recorded series how the long-term forecaster weighs its candidates",
        "Train on the first file; of the others a part is learnt from, too. Needs memsculpt[parquet].\n"
        "Takes some minutes for a hundred series, in a process of its own at the lowest priority.",
        "memsculpt train vms.parquet --capacity mem_cap_mib --out vms.gate",
    )
    parser.add_argument("files", metavar="FILE.parquet", nargs="+")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="where the gate is written")
    parser.add_argument(
        "--capacity", metavar="COLUMN|NUMBER", help="the most that a value can be (default: the most seen)"
    )
    parser.add_argument(
        "--interval", metavar="300s", type=duration, default=DEFAULT_INTERVAL_S, help="between two steps"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Train, and write the gate whole or not at all."""
    from memsculpt import workers
    from memsculpt.forecast import fitting
    from memsculpt.forecast.longterm import gate_from_bytes

    beside = parsed.out.with_name(f".{parsed.out.name}.new")
    try:
        beside.write_bytes(b"")  # found out before the wait
    except OSError as error:
        raise Refused(
            place=str(parsed.out),
            problem=f"cannot be written: {error.strerror}",
            fix="name a file in a folder of yours",
        ) from error
    try:
        sources = [
            fitting.Source(path=path, interval_s=parsed.interval, capacity=parsed.capacity) for path in parsed.files
        ]
        if sys.stderr.isatty():
            sys.stderr.write("training: this takes some minutes\n")
        content = workers.run(
            workers.Bounds(timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES),
            fitting.fit_to_bytes,
            sources[0],
            sources[1:],
        )
        gate = gate_from_bytes(content)
        beside.write_bytes(content)
        os.replace(beside, parsed.out)
    finally:
        beside.unlink(missing_ok=True)
    told: dict[str, Any] = {
        "out": str(parsed.out),
        "bytes": len(content),
        "networks": len(gate.networks),
        "covariates": list(gate.covariates),
        "stretch": gate.stretch.tolist(),
    }
    options.show(told, _in_words, as_json=parsed.json)
    return 0


def _in_words(told: dict[str, Any]) -> str:
    return (
        f"wrote {told['out']}: {told['networks']} networks, {format_bytes(told['bytes'])}\n"
        f"covariates: {', '.join(told['covariates']) or 'none'}\n"
        f"try it: memsculpt backtest FILE.parquet --gate {told['out']}"
    )
