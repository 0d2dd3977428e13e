# SPDX-License-Identifier: Apache-2.0
"""A look at a guest's RAM: what any source of touched pages tells, and what is not in the page tables, or only there.

A page of shared memory that was swapped, or that is in memory without being mapped, is in no page table; its file knows
of it (shared_memory.py). Without this a guest's blocks would vanish from the pool as they leave.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Cleared, Extents, Grain, Touches
from memsculpt.domain.vm import GuestRam
from memsculpt.host.blocks import WORD_BYTES
from memsculpt.host.linux import pagemap, runs, shared_memory
from memsculpt.host.linux.opened import OpenedProcess
from memsculpt.host.linux.shared_memory import SharedMemory
from memsculpt.host.protocol import PageReader


class GuestReader:
    """A reader of any process that heeds what is known of a guest in it. Fulfils host.protocol.PageReader.

    A source that tells no pages (Grain.PAGE) is left as it is: its rows are no blocks.
    """

    def __init__(self, reader: PageReader, ram_of: Callable[[], GuestRam | None]) -> None:
        """`ram_of` tells what is known now, None where the process runs no guest. Closes `reader` at its end."""
        self._reader, self._ram_of = reader, ram_of
        self.source, self.grain = reader.source, reader.grain
        self._ram: GuestRam | None = None  # what is open
        self._opened: OpenedProcess | None = None
        self._files: list[SharedMemory] = []

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Take note of what has been touched so far; see the protocol."""
        self._reader.look(ranges)

    def survey(self) -> Extents:
        """Return where there is memory, mapped or not; see the protocol."""
        told = self._reader.survey()
        opened = self._open()
        if opened is None:
            return told
        try:
            held = [file.held(_area(file)) for file in self._files]
        except OSError as error:
            raise opened.translated(error) from error
        regions = np.unique(np.concatenate([told.regions, *(_regions_of(one) for one in held)]))
        present = np.zeros(len(regions), np.int64)
        present[np.searchsorted(regions, told.regions)] = told.present
        return Extents(regions=regions, present=present)

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched, and what is swapped; see the protocol."""
        return self._whole(self._reader.read(ranges), ranges)

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Begin a new interval; see the protocol."""
        return self._reader.clear(ranges)

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read and clear [start, end); see the protocol."""
        return self._whole(self._reader.turn(start, end, pause), [(start, end)])

    def close(self) -> None:
        """Release every descriptor."""
        self._reader.close()
        self._release()

    def _open(self) -> OpenedProcess | None:
        """Open the guest's process, and what is shared of its RAM; None where none is. Raises as PageSource.open."""
        ram = self._ram_of()
        if ram is None:
            self._release()
            return None
        if self._opened is None or ram != self._ram:
            self._release()
            self._opened, self._ram = OpenedProcess(ram.process), ram
            try:
                found = shared_memory.open_within(self._opened.folder, self._opened.mappings(), ram.host_ranges())
            except OSError as error:
                raise self._opened.translated(error) from error
            self._files = [one for one in found if not one.problem]
            for one in found:
                if one.problem:
                    one.close()
        return self._opened

    def _release(self) -> None:
        while self._files:
            self._files.pop().close()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _whole(self, touches: Touches, ranges: Sequence[tuple[int, int]] | None) -> Touches:
        opened = self._open() if touches.grain is Grain.PAGE else None
        if opened is None:
            return touches
        wanted = None if ranges is None else runs.joined([np.array(sorted(ranges), np.int64).reshape(-1, 2)])
        try:
            for file in self._files:
                if file.mapping not in touches.mappings:  # unmapped meanwhile, or grown: it is opened anew one day
                    continue
                area = _area(file) if wanted is None else runs.intersection(wanted, _area(file))
                mapped = pagemap.read_runs(opened.pagemap, _listed(area), pagemap.PRESENT)
                resident, swapped = file.unmapped(area, mapped)
                touches = with_unmapped(touches, touches.mappings.index(file.mapping), resident, swapped)
            if self._ram is not None and not self._ram.is_shared:
                area = np.array(self._ram.host_ranges(), np.int64).reshape(-1, 2)
                area = area if wanted is None else runs.intersection(wanted, area)
                touches = without_zeros(touches, pagemap.read_zero_runs(opened.pagemap, _listed(area)))
        except OSError as error:
            raise opened.translated(error) from error
        return touches


