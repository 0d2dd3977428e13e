# SPDX-License-Identifier: Apache-2.0
"""An arm of bench sense in a guest: DAMON, the page walker and smaps on one kernel, on programs whose pages are known.

A guest, because DAMON belongs to whoever set it up, and on many machines somebody did. Its processor is emulated, some
ten times slower than the machine's: times are to be compared with one another and with nothing else, shares with all.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from memsculpt_bench import known_pages
from memsculpt_bench.guests import debian, image, inside, lab
from memsculpt_bench.guests.guest import Guest
from memsculpt_bench.lab import LabUnavailable

SERIES = "6.12"
# And for how many intervals each looks at one program: DAMON finds its stretches in the first.
ARMS = {"bpf": 1, "damon": 3, "smaps": 1}
MEMORY_BYTES = 1 << 30
PAGES = (128 << 20) // 4096
INSIDE_TIMEOUT_S = 120.0
# What is touched, and for how much of an interval of 3 s: all the time, or at its beginning only.
PATTERNS = (("block", 2.9), ("blocks", 2.9), ("random", 2.9), ("blocks", 0.7))


def measure(
    rounds: int, say: Callable[[str], None], patterns: Sequence[tuple[str, float]] = PATTERNS, pages: int = PAGES
) -> dict[str, Any]:
    """Return, by arm and pattern, raw figures of every round. Raises LabUnavailable where there can be no guest.

    `recall` is the share of the touched bytes that lie in what the source names, `precision` the share of what it names
    that was touched, each of the last interval; `first_recall` and `first_precision` are of the first. `cpu_ms` is
    our processor time for a clear and a read, `kernel_ratio` what the kernel's thread took of a processor, `read_ms`
    how long a read took.
    """
    possible, reason = lab.probe()
    if not possible:
        raise LabUnavailable(reason)
    told: dict[str, Any] = {name: {} for name in ARMS}
    with tempfile.TemporaryDirectory(prefix="memsculpt-lab-") as folder:
        try:
            guest = lab.guest(Path(folder), init=image.INIT_PLAIN, series=SERIES, memory_bytes=MEMORY_BYTES)
        except debian.Unavailable as error:
            raise LabUnavailable(str(error)) from error
        with guest:
            guest.install(known_pages.SOURCES / "toucher.c", inside.TOUCHER)
            told["kernel"] = guest.check("uname -r")
            for number in range(rounds):
                for pattern, touching_s in patterns:
                    for name in ARMS if number % 2 == 0 else reversed(ARMS):
                        found = _intervals(guest, name, pages, pattern, touching_s)
                        _add(told[name].setdefault(f"{pattern}_{touching_s:g}s", {}), found)
    for name in ARMS:
        for pattern, one in told[name].items():
            say(
                f"guest {told['kernel']}, {name}, {pattern}: recall {median(one['recall']):.3f}, "
                f"precision {median(one['precision']):.3f}, {median(one['cpu_ms']):.0f} ms of ours an interval, "
                f"{100 * median(one['kernel_ratio']):.1f} % of a processor in the kernel"
            )
    return told


def _intervals(guest: Guest, name: str, pages: int, pattern: str, touching_s: float) -> dict[str, list[float]]:
    output = guest.check(
        f"python3.11 -m {inside.__name__} {name} private {pages} {pattern} {touching_s} {ARMS[name]}",
        timeout_s=INSIDE_TIMEOUT_S,
    )
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    if "unavailable" in found:
        raise LabUnavailable(f"in the guest: {found['unavailable']}")
    return found


def _add(to: dict[str, list[float]], found: dict[str, list[float]]) -> None:
    for key, values in found.items():
        to.setdefault(key, []).append(values[-1])
    for key in ("recall", "precision"):
        to.setdefault(f"first_{key}", []).append(found[key][0])
