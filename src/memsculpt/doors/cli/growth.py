# SPDX-License-Identifier: Apache-2.0
"""`memsculpt growth PID`: which functions and modules make a process grow. Needs no running agent.

With `--workload NAME` a running agent is asked, which samples critical workloads all the time (growth_of_workload.py).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.cli import growth_of_workload, options
from memsculpt.doors.cli.command_line import Subparsers
from memsculpt.doors.cli.heat import duration, process_number
from memsculpt.errors import Refused, UsageError

if TYPE_CHECKING:
    from memsculpt.domain.growth import GrowthRecording, GrowthStack

DEFAULT_FOR_S = 10.0
DEFAULT_TOP = 15


def add_command(subparsers: Subparsers) -> None:
    """Add `growth`."""
    parser = options.add_parser(
        subparsers,
        "growth",
        "which functions and modules make a process grow",
        "Record page faults with their stacks and say which functions new memory came from, and what of it is still\n"
        "held. Ctrl-C ends the recording and prints what was found so far.\n"
        "With --workload, a running agent is asked what it has sampled of a critical workload in the last minutes.",
        "sudo memsculpt growth 4711 --for 30s --svg growth.svg",
    )
    parser.add_argument("pid", metavar="PID", type=process_number, nargs="?")
    parser.add_argument("--workload", metavar="NAME", help="as `status` names it; asks a running agent")
    parser.add_argument("--for", dest="for_s", metavar="30s", type=duration, help="how long (default 10s)")
    parser.add_argument("--every", metavar="N", type=_count, help="record each Nth fault only (default 1)")
    parser.add_argument("--top", metavar="N", type=_count, default=DEFAULT_TOP, help="so many functions in the table")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a flame graph")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with flame graph and table")
    parser.add_argument("--speedscope", metavar="FILE", type=Path, help="write JSON for speedscope.app")
    options.add_agent(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Record and print."""
    _check_asked(parsed)
    for path in (parsed.svg, parsed.html, parsed.speedscope):
        if path is not None:
            check_writable(path)
    if parsed.workload is not None:
        told = growth_of_workload.ask(parsed)
        draw(parsed, growth_of_workload.stacks_of(told), growth_of_workload.title_of(told), told["notes"])
        options.show(told, lambda one: growth_of_workload.in_words(one, parsed.top), as_json=parsed.json)
        return 0
    from memsculpt.host import drilldown

    recording = drilldown.record_growth(
        parsed.pid,
        for_s=parsed.for_s or DEFAULT_FOR_S,
        every=parsed.every or 1,
        on_progress=_progress() if sys.stderr.isatty() else None,
    )
    told = as_json(recording)
    title = f"growth of process {parsed.pid} in {format_duration_s(recording.interval_s)}"
    draw(parsed, recording.stacks, title, told["notes"])
    options.show(told, lambda one: _in_words(one, parsed.top), as_json=parsed.json)
    return 0


def draw(parsed: argparse.Namespace, stacks: "Sequence[GrowthStack]", title: str, notes: Sequence[str]) -> None:
    """Write the drawings that were asked for."""
    from memsculpt.profile import growth

    drawings: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (parsed.svg, lambda: growth.flame_svg(stacks, title)),
        (parsed.html, lambda: growth.page(stacks, title, notes)),
        (parsed.speedscope, lambda: growth.speedscope(stacks, title)),
    )
    for path, drawn in drawings:
        if path is not None:
            path.write_text(drawn(), encoding="utf-8", errors="backslashreplace")


def _check_asked(parsed: argparse.Namespace) -> None:
    """Raise UsageError where it is not clear who is asked about what."""
    fix = "say `memsculpt growth 4711`, or `memsculpt growth --workload NAME`"
    if (parsed.pid is None) == (parsed.workload is None):
        problem = "neither a process nor a workload is named" if parsed.pid is None else "both are named"
        raise UsageError(place="growth", problem=problem, fix=fix)
    if parsed.workload is not None and (parsed.for_s is not None or parsed.every is not None):
        raise UsageError(
            place="growth --workload",
            problem="how long and how finely is the agent's to say: --for and --every are for a PID",
            fix="leave them out",
        )


def check_writable(path: Path) -> None:
    """Find out before the wait whether a file can be written. Raises Refused."""
    try:
        was_there = path.exists()
        with path.open("ab"):
            pass
        if not was_there:
            path.unlink()  # nothing is left of it where the process is refused
    except OSError as error:
        raise Refused(
            place=str(path), problem=f"cannot be written: {error.strerror}", fix="name a file in a folder of yours"
        ) from error


