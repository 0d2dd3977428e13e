# SPDX-License-Identifier: Apache-2.0
"""Page faults with stacks (bpf/faults.py), page tables (bpf/pagewalk.py) and symbols (symbols.py) -> growth by stack.

A fault is growth when its page was not there before: what was present or swapped comes back or is written to. Pages
that were unmapped and come again are new; pages that were moved (mremap, as realloc does) stay with who brought them. A
fault that brought a huge page counts for 512, which the page tables tell, looked at every half second. What of it is
still there at the end is held.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.growth import GrowthRecording, GrowthStack, MemoryNow
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, REGION_PAGES, Mapping, PageBits
from memsculpt.errors import MemsculptError, Unavailable, Vanished
from memsculpt.host.bpf.faults import MOVED, MOVING, UNMAPPED, FaultReader
from memsculpt.host.bpf.pagewalk import AttachedWalker, PageWalker
from memsculpt.host.linux import procfs
from memsculpt.host.linux.code_places import SHARED_NAMES
from memsculpt.host.linux.fault_stacks import NO_COPY, FaultStacks
from memsculpt.host.linux.opened import OpenedProcess, find_instance, wait_for_end
from memsculpt.host.linux.symbols import Symbols

DRAIN_S = 0.05
MOVED_MOST = 1 << 51  # results of mremap above are errors, as page numbers
SURVEY_S = 0.5
# More are not kept: from here on only every second, fourth, ... fault is recorded, with its weight.
FAULTS_MOST = 2_000_000
TOLD_RATIO = 0.01  # of the bytes, from which on doubts are told
FULL_RATIO = 0.5  # of the ring at a drain
SLIM = np.dtype(
    [("address", "<u8"), ("size", "<u8"), ("stack", "<i4"), ("thread", "<u4"), ("words", "<i8"), ("unwound", "<i8")]
)


class GrowthRecorder:
    """One recording of one process; a context manager, so that everything leaves the kernel."""

    def __init__(self, pid: int, every: int = 1) -> None:
        """Open the process and load the programs. Raises Vanished, Refused, Unavailable."""
        self._every = every
        self._process = find_instance(pid)
        self._opened = OpenedProcess(self._process)
        self._symbols = Symbols(pid)
        self._fault_stacks = FaultStacks(self._symbols)
        self._faults: FaultReader | None = None
        self._walker: PageWalker | None = None
        self._walk: AttachedWalker | None = None
        self._mappings: tuple[Mapping, ...] = ()
        self._kept: list[npt.NDArray[np.void]] = []
        self._weights: list[tuple[int, int]] = []  # (how many records, what each stands for)
        self._huge: set[int] = set()
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._faults = FaultReader()
            try:
                self._walker = PageWalker()
                self._walk = self._walker.attach(self._process.pid)
            except Unavailable as error:
                self._notes.append(
                    f"without page tables ({error.problem}): huge pages count as one page, nothing is held"
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload the programs and release the process."""
        if self._walk is not None:
            self._walk.close()
        for one in (self._walker, self._faults):
            if one is not None:
                one.close()
        self._walk = self._walker = self._faults = None
        self._symbols.close()
        self._opened.close()

    def record(
        self,
        for_s: float,
        on_progress: Callable[[float, int], None] | None = None,
        until: Callable[[], bool] | None = None,
    ) -> GrowthRecording:
        """Record for so long, or until the process ends, `until` says so, or Ctrl-C; return what was seen.

        Raises Unavailable.
        """
        faults = self._faults
        if faults is None:
            raise ValueError("the recorder is closed")
        before_bits = self._survey()
        before = self._memory() or MemoryNow()
        begin_s = time.monotonic()
        surveyed_s = begin_s
        ended = ""
        problem = faults.watch(self._process.pid, self._every)
        if problem:
            self._notes.append(f"what goes away is not told ({problem}): a page counts once, however often it comes")
        try:
            while (left_s := begin_s + for_s - time.monotonic()) > 0.0:
                if wait_for_end(self._process, min(DRAIN_S, left_s)):
                    ended = "the process ended"
                    break
                self._drain(faults)
                if until is not None and until():
                    break
                if time.monotonic() - surveyed_s >= SURVEY_S:
                    self._survey()
                    surveyed_s = time.monotonic()
                    if on_progress is not None:
                        on_progress(surveyed_s - begin_s, faults.seen_count)
        except KeyboardInterrupt:
            ended = "interrupted"
        interval_s = time.monotonic() - begin_s
        self._drain(faults)
        after_bits, after = self._survey(), self._memory()
        records, weights = self._records()
        stacks = self._stacks(records, weights, before_bits, after_bits)
        return GrowthRecording(
            pid=self._process.pid,
            source="bpf",
            interval_s=interval_s,
            sampled_every=self._every,
            seen_count=faults.seen_count,
            recorded_count=int((records["stack"] > UNMAPPED).sum()),
            dropped_count=faults.dropped_count,
            stackless_count=int(((records["stack"] < 0) & (records["stack"] > UNMAPPED)).sum()),
            before=before,
            after=after,
            stacks=stacks,
            ended=ended,
            notes=(*self._notes, *sorted(self._symbols.notes)),
        )

    def _drain(self, faults: FaultReader) -> None:
        fill_ratio = faults.fill_ratio()
        found = faults.drain()
        if not len(found):
            return
        self._kept.append(self._slimmed(faults, found))
        self._weights.append((len(found), self._every))
        kept = sum(count for count, _ in self._weights)
        if fill_ratio > FULL_RATIO or kept > FAULTS_MOST * (1 + self._every // self._weights[0][1]) / 2:
            self._every *= 2
            faults.sample(self._every)

    def _slimmed(self, faults: FaultReader, found: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Return what is kept of the records."""
        slim = np.empty(len(found), SLIM)
        for name in ("address", "stack", "thread"):
            slim[name] = found[name]
        slim["size"] = found["words"][:, 0]
        slim["words"], slim["unwound"] = self._fault_stacks.take(faults, found, faults.drain_copies())
        return slim

    def _survey(self) -> PageBits | None:
        """Look at mappings and page tables; None where they are gone."""
        try:
            self._mappings = self._opened.mappings()
        except OSError:  # the process has ended: what was mapped before has to do
            return None
        if self._mappings:
            self._symbols.update(self._mappings)
            self._fault_stacks.update()
        if self._walk is None:
            return None
        try:
            bits = self._walk.walk()
        except Vanished:
            return None
        self._huge.update((bits.addresses[bits.is_huge] // REGION_BYTES).tolist())
        return bits

    def _memory(self) -> MemoryNow | None:
        try:
            kinds = procfs.parse_status(self._opened.read("status"))
        except (OSError, MemsculptError):  # it has ended
            return None
        if kinds is None:
            return None
        return MemoryNow(
            anon_bytes=kinds.anon_bytes,
            file_bytes=kinds.file_bytes,
            shmem_bytes=kinds.shmem_bytes,
            swapped_bytes=kinds.swapped_bytes,
        )

    def _records(self) -> tuple[npt.NDArray[np.void], Int64]:
        records = np.concatenate([np.empty(0, SLIM), *self._kept])
        counts = [count for count, _ in self._weights]
        return records, np.repeat(np.array([each for _, each in self._weights], np.int64), counts)

    def _stacks(
        self,
        records: npt.NDArray[np.void],
        weights: Int64,
        before: PageBits | None,
        after: PageBits | None,
    ) -> tuple[GrowthStack, ...]:
        heap = next(((one.start, one.end) for one in self._mappings if one.name == "[heap]"), (0, 0))
        came, held_at = follow(records, _pages_of(before), self._huge, heap)
        chosen = came[:, 0]
        weights, touched = weights[chosen], came[:, 1]
        pages: Int64 = held_at[:, 0]
        held = np.where(held_at[:, 1] != 0, _count_there(after, pages, touched), 0)
        rows: defaultdict[tuple[int, int, int, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        kinds = self._kinds(records["address"][chosen].astype(np.int64))
        of_stacks = records["stack"][chosen].astype(np.int64), records["words"][chosen]
        unwound = self._fault_stacks.shared(*of_stacks, records["unwound"][chosen])
        self._tell_doubts(records["unwound"][chosen], unwound, touched * weights)
        for number, words, calls, kind, size, left, weight in zip(
            of_stacks[0].tolist(),
            of_stacks[1].tolist(),
            unwound.tolist(),
            kinds,
            touched.tolist(),
            held.tolist(),
            weights.tolist(),
            strict=True,
        ):
            row = rows[number, words, calls, kind]
            row[0] += size * weight
            row[1] += left * weight
            row[2] += weight
        merged: defaultdict[tuple[tuple[tuple[str, str], ...], str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for (number, words, calls, kind), row in rows.items():
            frames = self._fault_stacks.frames(number, words, calls)
            into = merged[tuple((frame.function, frame.module) for frame in frames), kind]
            for column, value in enumerate(row):
                into[column] += value
        found = [
            GrowthStack(
                frames=frames,
                kind=kind,
                touched_bytes=row[0] * PAGE_BYTES,
                held_bytes=row[1] * PAGE_BYTES,
                fault_count=row[2],
            )
            for (frames, kind), row in merged.items()
        ]
        return tuple(sorted(found, key=lambda one: (-one.touched_bytes, one.frames)))

    def _tell_doubts(self, copied: Int64, unwound: Int64, sizes: Int64) -> None:
        whole = np.array([self._fault_stacks.is_whole(number) for number in unwound.tolist()], np.bool_)
        for rows, what in (
            (~whole, "have a stack that may end before its first function"),
            (whole & (copied == NO_COPY), "came too fast for their stacks: they have that of the nearest like fault"),
        ):
            ratio = float(sizes[rows].sum() / max(1, sizes.sum()))
            if ratio > TOLD_RATIO:
                self._notes.append(f"{ratio:.0%} of the bytes {what}")

    def _kinds(self, addresses: Int64) -> list[str]:
        starts = np.array([one.start for one in self._mappings], np.int64)
        ends = np.array([one.end for one in self._mappings], np.int64)
        names = [_kind_of(one) for one in self._mappings]
        rows = np.searchsorted(starts, addresses, side="right") - 1
        return [
            names[row] if row >= 0 and address < ends[row] else "anonymous"
            for row, address in zip(rows.tolist(), addresses.tolist(), strict=True)
        ]


def _kind_of(mapping: Mapping) -> str:
    if mapping.name.startswith(SHARED_NAMES):
        return "shared"
    return "file" if mapping.is_file else "anonymous"


def follow(
    records: npt.NDArray[np.void], before: set[int], huge: set[int], heap: tuple[int, int]
) -> tuple[Int64, Int64]:
    """Follow pages as they come, go and move. Pure.

    `before` holds the pages that were there at the beginning, `huge` the 2 MiB regions that were seen to be huge pages.
    Returns (n_new, 2): which record brought new memory, and how many pages; and (n_new, 2): the page where that is now,
    and whether it was not taken away again.
    """
    came: list[tuple[int, int]] = []
    now: list[list[int]] = []  # by row of `came`: page, and 1 while it is held
    row_of: dict[int, int] = {}  # by page
    moving: dict[int, tuple[int, int]] = {}  # by thread
    there = set(before)
    pages: list[int] = (records["address"] // PAGE_BYTES).astype(np.int64).tolist()
    whats: list[int] = records["stack"].tolist()
    last_of_region = {
        page // REGION_PAGES: row for row, (page, what) in enumerate(zip(pages, whats, strict=True)) if what > UNMAPPED
    }
    for row, (page, what, size, thread) in enumerate(
        zip(pages, whats, records["size"].tolist(), records["thread"].tolist(), strict=True)
    ):
        if what > UNMAPPED:
            if page in there or page in row_of:
                continue
            region = page // REGION_PAGES
            # After a fault that brought a huge page there is none in its region any more.
            is_huge = region in huge and last_of_region[region] == row
            row_of[page] = len(came)
            came.append((row, REGION_PAGES if is_huge else 1))
            now.append([page, 1])
        elif what == MOVING:
            moving[thread] = (page, -(-size // PAGE_BYTES))
        elif what == MOVED:
            start, count = moving.pop(thread, (0, 0))
            if 0 < page < MOVED_MOST and page != start:
                for old in _within(row_of, start, start + count):
                    at = row_of.pop(old)
                    row_of[old - start + page] = at
                    now[at][0] = old - start + page
        else:
            end = page + -(-size // PAGE_BYTES) if what == UNMAPPED else -(-heap[1] // PAGE_BYTES)
            first = page if what == UNMAPPED else max(page, heap[0] // PAGE_BYTES)
            for gone in _within(row_of, first, end):
                now[row_of.pop(gone)][1] = 0
            for gone in _within(there, first, end):
                there.remove(gone)
    return np.array(came, np.int64).reshape(-1, 2), np.array(now, np.int64).reshape(-1, 2)


def _within(pages: dict[int, int] | set[int], first: int, end: int) -> list[int]:
    """Return the pages in [first, end), by the shorter way."""
    if end - first < len(pages):
        return [page for page in range(first, end) if page in pages]
    return [page for page in pages if first <= page < end]


def _pages_of(bits: PageBits | None) -> set[int]:
    """Return the numbers of the pages that are in memory or swapped."""
    if bits is None:
        return set()
    flags = np.unpackbits(bits.present | bits.swapped, axis=1, bitorder="little")
    row, within = np.nonzero(flags)
    return set((bits.addresses[row] // PAGE_BYTES + within).tolist())


def _count_there(bits: PageBits | None, pages: Int64, sizes: Int64) -> Int64:
    """Return how many pages of what came at `pages` are in memory or swapped."""
    held = _is_there(bits, pages).astype(np.int64)
    if bits is None or not len(bits.addresses):
        return held
    rows = np.flatnonzero(sizes > 1)
    regions = pages[rows] // REGION_PAGES * REGION_BYTES
    place = np.minimum(np.searchsorted(bits.addresses, regions), len(bits.addresses) - 1)
    inside = np.bitwise_count((bits.present | bits.swapped)[place]).sum(axis=1, dtype=np.int64)
    held[rows] = np.where(bits.addresses[place] == regions, inside, 0)
    return held


def _is_there(bits: PageBits | None, pages: Int64) -> Bool:
    """Return which pages are in memory or swapped."""
    if bits is None or not len(bits.addresses):
        return np.zeros(len(pages), np.bool_)
    regions, within = pages // REGION_PAGES * REGION_BYTES, pages % REGION_PAGES
    place = np.minimum(np.searchsorted(bits.addresses, regions), len(bits.addresses) - 1)
    there = (bits.present | bits.swapped)[place, within // 8] >> (within % 8).astype(np.uint8) & 1
    return (bits.addresses[place] == regions) & (there != 0)
