# SPDX-License-Identifier: Apache-2.0
"""`memsculpt backtest FILE.parquet...`: how good the forecaster is on recorded series, beside simpler ones."""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memsculpt.domain.units import format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.growth import check_writable
from memsculpt.doors.cli.heat import duration
from memsculpt.errors import Refused, UsageError

if TYPE_CHECKING:
    from memsculpt.forecast.longterm import Gate
    from memsculpt.forecast.measures import Scores, Windows
    from memsculpt.forecast.recorded import RecordedSeries

OURS = "memsculpt"
KNOWN_LEAST = 600  # points of a series; one that is shorter, or hardly moves, is not scored
DEFAULT_ORIGINS = 10
DEFAULT_INTERVAL_S = 300.0
JOBS = 2


def add_command(subparsers: Subparsers) -> None:
    """Add `backtest`."""
    parser = options.add_parser(
        subparsers,
        "backtest",
        "score the forecaster on recorded series, beside simpler forecasters",
        "Forecast from moments in the last part of each series and compare with what came.\n"
        "A table has the columns series_id, step and a value; other numbers are taken as measured beside it.",
        "memsculpt backtest vms.parquet --capacity mem_cap_mib --origins 20 --html vms.html",
    )
    parser.add_argument("files", metavar="FILE.parquet", nargs="+")
    parser.add_argument(
        "--value", metavar="COLUMN", help="what is forecast (default: the first that looks like memory)"
    )
    parser.add_argument(
        "--capacity", metavar="COLUMN|NUMBER", help="the most that a value can be (default: the most seen)"
    )
    parser.add_argument(
        "--interval", metavar="300s", type=duration, default=DEFAULT_INTERVAL_S, help="between two steps"
    )
    parser.add_argument("--origins", metavar="N", type=_count, default=DEFAULT_ORIGINS, help="moments of each series")
    parser.add_argument("--series", metavar="N", type=_count, help="only so many series, evenly chosen")
    parser.add_argument("--gate", metavar="FILE", type=Path, help="use a gate that `memsculpt train` wrote")
    parser.add_argument("--alone", action="store_true", help="without the simpler forecasters")
    parser.add_argument("--jobs", metavar="N", type=_count, default=JOBS, help=f"processes (default {JOBS})")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Score and print."""
    from memsculpt.forecast import measures, recorded

    if parsed.html is not None:
        check_writable(parsed.html)
    gate = read_gate(parsed.gate) if parsed.gate is not None else None
    told: dict[str, Any] = {"files": [], "gate": str(parsed.gate) if parsed.gate is not None else None}
    for path in parsed.files:
        table = recorded.read_table(path, parsed.value, parsed.capacity)
        series = _chosen(tuple(recorded.usable(table.series, KNOWN_LEAST)), parsed.series)
        if not series:
            raise Refused(
                place=path,
                problem=f"none of its {len(table.series)} series has {KNOWN_LEAST} known values that move",
                fix="record longer",
            )
        found = _windows(parsed, series, gate)
        if not found:
            raise Refused(
                place=path, problem="has no moment with 36 known values after it", fix="record with fewer gaps"
            )
        told["files"].append(
            {
                "file": path,
                "value": table.value,
                "covariates": list(table.covariates),
                "series": len(series),
                "left_out": len(table.series) - len(series),
                "interval_s": parsed.interval,
                "methods": {name: as_json(measures.score(windows)) for name, windows in found.items()},
                "frontier": {name: _frontier(windows) for name, windows in found.items()},
            }
        )
    if parsed.html is not None:
        from memsculpt.doors.cli import backtest_page

        parsed.html.write_text(backtest_page.page(told), encoding="utf-8")
    options.show(told, _in_words, as_json=parsed.json)
    return 0


def read_gate(path: Path) -> "Gate":
    """Read a trained gate. Raises UsageError, CorruptRecord, Refused."""
    from memsculpt.forecast.longterm import gate_from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            place=str(path), problem=f"cannot be read: {error.strerror}", fix="name a file that `memsculpt train` wrote"
        ) from error
    return gate_from_bytes(content, str(path))


def as_json(scores: "Scores") -> dict[str, Any]:
    """Return the measures of one method for programs; shares are ratios."""
    return {
        "windows": scores.windows_count,
        "series": scores.series_count,
        "ms_per_forecast": scores.duration_ms,
        "mase": {str(reach): value for reach, value in scores.mase.items()},
        "pinball": {str(reach): list(values) for reach, values in scores.pinball.items()},
        "coverage": {str(reach): list(values) for reach, values in scores.coverage.items()},
        "violated_ratio": scores.violated_ratio,
        "slack_ratio": scores.slack_ratio,
        "provisioned_ratio": scores.provisioned_ratio,
        "at_risk": [
            {
                "risk": one.risk,
                "stretch": one.stretch,
                "provisioned_ratio": one.provisioned_ratio,
                "slack_ratio": one.slack_ratio,
            }
            for one in scores.prices
        ],
    }


def _chosen(series: "Sequence[RecordedSeries]", most: int | None) -> "Sequence[RecordedSeries]":
    if most is None or most >= len(series):
        return series
    return [series[number * len(series) // most] for number in range(most)]


def _windows(
    parsed: argparse.Namespace, series: "Sequence[RecordedSeries]", gate: "Gate | None"
) -> "dict[str, Windows]":
    """Roll over all series, in several processes."""
    from memsculpt.forecast import measures

    parts: dict[str, list[Windows]] = {}
    show = _progress(len(series)) if sys.stderr.isatty() else None
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    content = gate.to_bytes() if gate is not None else b""
    with concurrent.futures.ProcessPoolExecutor(
        min(parsed.jobs, len(series)), context, _begin, (content, parsed.alone)
    ) as pool:
        jobs = [pool.submit(_roll, number, one, parsed.interval, parsed.origins) for number, one in enumerate(series)]
        for number, job in enumerate(jobs):
            for name, windows in job.result().items():
                parts.setdefault(name, []).append(windows)
            if show is not None:
                show(number + 1)
    return {name: measures.joined(windows) for name, windows in parts.items()}


_forecasters: dict[str, Any] = {}


def _begin(gate: bytes, alone: bool) -> None:  # noqa: FBT001  what a pool hands to its processes
    from memsculpt.forecast import backtest, baselines
    from memsculpt.forecast.longterm import gate_from_bytes

    backtest.use(gate_from_bytes(gate) if gate else None)
    _forecasters[OURS] = backtest.forecast
    if not alone:
        _forecasters.update(baselines.BASELINES)


def _roll(number: int, one: "RecordedSeries", interval_s: float, count: int) -> "dict[str, Windows]":
    from memsculpt.forecast.rolling import roll

    return roll(number, one, _forecasters, interval_s=interval_s, count=count, clock=time.perf_counter)


def _frontier(windows: "Windows") -> list[list[float]]:
    """Return [risk, provisioned ratio] pairs for a plot."""
    from memsculpt.forecast import measures

    return [[risk, measures.price(windows, risk).provisioned_ratio] for risk in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)]


def _in_words(told: dict[str, Any]) -> str:
    lines: list[str] = []
    for one in told["files"]:
        methods: dict[str, Any] = one["methods"]
        first = next(iter(methods.values()))
        lines += [
            f"{one['file']}: {one['value']}, {first['windows']} windows of {one['series']} series, a step is "
            f"{format_duration_s(one['interval_s'])}"
            + (f" ({one['left_out']} series too short or constant)" if one["left_out"] else ""),
            "",
            words.table(
                (
                    "FORECASTER",
                    "MASE 1",
                    "12",
                    "36",
                    "PINBALL .5",
                    ".9",
                    ".99",
                    "VIOLATED",
                    "GIVEN AT 1 %",
                    "AT 5 %",
                    "MS",
                ),
                [_row(name, scores) for name, scores in methods.items()],
                paint=words.paints(),
            ),
            "",
        ]
    lines.append(
        "MASE, pinball: of 12 steps; in mean changes from step to step. Violated: as forecast, at a risk of 1 %."
    )
    lines.append(
        "Given at a risk: share of capacity when all forecasts are stretched so that so many windows are violated."
    )
    return "\n".join(lines)


def _row(name: str, scores: dict[str, Any]) -> tuple[str, ...]:
    mase, pinball = scores["mase"], scores["pinball"]["12"]
    return (
        name,
        *(f"{mase[reach]:.3f}" for reach in ("1", "12", "36")),
        *(f"{value:.3f}" for value in pinball),
        words.percent(scores["violated_ratio"], 2),
        *(words.percent(at["provisioned_ratio"]) for at in scores["at_risk"]),
        f"{scores['ms_per_forecast']:.1f}",
    )


def _progress(whole: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        sys.stderr.write(f"\r{done} of {whole} series" + ("\n" if done == whole else ""))
        sys.stderr.flush()

    return show


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise UsageError(place="number", problem=f"{text!r} is no whole number from 1 on", fix="say for example 20")
    return int(text)
