# SPDX-License-Identifier: Apache-2.0
"""Idle page tracking as a source of touched pages: every page, by its frame, through a bitmap of all main memory.

Documentation/admin-guide/mm/idle_page_tracking.rst. A bit that is set in /sys/kernel/mm/page_idle/bitmap marks a frame
idle, and the kernel clears the accessed bits of every page table entry that leads to it; when the bit is read, the
kernel looks at those entries, and the frame is idle no more where one has been accessed. So:

- frames come from /proc/PID/pagemap, and a page that came since the clear was never marked: it counts as touched;
- of a compound page (a huge one, a large folio) the head alone carries the mark, and /proc/kpageflags says which frame
  that is: its pages are touched or not as one;
- an access by any process counts: a page that several map and that was touched is *unknown*, never touched;
- only pages on an LRU list are tracked: others (huge TLB pages, the page of zeros) are unknown as well;
- the kernel does not flush TLBs here, so the hottest pages may stay hidden (clear_accessed.py).

Each frame costs the kernel a walk over all that map it. No lock of the process is taken. Debian's kernels have no
CONFIG_IDLE_PAGE_TRACKING, nor has the reference machine: what stands here was tested against files that a test wrote.
"""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_PAGES, Bits, Cleared, Extents, Grain, PageBits, Touches
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host import blocks
from memsculpt.host.linux import clear_accessed, pagemap
from memsculpt.host.linux.opened import OpenedProcess
from memsculpt.host.linux.pagemap import UInt64

PLACE = "idle page tracking"
FRAME = (1 << 55) - 1
WORD_BITS = 64
# include/uapi/linux/kernel-page-flags.h
LRU, COMPOUND_HEAD, COMPOUND_TAIL, THP = 5, 15, 16, 22
ORDERS = range(1, 19)  # of a compound page: up to 1 GiB
# Words are read along where that is cheaper than another read.
GAP_WORDS = 64
TURN_REGIONS = 2  # as the walker: 4 MiB at a time
NOTE = "the kernel clears these bits without a TLB flush: the hottest pages may be missing"


