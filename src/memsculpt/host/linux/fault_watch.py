# SPDX-License-Identifier: Apache-2.0
"""Sampled page faults of many processes: records of the program in the kernel -> columns. Fulfils FaultWatch.

Nothing is held open between two calls but the program and its maps: a descriptor of a container's file would keep its
mount from ever going.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Mapping as ByKey
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.growth import FaultCount, FaultRate, FaultSamples, Module
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, REGION_PAGES
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Unavailable
from memsculpt.host import own_instance
from memsculpt.host.bpf.samples import FRAMES, SampleReader, Samples
from memsculpt.host.linux.code_places import ANONYMOUS, MODULES_MOST, Modules, ProcessPlaces
from memsculpt.host.linux.opened import OpenedProcess
from memsculpt.host.linux.pagemap import ENTRY_BYTES, NO_SCAN, PAGEMAP_SCAN, PRESENT, SCAN_ARGUMENT, SWAPPED

FILE_OR_SHARED = 1 << 61  # Documentation/admin-guide/mm/pagemap.rst
PAGE_IS_HUGE = 1 << 6
REGION_STRUCT_BYTES = 24  # struct page_region
GAP_PAGES = 512  # entries that are read along rather than by another call
PLACES_MOST = 64  # processes whose mappings are remembered
MEASURED_PAGES, ROUNDS = 256, 9


class LinuxFaultWatch:
    """One program in the kernel for all; see host.protocol.FaultWatch."""

    def __init__(self, modules: Modules, proc: str = "/proc") -> None:
        """Load, attach, and measure what it costs; `modules` outlives the watch. Raises Unavailable."""
        self._proc = proc
        self._reader = SampleReader()
        self._modules = modules
        self._rates: dict[Instance, FaultRate] = {}
        self._places: dict[Instance, ProcessPlaces] = {}
        self._tells_huge = True
        try:
            self.pass_cost_s, self.record_cost_s = _measure(self._reader)
            self._passed_before = self._reader.passed_count()
        except OSError as error:
            self._reader.close()
            raise Unavailable(place="page faults", problem=os.strerror(error.errno or 0), fix="run as root") from error
        except Unavailable:
            self._reader.close()
            raise

    def watch(self, rates: ByKey[Instance, FaultRate]) -> None:
        """Watch these and nobody else."""
        for gone in self._rates.keys() - rates.keys():
            self._forget(gone)
        for process, rate in rates.items():
            try:
                self._reader.watch(process.pid, process.start_ticks, rate.shift, rate.refill)
            except OSError:  # the map is full: who asks for so many is told by the counts, which lack him
                continue
            self._rates[process] = rate

    def drain(self) -> FaultSamples:
        """Return what came since the last call."""
        begin_cpu_s = time.thread_time()
        records = self._reader.drain()
        by_pid = {process.pid: process for process in self._rates}
        processes: list[Instance] = []
        parts: list[tuple[Samples, Int64, Int64, list[bytes]]] = []
        for pid in np.unique(records["pid"]).tolist():
            process = by_pid.get(pid)
            if process is None:
                continue  # no longer watched
            rows = records[records["pid"] == pid]
            parts.append((rows, *self._memory_of(process, rows), self._stacks_of(process, rows)))
            processes.append(process)
        self._modules.close()
        number_of: dict[bytes, int] = {}
        stacks = [number_of.setdefault(key, len(number_of)) for part in parts for key in part[3]]
        lengths = [len(part[0]) for part in parts]
        every = np.concatenate([records[:0], *(part[0] for part in parts)])
        return FaultSamples(
            at_s=every["time_ns"] / 1e9,
            process=np.repeat(np.arange(len(parts), dtype=np.int64), lengths),
            page=(every["address"] // PAGE_BYTES).astype(np.int64),
            size_pages=np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)]),
            shift=every["shift"].astype(np.int64),
            kind=np.concatenate([np.zeros(0, np.int64), *(part[2] for part in parts)]),
            stack=np.array(stacks, np.int64),
            processes=tuple(processes),
            stacks=tuple(number_of),
            counts=self._counts(),
            passed_count=self._reader.passed_count() - self._passed_before,
            cpu_s=time.thread_time() - begin_cpu_s,
            notes=self._notes(),
        )

    def count_held(self, process: Instance, pages: Int64, sizes: Int64) -> Int64:
        """Return how many of `sizes` pages from each of `pages` on are in memory or swapped."""
        is_huge = sizes > 1
        firsts = np.where(is_huge, pages // REGION_PAGES * REGION_PAGES, pages)
        try:
            opened = OpenedProcess(process, self._proc)
        except MemsculptError:  # ended, or not ours to look at: nothing of it is known to be held
            return np.zeros(len(pages), np.int64)
        try:
            there = np.zeros(len(pages), np.int64)
            there[~is_huge] = _entries(opened.pagemap, firsts[~is_huge]) & np.uint64(PRESENT | SWAPPED) != 0
            for row in np.flatnonzero(is_huge).tolist():
                inside = _read_entries(opened.pagemap, int(firsts[row]), REGION_PAGES)
                there[row] = int((inside & np.uint64(PRESENT | SWAPPED) != 0).sum())
        except OSError:
            return np.zeros(len(pages), np.int64)
        finally:
            opened.close()
        return there

    def modules(self) -> tuple[Module, ...]:
        """Return the modules that places are in."""
        return self._modules.all()

    def wait(self) -> bool:
        """Sleep until the ring is half full, or `wake`."""
        return self._reader.wait()

    def wake(self) -> None:
        """End a wait, now and for ever."""
        self._reader.interrupt()

    def close(self) -> None:
        """Unload the program; a second call does nothing."""
        self._modules.close()
        self._reader.close()

    def _notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        if not self._tells_huge:
            notes.append("this kernel does not tell which pages are huge: each counts as one of 4 KiB")
        if self._modules.is_full:
            notes.append(f"more than {MODULES_MOST} files with code were met: the later ones are told as [unknown]")
        return tuple(notes)

    def _forget(self, process: Instance) -> None:
        self._reader.forget(process.pid)
        self._rates.pop(process, None)
        self._places.pop(process, None)

    def _counts(self) -> dict[Instance, FaultCount]:
        found: dict[Instance, FaultCount] = {}
        for process in self._rates:
            counted = self._reader.counted(process.pid)
            if counted is not None:
                found[process] = FaultCount(
                    shift=counted.shift, seen_count=counted.seen_count, dropped_count=counted.dropped_count
                )
        return found

    def _memory_of(self, process: Instance, rows: Samples) -> tuple[Int64, Int64]:
        """Return (size in pages, kind) of what each fault brought, as far as it is still there."""
        pages = (rows["address"] // PAGE_BYTES).astype(np.int64)
        sizes, kinds = np.ones(len(rows), np.int64), np.full(len(rows), ANONYMOUS, np.int64)
        try:
            opened = OpenedProcess(process, self._proc)
        except MemsculptError:
            return sizes, self._kinds(process, rows)
        try:
            if process not in self._places or not self._is_known(process, rows):
                while len(self._places) >= PLACES_MOST:
                    self._places.pop(next(iter(self._places)))
                self._places[process] = ProcessPlaces(opened.mappings(), self._modules, process.pid, self._proc)
            entries = _entries(opened.pagemap, pages)
            is_private = entries & np.uint64(PRESENT | FILE_OR_SHARED) == np.uint64(PRESENT)
            kinds = np.where(is_private, ANONYMOUS, self._kinds(process, rows))
            sizes[self._huge_rows(opened.pagemap, pages, is_private)] = REGION_PAGES
        except OSError:  # it has just ended
            return sizes, self._kinds(process, rows)
        finally:
            opened.close()
        return sizes, kinds

    def _kinds(self, process: Instance, rows: Samples) -> Int64:
        places = self._places.get(process)
        if places is None:
            return np.full(len(rows), ANONYMOUS, np.int64)
        return places.kinds(rows["address"].astype(np.int64))

    def _is_known(self, process: Instance, rows: Samples) -> bool:
        """Tell whether the code of every stack is where it was when the mappings were read."""
        frames = np.where(np.arange(FRAMES) < (rows["depth"] // 8)[:, None], rows["frames"], 0)
        return bool(((self._places[process].places(frames) != 0) | (frames == 0)).all())

    def _huge_rows(self, pagemap: int, pages: Int64, is_private: npt.NDArray[np.bool_]) -> list[int]:
        """Return which faults brought a huge page: after one there is no other in its region, so it is the last."""
        if not self._tells_huge:
            return []
        last = {page // REGION_PAGES: row for row, page in enumerate(pages.tolist()) if is_private[row]}
        try:
            return [row for region, row in last.items() if _is_huge(pagemap, region * REGION_BYTES)]
        except OSError as error:
            if error.errno not in NO_SCAN:
                raise
            self._tells_huge = False
            return []

    def _stacks_of(self, process: Instance, rows: Samples) -> list[bytes]:
        places = self._places.get(process)
        if places is None:
            return [_key([0], [])] * len(rows)
        depth = rows["depth"] // 8
        frames = places.places(np.where(np.arange(FRAMES) < depth[:, None], rows["frames"], 0))
        words = places.places(np.array(rows["words"], np.uint64))
        known: dict[bytes, bytes] = {}
        found: list[bytes] = []
        for each, above in zip(frames, words, strict=True):
            raw = each.tobytes() + above.tobytes()
            key = known.get(raw)
            if key is None:
                stack: list[int] = each.tolist()
                top = [word for word in above[above != 0].tolist() if self._modules.is_return(word)]
                # The first is where the fault was, known or not; of the others what is no code is no frame.
                key = known[raw] = _key([stack[0], *(one for one in stack[1:] if one)], top)
            found.append(key)
        return found


def _key(frames: Sequence[int], words: Sequence[int]) -> bytes:
    return np.array([len(frames), *frames, *words], np.int64).tobytes()


def _read_entries(pagemap: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    content = os.pread(pagemap, count * ENTRY_BYTES, first * ENTRY_BYTES)
    found = np.zeros(count, np.uint64)
    read = np.frombuffer(content[: len(content) // ENTRY_BYTES * ENTRY_BYTES], np.uint64)
    found[: len(read)] = read
    return found


def _entries(pagemap: int, pages: Int64) -> npt.NDArray[np.uint64]:
    """Return the entries of pages in any order, by few calls where they lie near one another. Raises OSError."""
    found = np.zeros(len(pages), np.uint64)
    if not len(pages):
        return found
    order = np.argsort(pages, kind="stable")
    ordered = pages[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 2 * GAP_PAGES) > GAP_PAGES)
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(ordered)], strict=True):
        first, last = int(ordered[begin]), int(ordered[end - 1])
        found[order[begin:end]] = _read_entries(pagemap, first, last - first + 1)[ordered[begin:end] - first]
    return found


def _is_huge(pagemap: int, address: int) -> bool:
    """Tell whether a region of 2 MiB is mapped by a huge page. Raises OSError. Source: PAGEMAP_SCAN, Linux 6.7."""
    region = bytearray(REGION_STRUCT_BYTES)
    vector = np.frombuffer(region, np.uint8).ctypes.data
    argument = bytearray(
        SCAN_ARGUMENT.pack(
            SCAN_ARGUMENT.size,
            0,
            address,
            address + REGION_BYTES,
            0,
            vector,
            1,
            1,
            0,
            PAGE_IS_HUGE,
            0,
            PAGE_IS_HUGE,
        )
    )
    return fcntl.ioctl(pagemap, PAGEMAP_SCAN, argument) > 0


def _measure(reader: SampleReader) -> tuple[float, float]:
    """Attach; return what it costs from now on that a fault passes, and that it is recorded. Takes milliseconds."""
    own = own_instance()
    alone_s = _touch_s()
    reader.attach()
    passing_s = _touch_s()
    reader.watch(own.pid, own.start_ticks, 0, 1 << 30)
    recorded_s = _touch_s(reader)
    reader.forget(own.pid)
    reader.drain()
    return max(0.0, passing_s - alone_s), max(0.0, recorded_s - passing_s)


def _touch_s(reader: SampleReader | None = None) -> float:
    """Return the usual time of a first touch of a page of our own."""
    times: list[float] = []
    for _ in range(ROUNDS):
        size_bytes = MEASURED_PAGES * mmap.PAGESIZE
        with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            first_of_each = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
            begin_s = time.perf_counter()
            first_of_each[:] = 1
            times.append((time.perf_counter() - begin_s) / MEASURED_PAGES)
            del first_of_each
        if reader is not None:
            reader.drain()
    return sorted(times)[ROUNDS // 2]
