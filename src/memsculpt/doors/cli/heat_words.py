# SPDX-License-Identifier: Apache-2.0
"""What `heat` prints: the object for programs, a table for people, and the live picture on a terminal."""

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from memsculpt.domain.pages import PAGE_BYTES, Grain, Touches
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.profile import heat

if TYPE_CHECKING:
    from memsculpt.doors.cli.heat_recording import Frame, Recording

SHADES = " .:-=+*#%@"
COLOURS = (236, 17, 18, 54, 90, 126, 162, 196, 208, 226)  # of a terminal's 256, dark to bright
ROWS_SHOWN = 14


def as_json(recording: "Recording", block_bytes: int) -> dict[str, Any]:
    """Return the object of the contract, and more."""
    touches = recording.touches
    if touches is None:
        raise ValueError("nothing was recorded")
    addresses, touched, index = heat.blocks_of(touches, block_bytes)
    blocks: dict[int, list[list[int]]] = {}
    if touches.grain is Grain.PAGE:
        for address, count, row in zip(addresses.tolist(), touched.tolist(), index.tolist(), strict=True):
            blocks.setdefault(row, []).append([address, count])
    sums = _sums(touches)
    return {
        "pid": recording.pid,
        "interval_s": recording.interval_s,
        "source": recording.source,
        "grain": recording.grain,
        "block_bytes": block_bytes,
        "resident_pages": int(touches.present.sum()),
        "touched_pages": int(touches.touched.sum()),
        "wss_bytes": int(touches.touched.sum()) * PAGE_BYTES,
        "dirty_pages": int(touches.dirty.sum()),
        "swapped_pages": int(touches.swapped.sum()),
        "unknown_pages": int(touches.unknown.sum()),
        "huge_pages_bytes": int(touches.present[touches.is_huge].sum()) * PAGE_BYTES,
        "working_sets": _working_sets(recording),
        "modules": [
            {
                "name": words.text_of(one.name),
                "resident_pages": one.resident_pages,
                "touched_pages": one.touched_pages,
                "dirty_pages": one.dirty_pages,
                "swapped_pages": one.swapped_pages,
            }
            for one in heat.by_module(touches)
        ],
        "mappings": [
            {
                "start": one.start,
                "end": one.end,
                "name": words.text_of(one.name),
                "resident_pages": int(sums[0][row]),
                "touched_pages": int(sums[1][row]),
                "dirty_pages": int(sums[2][row]),
                "swapped_pages": int(sums[3][row]),
                "blocks": blocks.get(row, []),
            }
            for row, one in enumerate(touches.mappings)
            if sums[0][row] or sums[3][row]
        ],
        "cleared": {
            "method": recording.cleared.method,
            "duration_s": recording.cleared.duration_s,
            "longest_hold_s": recording.cleared.longest_hold_s,
        },
        "frames": len(recording.frames),
        "complete": touches.is_complete and not recording.ended,
        "notes": _notes(recording),
    }


