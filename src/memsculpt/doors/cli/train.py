# SPDX-License-Identifier: Apache-2.0
"""`memsculpt train`: a gate for the long-term forecaster, and models for single workloads, fitted in workers."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from memsculpt.domain.units import format_bytes
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.heat import duration
from memsculpt.errors import Refused, UsageError

DEFAULT_INTERVAL_S = 300.0
MODELS_MOST = 100
TIMEOUT_S = 4 * 3600.0
MEMORY_BYTES = 16 << 30  # of address space; 100,000 moments take some 3 GiB


def add_command(subparsers: Subparsers) -> None:
    """Add `train`."""
    parser = options.add_parser(
        subparsers,
        "train",
        "learn from recorded series how the long-term forecaster weighs its candidates; fit models to workloads",
        "With --out a gate from the first file, and some of the others. Needs memsculpt[parquet].\n"
        "Takes some minutes for a hundred series, in a process of its own at the lowest priority.\n"
        "With --models or --store ARIMA and exponential smoothing for each series of the files, or each workload of\n"
        "the profile store, where that beats our own forecast. Needs memsculpt[fit]; some 5 s each.",
        "memsculpt train vms.parquet --capacity mem_cap_mib --out vms.gate",
    )
    parser.add_argument("files", metavar="FILE.parquet", nargs="*")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the gate is written")
    parser.add_argument("--models", metavar="FILE", type=Path, help="where models of the series are written, as JSON")
    parser.add_argument(
        "--store", action="store_true", help="fit models to the profile store's workloads, and keep them there"
    )
    parser.add_argument(
        "--most",
        metavar="N",
        type=int,
        default=MODELS_MOST,
        help=f"models at most, of those that use most (default: {MODELS_MOST})",
    )
    parser.add_argument("--state", metavar="DIR", help="the state folder (default: the configuration's)")
    parser.add_argument("--config", metavar="FILE", help="the configuration that names it")
    parser.add_argument(
        "--capacity", metavar="COLUMN|NUMBER", help="the most that a value can be (default: the most seen)"
    )
    parser.add_argument(
        "--interval", metavar="300s", type=duration, default=DEFAULT_INTERVAL_S, help="between two steps"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Train what was asked for; what a missing extra keeps from being done is said, and the rest is done."""
    if not (parsed.out or parsed.models or parsed.store):
        raise UsageError(place="train", problem="nothing to train is named", fix="say --out, --models or --store")
    if bool(parsed.files) != bool(parsed.out or parsed.models):
        raise UsageError(
            place="train",
            problem="files and what is made of them go together",
            fix="memsculpt train FILE.parquet --out FILE, or memsculpt train --store",
        )
    if parsed.most < 1:
        raise UsageError(place=f"--most {parsed.most}", problem="is no number of models", fix="write 1 or more")
    from memsculpt.doors.cli import train_models
    from memsculpt.forecast.longterm import gate_from_bytes

    told: dict[str, Any] = {}
    gate = None
    if parsed.out:
        content = _train_gate(parsed)
        gate = gate_from_bytes(content)
        told |= {
            "out": str(parsed.out),
            "bytes": len(content),
            "networks": len(gate.networks),
            "covariates": list(gate.covariates),
            "stretch": gate.stretch.tolist(),
        }
    wants_models = bool(parsed.models or parsed.store)
    lacks = train_models.missing() if wants_models else None
    if lacks is not None:
        told["missing"] = lacks
    else:
        if parsed.models:
            told["fitted"] = train_models.of_tables(parsed, gate)
        if parsed.store:
            told["fitted_in_store"] = train_models.of_store(parsed)
    options.show(told, _in_words, as_json=parsed.json)
    return 3 if lacks is not None else 0


def _train_gate(parsed: argparse.Namespace) -> bytes:
    """Train, and write the gate whole or not at all."""
    from memsculpt import workers
    from memsculpt.forecast import fitting

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
        beside.write_bytes(content)
        os.replace(beside, parsed.out)
    finally:
        beside.unlink(missing_ok=True)
    return content


def _in_words(told: dict[str, Any]) -> str:
    from memsculpt.doors.cli import train_models

    parts: list[str] = []
    if "out" in told:
        parts.append(
            f"wrote {told['out']}: {told['networks']} networks, {format_bytes(told['bytes'])}\n"
            f"covariates: {', '.join(told['covariates']) or 'none'}\n"
            f"try it: memsculpt backtest FILE.parquet --gate {told['out']}"
        )
    parts.extend(train_models.in_words(told[name]) for name in ("fitted", "fitted_in_store") if name in told)
    if "missing" in told:
        parts.append(f"no models were fitted: {told['missing']['what']}\n  fix: {told['missing']['fix']}")
    return "\n".join(parts)
