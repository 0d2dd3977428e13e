# SPDX-License-Identifier: Apache-2.0
"""The PNG of `heat`: address by time with heat as colour, and touched memory by module over time.

Only mapped memory has a place on the axis of addresses: holes between mappings are left out, and marked.
"""

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.profile import heat

mpl.use("agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from memsculpt.doors.cli.heat_recording import Recording

BINS = 600
MODULES_SHOWN = 8
MIB = 1 << 20


def png(recording: "Recording") -> bytes:
    """Return the picture as PNG."""
    pyplot: Any = plt  # its types are only partly told
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(12, 9), height_ratios=(3, 1), sharex=True, constrained_layout=True
    )
    try:
        places, owners, edges = _axis(recording)
        columns = np.array([_column(frame.starts, frame.touched, places) for frame in recording.frames]).T
        times = [0.0, *(frame.at_s for frame in recording.frames)]
        rows = np.linspace(0.0, len(places) * 65536 / MIB, columns.shape[0] + 1)
        mesh = above.pcolormesh(times, rows, columns, cmap="inferno", vmin=0.0, vmax=1.0, shading="flat")
        figure.colorbar(mesh, ax=above, label="share of pages touched", pad=0.01)
        for edge in edges:
            above.axhline(edge * 65536 / MIB, color="#7fb7ff", linewidth=0.6, alpha=0.7)
        _label_owners(above, owners, len(places))
        above.set_ylabel("memory in use, low to high addresses [MiB]")
        touched = heat_total(recording)
        above.set_title(
            f"process {recording.pid}: {format_bytes(touched)} touched in {format_duration_s(recording.interval_s)} "
            f"(source {recording.source}); lines: borders of modules",
            loc="left",
        )
        _modules(below, recording, times)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        return content.getvalue()
    finally:
        pyplot.close(figure)


def heat_total(recording: "Recording") -> int:
    """Return the bytes touched in the whole time."""
    return 0 if recording.touches is None else int(recording.touches.touched.sum()) * PAGE_BYTES


def _axis(recording: "Recording") -> tuple[Int64, list[tuple[int, str]], list[int]]:
    """Return every block that was ever there, ascending, with where a new module begins and its name."""
    places: Int64 = np.unique(np.concatenate([frame.starts for frame in recording.frames]))
    touches = recording.latest
    if touches is None:
        raise ValueError("no frame was recorded")
    names = [heat.module_of(one.name, is_shared=one.is_shared) for one in touches.mappings]
    row = np.minimum(np.searchsorted(touches.starts, places), max(len(touches.starts) - 1, 0))
    owners: list[tuple[int, str]] = []
    for number, mapping in enumerate(_ints(touches.mapping_index[row])):
        if not owners or owners[-1][1] != names[mapping]:
            owners.append((number, names[mapping]))
    return places, owners, [number for number, _ in owners[1:]]


def _ints(values: Int64) -> list[int]:
    return values.tolist()


def _column(starts: Int64, touched: npt.NDArray[np.uint16], places: Int64) -> npt.NDArray[np.float64]:
    """Return the mean heat of each of BINS stretches of the axis."""
    at = np.searchsorted(places, starts)
    bins = min(BINS, len(places))
    part = at * bins // len(places)
    room = np.bincount(np.arange(len(places)) * bins // len(places), minlength=bins) * 16.0
    return np.minimum(1.0, np.bincount(part, weights=touched, minlength=bins) / np.maximum(room, 1.0))


def _label_owners(axes: Any, owners: list[tuple[int, str]], count: int) -> None:
    """Name the modules that are large enough to be read beside the picture."""
    for (begin, name), after in zip(owners, [*(number for number, _ in owners[1:]), count], strict=True):
        if after - begin > count / 30:
            axes.annotate(
                words.shortened(name, 28),
                (0.005, (begin + after) / 2 * 65536 / MIB),
                xycoords=("axes fraction", "data"),
                color="#cfe6ff",
                fontsize=8,
                va="center",
            )


def _modules(axes: Any, recording: "Recording", times: list[float]) -> None:
    totals: dict[str, int] = {}
    for frame in recording.frames:
        for one in frame.modules:
            totals[one.name] = totals.get(one.name, 0) + one.touched_pages
    largest = sorted(totals, key=lambda name: -totals[name])[:MODULES_SHOWN]
    heights = [
        [
            next((one.touched_pages for one in frame.modules if one.name == name), 0) * PAGE_BYTES / MIB
            for frame in recording.frames
        ]
        for name in largest
    ]
    axes.stackplot(
        times,
        *([height[0], *height] for height in heights),
        labels=[words.shortened(name, 40) for name in largest],
        step="pre" if len(times) > 2 else None,
    )
    axes.set_xlabel("time [s]")
    axes.set_ylabel("touched per look [MiB]")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, fontsize=8, frameon=False)