def in_words(told: dict[str, Any]) -> str:
    """Return the same for people."""
    share = told["touched_pages"] / max(1, told["resident_pages"])
    lines = [
        (
            f"process {told['pid']}: {format_bytes(told['wss_bytes'])} touched of "
            f"{format_bytes(told['resident_pages'] * PAGE_BYTES)} resident ({words.percent(share)}) in "
            f"{format_duration_s(told['interval_s'])}, by {told['source']} ({told['grain']} by {told['grain']})"
        ),
    ]
    if told["working_sets"]:
        sets = (
            f"{format_bytes(one['bytes'])} in {format_duration_s(one['measured_s'])}" for one in told["working_sets"]
        )
        lines.append(f"working set: {', '.join(sets)}")
    rows = [
        (
            words.shortened(one["name"], 60),
            format_bytes(one["resident_pages"] * PAGE_BYTES),
            format_bytes(one["touched_pages"] * PAGE_BYTES),
            words.percent(one["touched_pages"] / max(1, one["resident_pages"])),
            format_bytes(one["dirty_pages"] * PAGE_BYTES),
            format_bytes(one["swapped_pages"] * PAGE_BYTES),
        )
        for one in told["modules"][:ROWS_SHOWN]
    ]
    heads = ("MODULE", "RESIDENT", "TOUCHED", "SHARE", "DIRTY", "SWAPPED")
    more = len(told["modules"]) - len(rows)
    lines += ["", words.table(heads, rows, paint=words.paints())]
    if more > 0:
        lines.append(f"… and {more} more (--json has them all)")
    notes = [f"note: {words.printable(note)}" for note in told["notes"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def live_picture() -> "Callable[[Recording, Frame], None]":
    """Return what redraws the picture in place at every frame."""
    drawn = 0
    paint = words.paints()

    def show(recording: "Recording", frame: "Frame") -> None:
        nonlocal drawn
        width = max(40, shutil.get_terminal_size().columns)
        lines = picture(frame, recording.latest, width, paint=paint) if recording.latest is not None else []
        back = f"\x1b[{drawn}A\x1b[J" if drawn else ""
        sys.stdout.write(back + "\n".join(lines) + "\n")
        sys.stdout.flush()
        drawn = len(lines)

    return show


def picture(frame: "Frame", touches: Touches, width: int, *, paint: bool) -> list[str]:
    """Return a line for each module, its blocks from low to high addresses: how much of each part was touched."""
    numbers = {one.name: number for number, one in enumerate(frame.modules[:ROWS_SHOWN])}
    rows = np.array(
        [numbers.get(heat.module_of(one.name, is_shared=one.is_shared), -1) for one in touches.mappings] or [-1]
    )[touches.mapping_index]
    name_width = min(28, max((len(words.printable(name)) for name in numbers), default=0))
    room = max(10, width - name_width - 26)
    touched = sum(one.touched_pages for one in frame.modules) * PAGE_BYTES
    lines = [f"after {format_duration_s(frame.at_s)}: {format_bytes(touched)} touched since the last look"]
    for one in frame.modules[:ROWS_SHOWN]:
        mine = np.flatnonzero(rows == numbers[one.name])
        part = np.minimum(np.arange(len(mine)) * room // max(1, len(mine)), room - 1)
        if len(mine) < room:
            part = np.arange(len(mine))
        present = np.bincount(part, weights=touches.present[mine], minlength=1)
        seen = np.bincount(part, weights=touches.touched[mine], minlength=1)
        cells = "".join(_cell(float(share), paint=paint) for share in seen / np.maximum(present, 1))
        counts = f"{format_bytes(one.touched_pages * PAGE_BYTES)}/{format_bytes(one.resident_pages * PAGE_BYTES)}"
        lines.append(f"{words.shortened(one.name, name_width):<{name_width}} {counts:>21} |{cells}{_end(paint=paint)}|")
    return lines


def _cell(share: float, *, paint: bool) -> str:
    step = min(len(SHADES) - 1, int(np.ceil(share * (len(SHADES) - 1))))
    return f"\x1b[48;5;{COLOURS[step]}m " if paint else SHADES[step]


def _end(*, paint: bool) -> str:
    return "\x1b[0m" if paint else ""


def _working_sets(recording: "Recording") -> list[dict[str, Any]]:
    state = recording.state
    return [
        {
            "window_s": one.window_s,
            "measured_s": one.measured_s,
            "bytes": one.touched_pages * PAGE_BYTES,
        }
        for one in (state.working_sets if state is not None else ())
        if one is not None
    ]


def _sums(touches: Touches) -> list[Any]:
    columns = (touches.present, touches.touched, touches.dirty, touches.swapped)
    count = len(touches.mappings)
    return [np.bincount(touches.mapping_index, weights=each, minlength=count).astype(np.int64) for each in columns]


def _notes(recording: "Recording") -> list[str]:
    notes = [f"{one.name} would be better: {one.problem} (fix: {one.fix})" for one in recording.better]
    if recording.cleared.note:
        notes.append(recording.cleared.note)
    if recording.ended:
        notes.append(f"{recording.ended} after {format_duration_s(recording.interval_s)}")
    if recording.touches is not None and not recording.touches.is_complete:
        notes.append("some page tables changed faster than they could be read")
    notes.append("dirty counts pages written since they came or were last written back, not only in this interval")
    return notes