def as_json(recording: "GrowthRecording") -> dict[str, Any]:
    """Return the object for programs."""
    from memsculpt.profile import growth

    stacks = recording.stacks
    own = [one for one in stacks if one.kind != "file"]
    after = recording.after
    grown_bytes = None if after is None else after.own_bytes - recording.before.own_bytes
    return {
        "pid": recording.pid,
        "interval_s": recording.interval_s,
        "source": recording.source,
        "sampled_every": recording.sampled_every,
        "faults": recording.seen_count,
        "recorded": recording.recorded_count,
        "dropped": recording.dropped_count,
        "without_stack": recording.stackless_count,
        "grown_bytes": grown_bytes,
        "touched_bytes": sum(one.touched_bytes for one in own),
        "held_bytes": sum(one.held_bytes for one in own),
        "file_bytes": sum(one.touched_bytes for one in stacks if one.kind == "file"),
        "before": _memory(recording.before),
        "after": None if after is None else _memory(after),
        "functions": [
            {
                "function": words.text_of(one.function),
                "module": words.text_of(one.module),
                "self_bytes": one.self_bytes,
                "total_bytes": one.total_bytes,
                "held_bytes": one.held_bytes,
                "held_total_bytes": one.held_total_bytes,
            }
            for one in growth.by_function(own)
        ],
        "modules": [
            {"module": words.text_of(name), "touched_bytes": touched, "held_bytes": held}
            for name, (touched, held) in growth.by_module(own).items()
        ],
        "stacks": [
            {
                "frames": [words.text_of(function) for function, _ in one.frames],
                "kind": one.kind,
                "touched_bytes": one.touched_bytes,
                "held_bytes": one.held_bytes,
                "faults": one.fault_count,
            }
            for one in stacks
        ],
        "complete": not recording.ended,
        "notes": _notes(recording),
    }


def _memory(memory: Any) -> dict[str, int]:
    return {
        "anon_bytes": memory.anon_bytes,
        "file_bytes": memory.file_bytes,
        "shmem_bytes": memory.shmem_bytes,
        "swapped_bytes": memory.swapped_bytes,
    }


def _in_words(told: dict[str, Any], top: int) -> str:
    grown = "" if told["grown_bytes"] is None else f"; it grew by {_signed(told['grown_bytes'])} in all"
    lines = [
        (
            f"process {told['pid']}: {format_bytes(told['touched_bytes'])} came by page faults in "
            f"{format_duration_s(told['interval_s'])}, {format_bytes(told['held_bytes'])} of it is still held{grown}"
        ),
    ]
    whole = max(1, told["touched_bytes"])
    rows = [
        (
            words.shortened(one["function"], 56),
            words.shortened(one["module"], 36),
            format_bytes(one["total_bytes"]),
            words.percent(one["total_bytes"] / whole),
            format_bytes(one["self_bytes"]),
            format_bytes(one["held_total_bytes"]),
        )
        for one in told["functions"][:top]
    ]
    heads = ("FUNCTION", "MODULE", "TOTAL", "SHARE", "SELF", "HELD")
    lines += ["", words.table(heads, rows, left=2, paint=words.paints())]
    if len(told["functions"]) > top:
        lines.append(f"… and {len(told['functions']) - top} more (--top, or --json)")
    modules = ", ".join(
        f"{words.shortened(one['module'], 40)} {format_bytes(one['touched_bytes'])}" for one in told["modules"][:6]
    )
    if modules:
        lines += ["", f"by the module of the innermost function: {modules}"]
    return "\n".join([*lines, *[f"note: {words.printable(note)}" for note in told["notes"]]])


def _signed(size_bytes: int) -> str:
    return f"-{format_bytes(-size_bytes)}" if size_bytes < 0 else format_bytes(size_bytes)


def _notes(recording: "GrowthRecording") -> list[str]:
    notes = list(recording.notes)
    if recording.ended:
        notes.append(f"{recording.ended} after {format_duration_s(recording.interval_s)}")
    if recording.dropped_count:
        notes.append(f"{recording.dropped_count} faults found no room and are missing: try --every 16")
    if recording.sampled_every > 1:
        notes.append(
            f"every {recording.sampled_every}th fault was recorded at the end: figures are scaled up from those"
        )
    if recording.stackless_count:
        notes.append(f"{recording.stackless_count} faults have no stack")
    return notes


def _progress() -> Callable[[float, int], None]:
    def show(elapsed_s: float, seen: int) -> None:
        sys.stderr.write(f"\r{format_duration_s(elapsed_s)}: {seen} page faults ")
        sys.stderr.flush()

    return show


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise UsageError(place="number", problem=f"{text!r} is no whole number from 1 on", fix="say for example 16")
    return int(text)
