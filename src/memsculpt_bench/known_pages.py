# SPDX-License-Identifier: Apache-2.0
"""Programs whose touched pages are known, and how well a source of touched pages finds them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Touches
from memsculpt_bench.lab import LabUnavailable

SOURCES = Path(__file__).parent / "tenants"


@contextmanager
def built(name: str) -> Generator[Path]:
    """Compile a tenant; gone afterwards. Raises LabUnavailable where there is no compiler."""
    if shutil.which("cc") is None:
        raise LabUnavailable("the programs of this bench are written in C: apt install gcc")
    with tempfile.TemporaryDirectory(prefix="memsculpt-lab-") as folder:
        program = Path(folder) / name
        subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(SOURCES / f"{name}.c")], check=True)
        yield program


class Toucher:
    """A process with `pages` pages of memory, which touches those that it is told."""

    def __init__(self, program: Path, kind: str, pages: int, folder: Path, cpus: set[int] | None = None) -> None:
        self.pages = pages
        self._marks = folder / "marks"
        self._marks.write_bytes(bytes(pages))
        file = folder / "file"
        file.touch()
        # Safe here: there is no other thread that could hold a lock while we fork.
        enter = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
        self._process = subprocess.Popen(
            [str(program), kind, str(pages), str(self._marks), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,  # noqa: PLW1509
        )
        self.pid = self._process.pid
        self.address = int(self._answer())

    def touch(self, marked: Bool, how: str = "t") -> None:
        """Have the marked pages touched ("t"), written ("w"), or touched from now on until the end ("s")."""
        self._marks.write_bytes(marked.astype(np.uint8).tobytes())
        if self._process.stdin is None:
            raise ValueError("the program has no input")
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        self._answer()

    def end(self) -> None:
        """Kill it and wait for it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        if self._process.stdout is None:
            raise ValueError("the program has no output")
        line = self._process.stdout.readline()
        if not line:
            raise LabUnavailable("the program of known pages ended: not enough memory?")
        return line


@contextmanager
def toucher(program: Path, kind: str, pages: int, cpus: set[int] | None = None) -> Generator[Toucher]:
    """Start a Toucher, and end it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="memsculpt-lab-") as folder:
        one = Toucher(program, kind, pages, Path(folder), cpus)
        try:
            yield one
        finally:
            one.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How the pages that were found compare with those that were touched."""

    touched: int
    right: int
    wrong: int

    @property
    def recall(self) -> float:
        """Return the share of touched pages that was found."""
        return self.right / self.touched if self.touched else 1.0

    @property
    def precision(self) -> float:
        """Return the share of found pages that was touched."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0


def compare(touches: Touches, address: int, truth: Bool) -> Found:
    """Hold what was found in [address, address + pages) against the truth, page by page.

    Of a huge page the processor keeps one bit: where one page of it was touched, all of it was. That is part of the
    truth here, also where the kernel made a huge page of its own accord (large folios of a file).
    """
    found = pages_from(touches, address, len(truth))
    truth = truth.copy()
    for start, end in zip(touches.starts[touches.is_huge], touches.ends[touches.is_huge], strict=True):
        region = int(start) // REGION_BYTES * REGION_BYTES
        low, high = (region - address) // PAGE_BYTES, (region + REGION_BYTES - address) // PAGE_BYTES
        if low < len(truth) and high > 0 and start >= address and end <= address + len(truth) * PAGE_BYTES:
            truth[max(low, 0) : high] |= truth[max(low, 0) : high].any()
    return Found(touched=int(truth.sum()), right=int((found & truth).sum()), wrong=int((found & ~truth).sum()))


def pages_from(touches: Touches, address: int, pages: int) -> Bool:
    """Return which pages of a range were found touched, shape (pages,)."""
    if touches.touched_pages is None:
        raise ValueError(f"a source that knows {touches.grain.value}s does not tell pages")
    words: npt.NDArray[np.uint16] = touches.touched_pages.astype("<u2")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little").astype(np.bool_)
    at = (touches.starts[:, np.newaxis] - address) // PAGE_BYTES + np.arange(16)
    inside = bits & (at >= 0) & (at < pages)
    found = np.zeros(pages, np.bool_)
    found[at[inside]] = True
    return found
