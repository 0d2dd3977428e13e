# SPDX-License-Identifier: Apache-2.0
"""The best source of touched pages: page tables as the processor keeps them (bpf/pagewalk.py), every page of 4 KiB."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from memsculpt.domain.pages import (
    PAGE_BYTES,
    REGION_BYTES,
    REGION_PAGES,
    Cleared,
    Extents,
    Grain,
    PageBits,
    Touches,
    count_bits,
)
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host import blocks
from memsculpt.host.bpf.pagewalk import AttachedWalker, PageWalker, joined
from memsculpt.host.linux import clear_accessed, lru, pagemap
from memsculpt.host.linux.clear_accessed import Clearing
from memsculpt.host.linux.opened import OpenedProcess

# A process may be kept from mapping memory for so long at once; where clear_refs would take longer, parts are cleared.
HOLD_MOST_S = 0.05
# In a turn so much is cleared at once, 4 MiB at least: of memory that is read at random one access in 512 (of a
# gigabyte one in 256) is slower for a moment. Smaller parts would cost more: each is a wake-up with cold caches.
TURN_REGIONS = 2
TURN_SHARE = 512


class WalkingSource:
    """Opens processes on one walker."""

    name = "bpf"

    def __init__(self) -> None:
        """Load the program. Raises Unavailable."""
        self._walker = PageWalker()

    def open(self, process: Instance) -> "WalkingReader":
        """Open a process; see the protocol."""
        opened = OpenedProcess(process)
        try:
            opened.check_first_hand()
            return WalkingReader(self._walker.attach(process.pid), opened)
        except OSError as error:
            opened.close()
            raise opened.translated(error) from error
        except Unavailable:
            opened.close()
            raise

    def close(self) -> None:
        """Unload the program."""
        self._walker.close()


class WalkingReader:
    """Reads and clears the accessed bits of one process. Fulfils host.protocol.PageReader."""

    source, grain = "bpf", Grain.PAGE

    def __init__(self, walker: AttachedWalker, opened: OpenedProcess) -> None:
        self._walker, self._opened = walker, opened
        self._unknown: PageBits | None = None
        self._seen: PageBits | None = None  # as `accessed`: touched since the last clear
        self.bits: PageBits | None = None  # of the last read, page by page

    def survey(self) -> Extents:
        """Return where the process has memory; see the protocol."""
        with self._translated():
            bits = self._walker.walk()
        return Extents(regions=bits.addresses, present=count_bits(bits.present))

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched since the last clear; see the protocol."""
        with self._translated():
            self.bits = self._noted(ranges)
            mappings = self._opened.mappings()
            return blocks.touches_from(self.bits, mappings, self._unknown)

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Take note of what has been touched so far; see the protocol. Costs the walk alone."""
        with self._translated():
            self._noted(ranges)

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None, hold_most_s: float = HOLD_MOST_S) -> Cleared:
        """Begin a new interval: at once where that is quick, in parts where it is not, or where parts are asked for."""
        begin_s = time.perf_counter()
        with self._translated():
            resident_bytes = self._opened.resident_bytes()
            foreseen_s = clear_accessed.foreseen_hold_s(resident_bytes)
            if ranges is None and foreseen_s <= hold_most_s and not clear_accessed.keeps_soft_dirty():
                done, method, note = clear_accessed.clear_whole(self._opened, resident_bytes), "clear_refs", ""
                self._unknown = self._seen = None
            else:
                done, note = self._clear_parts(ranges)
                method = "MADV_COLD"
        return Cleared(
            method=method,
            cleared_bytes=done.cleared_bytes,
            longest_hold_s=done.longest_hold_s,
            duration_s=time.perf_counter() - begin_s,
            note=note,
        )

    def close(self) -> None:
        """Release every descriptor and the link in the kernel."""
        self._walker.close()
        self._opened.close()

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read and clear a stretch, some MiB at a time; see the protocol."""
        parts: list[PageBits] = []
        refused: list[tuple[int, int]] = []
        with self._translated():
            mappings = self._opened.mappings()
            regions: list[int] = self._walk([(start, end)]).addresses.tolist()
            at_once = max(TURN_REGIONS, self._opened.resident_bytes() // TURN_SHARE // REGION_BYTES)
            for number in range(0, len(regions), at_once):
                if number:
                    pause(number / len(regions))
                part = _stretches(regions[number : number + at_once])
                parts.extend(self._walker.walk(*one) for one in part)
                refused += clear_accessed.clear_quickly(self._opened, part, mappings)
            bits = joined(parts, is_complete=all(one.is_complete for one in parts))
            if self._seen is not None and len(self._seen.addresses):
                before = blocks.aligned(self._seen.addresses, self._seen.accessed, bits.addresses)
                bits = replace(bits, accessed=(bits.accessed | before) & bits.present)
                self._seen = _without(self._seen, bits)
            touches = blocks.touches_from(bits, mappings, self._unknown)
            after = self._walk([(start, end)])
            self._unknown = _replaced(self._unknown, self._stuck(after, refused), after)
            return touches

    def _clear_parts(self, ranges: Sequence[tuple[int, int]] | None) -> tuple[Clearing, str]:
        wanted = clear_accessed.ranges_within(self._opened.mappings(), ranges)
        lru.drain_batches()
        done = clear_accessed.clear_parts(self._opened, wanted)
        after = self._walk(ranges)
        stuck = self._stuck(after, done.refused)
        self._seen = None if ranges is None or self._seen is None else _without(self._seen, after)
        self._unknown = stuck if ranges is None else _replaced(self._unknown, stuck, after)
        count = int(count_bits(stuck.present).sum())
        note = f"{count} pages are mapped by several processes, or locked: not known whether touched" if count else ""
        return done, note

    def _stuck(self, after: PageBits, refused: Sequence[tuple[int, int]]) -> PageBits:
        """Return, as `present`, the pages whose accessed bit the clear did not reach.

        A page that shows as accessed right after a clear was touched since, unless other processes map it as well.
        """
        left = np.flatnonzero(after.accessed.any(axis=1))
        stuck = np.zeros((len(left), after.accessed.shape[1]), np.uint8)
        entries = pagemap.read_regions(self._opened.pagemap, after.addresses[left].tolist(), REGION_PAGES)
        for row, region in enumerate(left):
            address = int(after.addresses[region])
            is_shared = (entries[row] & np.uint64(pagemap.EXCLUSIVE)) == 0
            for start, end in refused:
                low, high = (start - address) // PAGE_BYTES, (end - address) // PAGE_BYTES
                if low < len(is_shared) and high > 0:
                    is_shared[max(low, 0) : high] = True
            stuck[row] = np.packbits(is_shared, bitorder="little") & after.accessed[region]
        none = np.zeros_like(stuck)
        return PageBits(
            addresses=after.addresses[left],
            is_huge=after.is_huge[left],
            present=stuck,
            accessed=none,
            dirty=none.copy(),
            swapped=none.copy(),
        )

    def _noted(self, ranges: Sequence[tuple[int, int]] | None) -> PageBits:
        """Walk, and return the bits with those of earlier looks among them."""
        bits = self._walk(ranges)
        if self._seen is not None and len(self._seen.addresses):
            before = blocks.aligned(self._seen.addresses, self._seen.accessed, bits.addresses)
            bits = replace(bits, accessed=(bits.accessed | before) & bits.present)
        self._seen = bits if ranges is None or self._seen is None else _replaced(self._seen, bits, bits)
        return bits

    def _walk(self, ranges: Sequence[tuple[int, int]] | None) -> PageBits:
        if ranges is None:
            return self._walker.walk()
        parts: list[PageBits] = []
        at = 0
        for start, end in sorted(ranges):  # two ranges may begin and end in one region, which must come once
            begin = max(start // REGION_BYTES * REGION_BYTES, at)
            at = -(-end // REGION_BYTES) * REGION_BYTES
            if begin < at:
                parts.append(self._walker.walk(begin, at))
        return joined(parts, is_complete=all(part.is_complete for part in parts))

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._opened.translated(error) from error


def _stretches(regions: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending regions as ranges, neighbours together."""
    found: list[tuple[int, int]] = []
    for at in regions:
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + REGION_BYTES)
        else:
            found.append((at, at + REGION_BYTES))
    return found


def _replaced(before: PageBits | None, now: PageBits, looked_at: PageBits) -> PageBits:
    """Return what is unknown after a part was cleared anew: of the regions looked at what is known now."""
    if before is None:
        return now
    whole = joined([_without(before, looked_at), now], is_complete=True)
    return _chosen(whole, np.argsort(whole.addresses, kind="stable"))


def _without(bits: PageBits, looked_at: PageBits) -> PageBits:
    return _chosen(bits, np.flatnonzero(~np.isin(bits.addresses, looked_at.addresses)))


def _chosen(bits: PageBits, rows: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> PageBits:
    return PageBits(
        addresses=bits.addresses[rows],
        is_huge=bits.is_huge[rows],
        present=bits.present[rows],
        accessed=bits.accessed[rows],
        dirty=bits.dirty[rows],
        swapped=bits.swapped[rows],
    )
