# SPDX-License-Identifier: Apache-2.0
"""Watch one process's pages for a while: clear, wait, read; for a picture, again and again.

Without a picture the bits are cleared once, so the result is exact. With one they are cleared at every frame: what is
touched between the read and the clear of a frame (a millisecond or so per GiB) shows in neither.
"""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memsculpt.domain.pages import Touches
from memsculpt.domain.workload import Instance
from memsculpt.doors.cli.heat_recording import Frame, Recording
from memsculpt.errors import MemsculptError, Refused, Unavailable, Vanished
from memsculpt.host import drilldown, sources
from memsculpt.host.protocol import PageReader
from memsculpt.profile import heat

# Without frames it is looked this often, so that something is known when the process ends; never for more than this
# share of the time.
LOOK_S = 1.0
LOOKING_RATIO = 0.02
# In between, bits are noted so that nobody else who clears them (DAMON, reclaim) hides what was touched.
FIRST_LOOK_S = 0.002
SHORT_LOOK_S = 0.02
# Frames, which make the program set its bits anew, come no more often than this share of the time pays for.
FRAMES_RATIO = 0.1


def record(
    pid: int,
    *,
    for_s: float,
    every_s: float | None,
    wanted: str | None = None,
    on_frame: Callable[[Recording, Frame], None] | None = None,
) -> Recording:
    """Return what the process touched in `for_s` seconds from now on; with `every_s` also frame by frame.

    Raises Refused where there is no such process, it ended before anything was seen or has no memory; Unavailable.
    """
    try:
        process = sources.find_process(pid)
    except Vanished as error:
        raise drilldown.no_such_process(pid) from error
    choice, reader = sources.open_reader(process, wanted)
    try:
        try:
            begin_s = time.monotonic()
            cleared = reader.clear()
            recording = Recording(
                pid=pid, source=reader.source, grain=reader.grain.value, cleared=cleared, better=choice.passed
            )
            state = heat.begin(time.monotonic())
            begin_s = state.cleared_at_s
            next_s = begin_s
            pace_s = LOOK_S if every_s is None else every_s
            try:
                while next_s < begin_s + for_s:
                    next_s = min(next_s + pace_s, begin_s + for_s)
                    if next_s > begin_s + for_s - 0.3 * pace_s:
                        next_s = begin_s + for_s  # the last one is no stump
                    if _wait(reader, process, next_s):
                        recording.ended = "the process ended"
                        break
                    looked_s = time.monotonic()
                    state = _look(reader, recording, state, begin_s, is_frame=every_s is not None)
                    if on_frame is not None and recording.frames:
                        on_frame(recording, recording.frames[-1])
                    spent_s = time.monotonic() - looked_s
                    pace_s = max(pace_s, spent_s / (LOOKING_RATIO if every_s is None else FRAMES_RATIO))
                    next_s = max(next_s, time.monotonic())
            except KeyboardInterrupt:
                recording.ended = "interrupted"
                if recording.touches is None or every_s is None:
                    _look(reader, recording, state, begin_s, is_frame=False)
            except Vanished:
                recording.ended = "the process ended"
        finally:
            reader.close()
    finally:
        choice.source.close()
    if recording.touches is None:
        raise drilldown.no_such_process(pid)
    return recording


def _wait(reader: PageReader, process: Instance, until_s: float) -> bool:
    """Wait, and look now and then, soon at first; True when the process has ended."""
    pause_s = FIRST_LOOK_S
    while (left_s := until_s - time.monotonic()) > 0.0:
        if sources.wait_for_end(process, min(left_s, pause_s)):
            return True
        if left_s > pause_s:
            looked_s = time.monotonic()
            reader.look()
            least_s = max(SHORT_LOOK_S, (time.monotonic() - looked_s) / LOOKING_RATIO)
            pause_s = max(least_s, min(pause_s * 2.0, LOOK_S / 10.0))
    return False


def _look(
    reader: PageReader, recording: Recording, state: heat.HeatState, begin_s: float, *, is_frame: bool
) -> heat.HeatState:
    touches = reader.read()
    now_s = time.monotonic()
    if not touches.is_complete and not len(touches.starts):
        raise Vanished(place=f"process {recording.pid}")
    recording.interval_s = now_s - begin_s
    if is_frame:
        reader.clear()
        recording.latest = touches
        recording.frames.append(_frame(recording, touches, now_s - begin_s))
        recording.touches = heat.merged(recording.touches, touches)
    else:
        recording.touches = touches if not recording.frames else heat.merged(recording.touches, touches)
    recording.state = heat.update(state, touches, now_s, cleared=is_frame)
    return recording.state


def _frame(recording: Recording, touches: Touches, at_s: float) -> Frame:
    before = recording.frames[-1].starts if recording.frames else None
    is_same = before is not None and np.array_equal(before, touches.starts)
    return Frame(
        at_s=at_s,
        starts=before if is_same and before is not None else touches.starts,
        touched=touches.touched.astype(np.uint16),
        modules=heat.by_module(touches),
    )


def check_picture(path: Path) -> None:
    """Find out before the wait whether a picture can be drawn and kept. Raises Unavailable, Refused."""
    if importlib.util.find_spec("matplotlib") is None:
        raise Unavailable(
            place="--png", problem="needs matplotlib, which is not installed", fix="pip install 'memsculpt[plots]'"
        )
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise Refused(
            place=str(path), problem=f"cannot be written: {error.strerror}", fix="name a file in a folder of yours"
        ) from error


def draw(recording: Recording, path: Path) -> None:
    """Write the picture. Raises MemsculptError where it cannot be kept."""
    from memsculpt.doors.cli import heat_picture  # loads the plotting stack

    try:
        path.write_bytes(heat_picture.png(recording))
    except OSError as error:
        raise MemsculptError(
            place=str(path), problem=f"cannot be written: {error.strerror}", fix="make room, or name another file"
        ) from error