class PageIdleSource:
    """Opens processes on the bitmap. Fulfils host.protocol.PageSource."""

    name = "page_idle"

    def __init__(self, sys: str = "/sys", proc: str = "/proc") -> None:
        """Open the bitmap and the flags of frames. Raises Unavailable."""
        self._proc = proc
        self._descriptors: list[int] = []
        try:
            self._bitmap = self._keep(f"{sys}/kernel/mm/page_idle/bitmap", os.O_RDWR)
            self._flags = self._keep(f"{proc}/kpageflags", os.O_RDONLY)
        except OSError as error:
            self.close()
            raise _unavailable(error) from error

    def open(self, process: Instance) -> "PageIdleReader":
        """Open a process; see the protocol."""
        return PageIdleReader(OpenedProcess(process, self._proc), _Frames(self._bitmap, self._flags))

    def close(self) -> None:
        """Release every descriptor; marks that are set stay, and mean nothing to anybody."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _keep(self, path: str, mode: int) -> int:
        self._descriptors.append(os.open(path, mode | os.O_CLOEXEC))
        return self._descriptors[-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    """What a process has in memory; tables of shape (n_regions, 512), `heads` and `on_lru` by present page."""

    addresses: Int64
    entries: UInt64
    present: Bool
    heads: Int64  # the frame that carries the mark
    on_lru: Bool
    is_huge: Bool


class PageIdleReader:
    """Tells of pages of one process. Fulfils host.protocol.PageReader."""

    source, grain = "page_idle", Grain.PAGE

    def __init__(self, opened: OpenedProcess, frames: "_Frames") -> None:
        self._opened, self._frames = opened, frames

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Do nothing: whoever else clears accessed bits takes the mark off as well."""

    def survey(self) -> Extents:
        """Return where the process has memory; see the protocol."""
        with self._translated():
            return pagemap.read_extents(self._opened.pagemap, self._opened.mappings())

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched since the last clear; see the protocol."""
        with self._translated():
            mappings = self._opened.mappings()
            held = self._held(clear_accessed.ranges_within(mappings, ranges))
            bits, unknown = self._bits(held)
            return replace(blocks.touches_from(bits, mappings, unknown), has_dirty=False)

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Mark everything in the ranges idle; see the protocol. The process never waits."""
        begin_s = time.perf_counter()
        with self._translated():
            held = self._held(clear_accessed.ranges_within(self._opened.mappings(), ranges))
            self._frames.mark_idle(held.heads[held.on_lru])
        return Cleared(
            method="page_idle",
            cleared_bytes=int(held.on_lru.sum()) * PAGE_BYTES,
            longest_hold_s=0.0,
            duration_s=time.perf_counter() - begin_s,
            note=NOTE,
        )

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read and mark a stretch, some MiB at a time; see the protocol."""
        with self._translated():
            mappings = self._opened.mappings()
            held = self._held(clear_accessed.ranges_within(mappings, [(start, end)]))
            regions = np.repeat(np.arange(len(held.addresses)), held.present.sum(axis=1))
            idle = np.zeros(len(held.heads), np.bool_)
            for number in range(0, len(held.addresses), TURN_REGIONS):
                if number:
                    pause(number / len(held.addresses))
                part = np.flatnonzero((regions >= number) & (regions < number + TURN_REGIONS))
                idle[part] = self._frames.are_idle(held.heads[part])
                self._frames.mark_idle(held.heads[part][held.on_lru[part]])
            bits, unknown = _bits_from(held, idle)
            return replace(blocks.touches_from(bits, mappings, unknown), has_dirty=False)

    def close(self) -> None:
        """Release every descriptor."""
        self._opened.close()

    def _held(self, ranges: list[tuple[int, int]]) -> _Held:
        addresses, entries = pagemap.read_tables(self._opened.pagemap, ranges)
        present: Bool = (entries & np.uint64(pagemap.PRESENT)) != 0
        frames = (entries[present] & np.uint64(FRAME)).astype(np.int64)
        if len(frames) and not frames.any():
            raise Unavailable(
                place="/proc/PID/pagemap", problem="tells no frame numbers to this user", fix="run as root"
            )
        heads, flags = self._frames.heads_of(frames)
        is_thp = np.zeros(entries.shape, np.bool_)
        is_thp[present] = (flags >> np.uint64(THP)) & np.uint64(1) != 0
        first = np.zeros(entries.shape, np.int64)
        first[present] = heads
        return _Held(
            addresses=addresses,
            entries=entries,
            present=present,
            heads=heads,
            on_lru=(flags >> np.uint64(LRU)) & np.uint64(1) != 0,
            is_huge=is_thp.all(axis=1) & (first == first[:, :1]).all(axis=1),
        )

    def _bits(self, held: _Held) -> tuple[PageBits, PageBits]:
        return _bits_from(held, self._frames.are_idle(held.heads))

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._opened.translated(error) from error


def _bits_from(held: _Held, idle: Bool) -> tuple[PageBits, PageBits]:
    """Return what was touched, and of that what is not to be told. Pure."""
    accessed = np.zeros(held.present.shape, np.bool_)
    accessed[held.present] = ~idle
    tracked = np.zeros(held.present.shape, np.bool_)
    tracked[held.present] = held.on_lru
    is_shared = (held.entries & np.uint64(pagemap.EXCLUSIVE)) == 0
    nothing = np.zeros((len(held.addresses), REGION_PAGES // 8), np.uint8)
    swapped = (held.entries & np.uint64(pagemap.SWAPPED)) != 0

    def bits(present: Bool) -> PageBits:
        return PageBits(
            addresses=held.addresses,
            is_huge=held.is_huge,
            present=_packed(present),
            accessed=_packed(accessed),
            dirty=nothing,
            swapped=_packed(swapped),
        )

    return bits(held.present), bits(accessed & (is_shared | ~tracked))


class _Frames:
    """Marks and flags of frames of main memory, 64 marks or one frame's flags a word."""

    def __init__(self, bitmap: int, flags: int) -> None:
        self._bitmap, self._flags = bitmap, flags

    def heads_of(self, frames: Int64) -> tuple[Int64, UInt64]:
        """Return the frame that carries the mark of each one, and that frame's flags.

        A compound page of order n begins at a multiple of 2^n frames: the nearest such multiple below a tail that is a
        head is its own, because all between are tails of the same.
        """
        heads = frames.copy()
        flags = self._flags_of(frames)
        waiting = np.flatnonzero((flags >> np.uint64(COMPOUND_TAIL)) & np.uint64(1) != 0)
        for order in ORDERS:
            if not len(waiting):
                break
            candidates = frames[waiting] >> order << order
            found = self._flags_of(candidates)
            is_head = (found >> np.uint64(COMPOUND_HEAD)) & np.uint64(1) != 0
            heads[waiting[is_head]] = candidates[is_head]
            # What is told of the whole is told at its head (the list that it is on); THP at each of its frames.
            flags[waiting[is_head]] = found[is_head]
            waiting = waiting[~is_head]
        return heads, flags

    def are_idle(self, frames: Int64) -> Bool:
        """Return which frames have been idle since they were marked. Raises OSError."""
        words = _words(self._bitmap, frames // WORD_BITS)
        return (words >> (frames % WORD_BITS).astype(np.uint64)) & np.uint64(1) != 0

    def mark_idle(self, frames: Int64) -> None:
        """Mark frames idle; the kernel adds what is written to what is set. Raises OSError."""
        ordered = np.unique(frames)
        if not len(ordered):
            return
        numbers, firsts = np.unique(ordered // WORD_BITS, return_index=True)
        marks = np.left_shift(np.uint64(1), (ordered % WORD_BITS).astype(np.uint64))
        words = np.bitwise_or.reduceat(marks, firsts)
        edges = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for begin, end in zip(edges.tolist(), [*edges[1:].tolist(), len(numbers)], strict=True):
            os.pwrite(self._bitmap, words[begin:end].tobytes(), int(numbers[begin]) * 8)

    def _flags_of(self, frames: Int64) -> UInt64:
        return _words(self._flags, frames)


def _words(descriptor: int, numbers: Int64) -> UInt64:
    """Return the words of 8 bytes at these places of a file, zeros past its end. Raises OSError."""
    ordered, back = np.unique(numbers, return_inverse=True)
    values = np.zeros(len(ordered), np.uint64)
    edges = np.flatnonzero(np.diff(ordered, prepend=-(GAP_WORDS + 2)) > GAP_WORDS)
    for begin, end in zip(edges.tolist(), [*edges[1:].tolist(), len(ordered)], strict=True):
        first, count = int(ordered[begin]), int(ordered[end - 1] - ordered[begin]) + 1
        content = os.pread(descriptor, count * 8, first * 8)
        whole = np.frombuffer(content.ljust(count * 8, b"\0"), np.uint64)
        values[begin:end] = whole[ordered[begin:end] - first]
    return values[back]


def _packed(flags: Bool) -> Bits:
    return np.packbits(flags, axis=1, bitorder="little")


def _unavailable(error: OSError) -> Unavailable:
    if isinstance(error, FileNotFoundError):
        is_bitmap = str(error.filename).endswith("bitmap")
        problem = "is not in this kernel" if is_bitmap else "needs /proc/kpageflags, which is not there"
        fix = "CONFIG_IDLE_PAGE_TRACKING" if is_bitmap else "CONFIG_PROC_PAGE_MONITOR"
    elif isinstance(error, PermissionError):
        problem, fix = "is for root alone", "run as root"
    else:
        problem, fix = error.strerror or str(error), "none needed: another source serves"
    return Unavailable(place=PLACE, problem=problem, fix=fix)
