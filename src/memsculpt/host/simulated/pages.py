# SPDX-License-Identifier: Apache-2.0
"""Memory in chunks: what is in main memory, what is in swap, and who is charged for it.

A real kernel keeps 4 KiB pages; a simulation of an hour cannot. A *chunk* is a run of pages (256 KiB by
default) that are touched, evicted and brought back together, so counts of chunks stand for counts of pages
times `pages_per_chunk`. Everything that a host reports in bytes is a whole number of chunks.
"""

import numpy as np
import numpy.typing as npt

ABSENT, RESIDENT, SWAPPED = 0, 1, 2

Chunks = npt.NDArray[np.intp]
"""Positions of chunks within a region, shape (n,)."""


class Region:
    """The private memory of one process, or one file in the page cache: columns by chunk."""

    __slots__ = (
        "cleared_at_s",
        "homes",
        "is_file",
        "is_huge",
        "is_slow",
        "left_order",
        "owner",
        "resident_chunks",
        "state",
        "swapped_chunks",
        "touched_at_s",
    )

    def __init__(self, *, chunks: int, is_file: bool, home: int) -> None:
        self.is_file = is_file
        self.state = np.zeros(chunks, dtype=np.int8)
        self.is_huge = np.zeros(chunks, dtype=np.bool_)  # whole regions of 2 MiB only
        self.is_slow = np.zeros(chunks, dtype=np.bool_)  # in memory, on the node without processors
        self.touched_at_s = np.zeros(chunks, dtype=np.float64)
        self.cleared_at_s = np.full(chunks, -1.0)  # when accessed bits were cleared, by whoever it was
        self.left_order = np.zeros(chunks, dtype=np.int64)  # counts evictions of the whole host; larger left later
        self.owner = np.full(chunks, home, dtype=np.int32)  # number of the cgroup that is charged for the chunk
        self.homes = {home}  # the owners that occur: one, unless the process was moved
        self.resident_chunks = 0
        self.swapped_chunks = 0

    @property
    def chunks(self) -> int:
        """Return the room of the region: the most chunks it can hold now."""
        return len(self.state)

    @property
    def present_chunks(self) -> int:
        """Return how many chunks have content, in memory or in swap."""
        return self.resident_chunks + self.swapped_chunks

    def widen(self, chunks: int, home: int) -> None:
        """Make room for `chunks`, in steps of a quarter so that a slow leak does not copy every tick."""
        if chunks <= self.chunks:
            return
        more = max(chunks, self.chunks + self.chunks // 4) - self.chunks
        self.state = np.concatenate([self.state, np.zeros(more, dtype=np.int8)])
        self.is_huge = np.concatenate([self.is_huge, np.zeros(more, dtype=np.bool_)])
        self.is_slow = np.concatenate([self.is_slow, np.zeros(more, dtype=np.bool_)])
        self.touched_at_s = np.concatenate([self.touched_at_s, np.zeros(more)])
        self.cleared_at_s = np.concatenate([self.cleared_at_s, np.full(more, -1.0)])
        self.left_order = np.concatenate([self.left_order, np.zeros(more, dtype=np.int64)])
        self.owner = np.concatenate([self.owner, np.full(more, home, dtype=np.int32)])

    def split(self, chunks: Chunks, chunks_per_huge: int) -> None:
        """Make the huge pages small that hold any of the chunks."""
        if chunks_per_huge > 1 and self.is_huge.any():
            touched = np.unique(chunks // chunks_per_huge)
            self.is_huge[np.isin(np.arange(self.chunks) // chunks_per_huge, touched)] = False

    def absent_below(self, chunks: int) -> Chunks:
        """Return the chunks below `chunks` that were never touched, lowest address first."""
        return (self.state[:chunks] == ABSENT).nonzero()[0]

    def resident(self) -> Chunks:
        """Return the chunks in main memory, lowest address first."""
        return (self.state == RESIDENT).nonzero()[0]

    def last_left_first(self) -> Chunks:
        """Return the chunks in swap, those that left last coming first."""
        swapped = (self.state == SWAPPED).nonzero()[0]
        return swapped[np.argsort(-self.left_order[swapped], kind="stable")]

    def adopt_absent(self, home: int) -> None:
        """Have every chunk that has no content yet charged to `home` when it gets some."""
        self.owner[self.state == ABSENT] = home
        self.homes = {int(owner) for owner in np.unique(self.owner)} if self.chunks else {home}
