# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest, as `python3.11 -m memsculpt_bench.guests.inside NAME KIND PAGES PATTERN TOUCHING_S ROUNDS`.

A program touches known pages again and again, while a source of touched pages looks at it; one JSON object says how
well they were found. Of a source that knows stretches of addresses, a stretch counts as found whole.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Bool
from memsculpt.domain.pages import PAGE_BYTES, Touches
from memsculpt.errors import Unavailable
from memsculpt.host import sources
from memsculpt.host.protocol import PageReader
from memsculpt_bench.known_pages import Toucher, compare, toucher

TOUCHER = "/tmp/toucher"  # noqa: S108  the guest's own
ROUND_S = 3.0
TICKS_PER_S = 100


def pattern_of(name: str, pages: int) -> Bool:
    """Return which pages are touched: "block" (one stretch), "blocks" (four), "strided" or "random"."""
    marked = np.zeros(pages, np.bool_)
    if name == "block":
        marked[pages // 4 : pages // 2] = True
    elif name == "blocks":
        for number in range(4):
            begin = pages * (4 * number + 1) // 16
            marked[begin : begin + pages // 16] = True
    elif name == "strided":
        marked[::3] = True
    elif name == "random":
        marked = np.random.default_rng(5).random(pages) < 0.3
    else:
        raise ValueError(f"there is no pattern {name}")
    return marked


def found_in(touches: Touches, address: int, pages: int) -> Bool:
    """Return which pages of a range lie in rows that were found touched, shape (pages,)."""
    found = np.zeros(pages, np.bool_)
    rows = np.flatnonzero((touches.touched > 0) & (touches.ends > address))
    for start, end in zip(touches.starts[rows].tolist(), touches.ends[rows].tolist(), strict=True):
        found[max(0, (start - address) // PAGE_BYTES) : max(0, (end - address) // PAGE_BYTES)] = True
    return found


def measure(name: str, kind: str, pages: int, pattern: str, touching_s: float, rounds: int) -> dict[str, Any]:
    """Return, by round, how the touched pages were found by the source of this name, and what that took.

    In a round of ROUND_S the program touches its pages again and again for `touching_s`, and then rests.
    """
    marked = pattern_of(pattern, pages)
    told: dict[str, Any] = {"recall": [], "precision": [], "cpu_ms": [], "kernel_ratio": [], "read_ms": []}
    try:
        source = sources.open_source(name).source
    except Unavailable as error:
        return {"unavailable": f"{error.place}: {error.problem}"}
    try:
        with toucher(Path(TOUCHER), kind, pages) as one:
            reader = source.open(sources.find_process(one.pid))
            try:
                reader.clear()
                for _ in range(rounds):
                    _round(reader, one, marked, touching_s, told)
            finally:
                reader.close()
    finally:
        source.close()
    return told


def _round(reader: PageReader, one: Toucher, marked: Bool, touching_s: float, told: dict[str, Any]) -> None:
    cpu_s, kernel_s = time.process_time(), _kdamonds_s()
    reader.clear()
    cpu_s = time.process_time() - cpu_s
    begin_s = time.monotonic()
    while time.monotonic() < begin_s + touching_s:
        one.touch(marked)
    time.sleep(max(0.0, begin_s + ROUND_S - time.monotonic()))
    read_s, read_cpu_s = time.perf_counter(), time.process_time()
    touches = reader.read()
    told["read_ms"].append((time.perf_counter() - read_s) * 1e3)
    told["cpu_ms"].append((cpu_s + time.process_time() - read_cpu_s) * 1e3)
    told["kernel_ratio"].append((_kdamonds_s() - kernel_s) / (time.monotonic() - begin_s))
    if touches.touched_pages is not None:
        found = compare(touches, one.address, marked)
        told["recall"].append(found.recall)
        told["precision"].append(found.precision)
    else:
        named = found_in(touches, one.address, len(marked))
        told["recall"].append(float((named & marked).sum() / marked.sum()))
        told["precision"].append(float((named & marked).sum() / max(1, named.sum())))


def _kdamonds_s() -> float:
    """Return the processor time of DAMON's threads."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:  # ended meanwhile
            continue
        if "(kdamond" in head:
            ticks += sum(int(word) for word in rest.split()[11:13])
    return ticks / TICKS_PER_S


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(measure(words[0], words[1], int(words[2]), words[3], float(words[4]), int(words[5]))))
