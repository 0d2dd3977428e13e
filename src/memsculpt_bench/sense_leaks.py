# SPDX-License-Identifier: Apache-2.0
"""bench sense, the part about leaks: is anything left behind after many looks and many processes."""

import gc
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.errors import Refused, Vanished
from memsculpt.host import sources
from memsculpt.host.protocol import PageReader, PageSource
from memsculpt_bench.contract import Figure, at_most
from memsculpt_bench.known_pages import built, toucher

MIB = 1 << 20
SCANS, CLEAR_EVERY, PROCESSES = 10_000, 10, 1_000
WARM_UP = 50
SIZE_PAGES = 4 * MIB // PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this process holds."""

    descriptors: int
    bpf_objects: int  # of the descriptors, those that are maps, programs and links
    resident_bytes: int


def measure(say: Callable[[str], None], *, quick: bool = False) -> dict[str, Any]:
    """Return what this process holds before and after, in a form for JSON."""
    scans, processes = (SCANS // 10, PROCESSES // 10) if quick else (SCANS, PROCESSES)
    at_first = _held()
    source = sources.open_source().source
    try:
        with built("toucher") as program, toucher(program, "private", SIZE_PAGES) as one:
            reader = source.open(sources.find_process(one.pid))
            over_scans = _over(scans, lambda number: _scan(reader, number))
            reader.close()
        over_processes = _over(processes, lambda _number: _look_at_one(source))
    finally:
        source.close()
    at_last = _held()
    told = {
        "scans": scans,
        "processes": processes,
        "over_scans": over_scans,
        "over_processes": over_processes,
        "at_the_end": _difference(at_first, at_last),
    }
    say(f"leaks: {told}")
    return told


def figures(told: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures that the issue asks for: nothing is left, and resident memory is flat."""
    spans = [told["over_scans"], told["over_processes"]]
    return {
        "leaked_descriptors": at_most(0.0, [max(one["descriptors"] for one in [*spans, told["at_the_end"]])]),
        "leaked_bpf_objects": at_most(0.0, [max(one["bpf_objects"] for one in [*spans, told["at_the_end"]])]),
        "leaked_resident_mib": at_most(1.0, [max(one["resident_bytes"] for one in spans) / MIB]),
    }


def _over(count: int, work: Callable[[int], None]) -> dict[str, int]:
    """Return what this process holds more of after so many times than it held after the first few."""
    for number in range(WARM_UP):
        work(number)
    before = _held()
    for number in range(count):
        work(number)
    return _difference(before, _held())


def _scan(reader: PageReader, number: int) -> None:
    if number % CLEAR_EVERY == 0:
        reader.clear()
    reader.read()


def _look_at_one(source: PageSource) -> None:
    """Look at a process that ends meanwhile."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        reader = source.open(sources.find_process(child.pid))
        child.kill()
        with suppress(Vanished, Refused):
            reader.read()
        reader.close()
    finally:
        child.kill()
        child.wait()


def _held() -> Held:
    gc.collect()
    objects = 0
    descriptors = os.listdir("/proc/self/fd")
    for number in descriptors:
        with suppress(OSError):  # the descriptor of the listing itself is closed by now
            told = Path("/proc/self/fdinfo", number).read_text(encoding="ascii")
            objects += any(word in told for word in ("map_id:", "prog_id:", "link_id:"))
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    return Held(descriptors=len(descriptors), bpf_objects=objects, resident_bytes=resident)


def _difference(before: Held, after: Held) -> dict[str, int]:
    return {
        "descriptors": after.descriptors - before.descriptors,
        "bpf_objects": after.bpf_objects - before.bpf_objects,
        "resident_bytes": after.resident_bytes - before.resident_bytes,
    }
