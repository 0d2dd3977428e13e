# SPDX-License-Identifier: Apache-2.0
"""Programs whose allocations are known, function by function (tenants/grower.c), and a recording of one at its work."""

import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from memsculpt.domain.growth import GrowthRecording
from memsculpt.host import drilldown
from memsculpt_bench.known_pages import built
from memsculpt_bench.lab import LabUnavailable

MIB = 1 << 20
# What each function of grower.c holds after one round of work; `freed` had 8 MiB in between.
HELD_BYTES = {"by_memset": 32 * MIB, "by_loop": 16 * MIB, "moved": 8 * MIB, "huge": 16 * MIB, "small": 12 * MIB}
FREED_BYTES = 8 * MIB

PYTHON = (
    "import sys\nprint('ready', flush=True)\nkept = []\n"
    "for line in sys.stdin:\n    kept.append(bytearray(32 << 20))\n"
    "    kept.append([float(n) for n in range(500_000)])\n    print('done', flush=True)\n"
)
RECORD_MOST_S = 60.0


class Worker:
    """A program that says a line when it is ready, and then does its work once for each line."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._wait_for_line()

    def work(self) -> None:
        """Have it work once, and wait until it has."""
        if self._process.stdin is None:
            raise ValueError("the program has no input")
        self._process.stdin.write("x\n")
        self._process.stdin.flush()
        self._wait_for_line()

    def end(self) -> None:
        """Kill it and wait for it."""
        self._process.kill()
        self._process.communicate()

    def _wait_for_line(self) -> None:
        if self._process.stdout is None or not self._process.stdout.readline():
            raise LabUnavailable("a program of known growth ended: not enough memory?")


@contextmanager
def worker(*command: str) -> Generator[Worker]:
    """Start a Worker, and end it whatever happens."""
    one = Worker(command)
    try:
        yield one
    finally:
        one.end()


@contextmanager
def grower() -> Generator[Worker]:
    """Compile and start grower.c. Raises LabUnavailable."""
    with built("grower") as program, worker(str(program)) as one:
        yield one


def recorded(one: Worker, every: int = 1) -> GrowthRecording:
    """Record while the program works once. Raises MemsculptError."""
    begun = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        begun.wait()
        try:
            one.work()
        except LabUnavailable as failure:  # raised again where the recording has ended
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = drilldown.record_growth(
            one.pid,
            for_s=RECORD_MOST_S,
            every=every,
            on_progress=lambda _elapsed_s, _seen: begun.set(),
            until=lambda: not thread.is_alive(),
        )
    finally:
        begun.set()
        thread.join()
    if failures:
        raise failures[0]
    return found


def errors_by_function(recording: GrowthRecording) -> dict[str, float]:
    """Return, by function of grower.c, by how much of what it holds it was told wrong."""
    from memsculpt.profile.growth import by_function

    told = {one.function: one for one in by_function(one for one in recording.stacks if one.kind != "file")}
    return {
        name: abs((told[name].held_total_bytes if name in told else 0) - size_bytes) / size_bytes
        for name, size_bytes in HELD_BYTES.items()
    }