def without_zeros(touches: Touches, zeros: Int64) -> Touches:
    """Return the touches without the page of zeros, which takes no memory and cannot leave. Pure.

    All of a guest that has migrated here, and was never written since, is mapped to it.
    """
    if not len(zeros):
        return touches
    rows = np.stack((touches.starts, touches.ends), axis=1)
    present = np.maximum(touches.present - runs.measure(zeros, rows) // PAGE_BYTES, 0)
    return replace(touches, present=present)


def with_unmapped(touches: Touches, number: int, resident: Int64, swapped: Int64) -> Touches:
    """Return the touches with pages of mapping `number` that are in memory unmapped, or swapped. Pure.

    A row is a block of 64 KiB, cut where its mapping ends, as in host/blocks.py; of a block without one a row is made.
    """
    mapping = touches.mappings[number]
    words = np.unique(np.concatenate([_words_of(resident), _words_of(swapped)]))
    if not len(words):
        return touches
    starts = np.maximum(words * WORD_BYTES, mapping.start)
    ends = np.minimum((words + 1) * WORD_BYTES, mapping.end)
    rows = np.stack((starts, ends), axis=1)
    is_known = np.isin(starts, touches.starts)
    fresh, at = ~is_known, np.searchsorted(touches.starts, starts[is_known])
    order = np.argsort(np.concatenate([touches.starts, starts[fresh]]), kind="stable")
    count = int(fresh.sum())

    def counted(before: Int64, pages: Int64) -> Int64:
        """Return a column with what is added to rows that are known, and with the new rows."""
        column = before.copy()
        column[at] += pages[is_known]
        return np.concatenate([column, pages[fresh]])[order]

    def padded(before: Int64) -> Int64:
        return np.concatenate([before, np.zeros(count, np.int64)])[order]

    pages = touches.touched_pages
    return replace(
        touches,
        starts=np.concatenate([touches.starts, starts[fresh]])[order],
        ends=np.concatenate([touches.ends, ends[fresh]])[order],
        mapping_index=np.concatenate([touches.mapping_index, np.full(count, number, np.int64)])[order],
        present=counted(touches.present, runs.measure(resident, rows) // PAGE_BYTES),
        swapped=counted(touches.swapped, runs.measure(swapped, rows) // PAGE_BYTES),
        touched=padded(touches.touched),
        dirty=padded(touches.dirty),
        unknown=padded(touches.unknown),
        is_huge=np.concatenate([touches.is_huge, np.zeros(count, np.bool_)])[order],
        touched_pages=None if pages is None else np.concatenate([pages, np.zeros(count, np.uint16)])[order],
    )


def _listed(some: Int64) -> list[tuple[int, int]]:
    return [(start, end) for start, end in some.tolist()]


def _area(file: SharedMemory) -> Int64:
    return np.array([(file.mapping.start, file.mapping.end)], np.int64)


def _words_of(some: Int64) -> Int64:
    """Return the numbers of the blocks of 64 KiB that runs reach into, ascending."""
    return runs.pages_of(_widened(some, WORD_BYTES), WORD_BYTES) // WORD_BYTES


def _regions_of(some: Int64) -> Int64:
    return runs.pages_of(_widened(some, REGION_BYTES), REGION_BYTES)


def _widened(some: Int64, size: int) -> Int64:
    if not len(some):
        return some
    wide = np.stack((some[:, 0] // size, -(-some[:, 1] // size)), axis=1) * size
    # Neighbours may meet or overlap once widened.
    ends = np.maximum.accumulate(wide[:, 1])
    wide[1:, 0] = np.maximum(wide[1:, 0], ends[:-1])
    return wide[wide[:, 1] > wide[:, 0]]
