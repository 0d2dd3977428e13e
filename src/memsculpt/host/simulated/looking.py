# SPDX-License-Identifier: Apache-2.0
"""Which chunks of a simulated process were touched: the simulated twin of a source of touched pages."""

from collections.abc import Callable, Sequence

import numpy as np

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Cleared, Extents, Grain, Mapping, Touches
from memsculpt.host.blocks import extents_from
from memsculpt.host.simulated.living import Process
from memsculpt.host.simulated.pages import ABSENT, RESIDENT, SWAPPED

SOURCES = ("simulated", "simulated stand-in")  # best first; they tell the same, and fail at different times
HEAP_START = 1 << 32  # all of a simulated process's private memory lies behind it, chunk after chunk


class SimulatedReader:
    """Tells of chunks (256 KiB unless the host was built otherwise). Fulfils host.protocol.PageReader."""

    grain = Grain.REGION

    def __init__(
        self, reach: Callable[[], Process], chunk_bytes: int, now_s: Callable[[], float], source: str = SOURCES[0]
    ) -> None:
        """`reach` returns the process; it raises Vanished, and Unavailable while the source does not work."""
        self._reach, self._chunk_bytes, self._now_s, self.source = reach, chunk_bytes, now_s, source

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Do nothing: nobody else clears bits here."""
        self._reach()

    def survey(self) -> Extents:
        """Return where the process has memory; see the protocol."""
        return extents_from(self.read())

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched since the last clear; see the protocol."""
        memory = self._reach().memory
        rows = np.flatnonzero((memory.state != ABSENT) & self._within(memory.chunks, ranges))
        starts = HEAP_START + rows * self._chunk_bytes
        pages = self._chunk_bytes // PAGE_BYTES
        present = np.where(memory.state[rows] == RESIDENT, pages, 0).astype(np.int64)
        is_touched = memory.touched_at_s > memory.cleared_at_s
        if memory.is_huge.any():  # which has one accessed bit
            huge = np.arange(memory.chunks) // (REGION_BYTES // self._chunk_bytes)
            is_touched |= memory.is_huge & np.isin(huge, huge[is_touched & memory.is_huge])
        is_touched = is_touched[rows]
        touched = np.where(is_touched, present, 0)
        heap = Mapping(
            start=HEAP_START,
            end=HEAP_START + memory.chunks * self._chunk_bytes,
            name="[heap]",
            is_shared=False,
            is_file=False,
        )
        return Touches(
            mappings=(heap,),
            grain=Grain.REGION,
            starts=starts.astype(np.int64),
            ends=(starts + self._chunk_bytes).astype(np.int64),
            mapping_index=np.zeros(len(rows), np.int64),
            present=present,
            touched=touched,
            dirty=np.zeros(len(rows), np.int64),
            swapped=np.where(memory.state[rows] == SWAPPED, pages, 0).astype(np.int64),
            unknown=np.zeros(len(rows), np.int64),
            is_huge=memory.is_huge[rows],
            has_dirty=False,
        )

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Begin a new interval; see the protocol."""
        memory = self._reach().memory
        inside = self._within(memory.chunks, ranges)
        memory.cleared_at_s[inside] = self._now_s()
        return Cleared(
            method="simulated",
            cleared_bytes=int(inside.sum()) * self._chunk_bytes,
            longest_hold_s=0.0,
            duration_s=0.0,
        )

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read and clear the range; see the protocol."""
        touches = self.read([(start, end)])
        self.clear([(start, end)])
        return touches

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _within(
        self, chunks: int, ranges: Sequence[tuple[int, int]] | None
    ) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        if ranges is None:
            return np.ones(chunks, np.bool_)
        starts = HEAP_START + np.arange(chunks) * self._chunk_bytes
        inside = np.zeros(chunks, np.bool_)
        for start, end in ranges:
            inside |= (starts + self._chunk_bytes > start) & (starts < end)
        return inside
