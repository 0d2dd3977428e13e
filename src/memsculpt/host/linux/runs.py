# SPDX-License-Identifier: Apache-2.0
"""Sets of pages as runs: ascending, disjoint address ranges (start, end), int64, shape (n_runs, 2).

A heap of ten GiB is some runs, and two million pages: the agent must stay small whatever it looks at.
All functions are pure.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Int64

NONE: Int64 = np.empty((0, 2), np.int64)
NONE.flags.writeable = False


def runs_of(flags: Bool, start: int, page_bytes: int) -> Int64:
    """Return where `flags`, one for each page from the address `start` on, is set."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2) * page_bytes + start


def joined(parts: list[Int64], gap_bytes: int = 0) -> Int64:
    """Return ascending parts as one; neighbours that are at most `gap_bytes` apart become one run, gap and all."""
    runs = np.concatenate(parts) if parts else NONE
    if len(runs) < 2:
        return runs
    breaks = np.flatnonzero(runs[1:, 0] - runs[:-1, 1] > gap_bytes)
    starts = runs[np.concatenate(([0], breaks + 1)), 0]
    ends = runs[np.concatenate((breaks, [len(runs) - 1])), 1]
    return np.stack((starts, ends), axis=1)


def size_of(runs: Int64) -> int:
    """Return how many bytes the runs hold."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def union(one: Int64, other: Int64) -> Int64:
    """Return what is in either."""
    return _where(one, other, (1, 2, 3))


def intersection(one: Int64, other: Int64) -> Int64:
    """Return what is in both."""
    return _where(one, other, (3,))


def difference(one: Int64, other: Int64) -> Int64:
    """Return what is in the first and not in the second."""
    return _where(one, other, (1,))


def first(runs: Int64, size_bytes: int) -> Int64:
    """Return the lowest `size_bytes`, the last run cut; all of it when that is less."""
    before = np.concatenate(([0], np.cumsum(runs[:, 1] - runs[:, 0])))[:-1]
    taken = runs[before < size_bytes].copy()
    if len(taken):
        taken[-1, 1] = min(taken[-1, 1], taken[-1, 0] + size_bytes - before[len(taken) - 1])
    return taken


def last(runs: Int64, size_bytes: int) -> Int64:
    """Return the highest `size_bytes`, the first run cut; all of it when that is less."""
    # Mirrored at zero, the highest are the lowest.
    return -first(-runs[::-1, ::-1], size_bytes)[::-1, ::-1]


def split(runs: Int64, at: list[int]) -> Int64:
    """Return the runs cut at these addresses, for use as a list only: neighbours are no longer one run."""
    cuts = np.array(at, np.int64)
    holder = np.searchsorted(runs[:, 0], cuts, side="left") - 1
    inside = cuts[(holder >= 0) & (cuts < runs[holder, 1])] if len(runs) else cuts[:0]
    edges = np.sort(np.concatenate((runs.ravel(), inside, inside)))
    return edges.reshape(-1, 2)


def measure(runs: Int64, ranges: Int64) -> Int64:
    """Return how many bytes of the runs lie in each of `ranges` (start, end), shape (n_ranges,)."""
    sizes = np.concatenate(([0], np.cumsum(runs[:, 1] - runs[:, 0])))
    edges = ranges.ravel()
    row = np.searchsorted(runs[:, 0], edges, side="right")
    # Up to an address lie the whole runs before it, less what of the last one is behind it.
    over = np.where(row > 0, np.maximum(runs[np.maximum(row - 1, 0), 1] - edges, 0), 0) if len(runs) else 0 * edges
    below = (sizes[row] - over).reshape(-1, 2)
    return below[:, 1] - below[:, 0]


def pages_of(runs: Int64, page_bytes: int) -> Int64:
    """Return the address of every page, ascending, shape (n_pages,). For few pages only: this is not small."""
    counts = (runs[:, 1] - runs[:, 0]) // page_bytes
    within: Int64 = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(runs[:, 0], counts) + within * page_bytes


def _where(one: Int64, other: Int64, wanted: tuple[int, ...]) -> Int64:
    """Return where the state is wanted; the state is 1 in `one`, 2 in `other`, 3 in both."""
    edges = np.concatenate((one.ravel(), other.ravel()))
    steps = np.concatenate((np.tile((1, -1), len(one)), np.tile((2, -2), len(other))))
    order = np.argsort(edges, kind="stable")
    edges, states = edges[order], np.cumsum(steps[order])
    held = np.flatnonzero(np.isin(states[:-1], wanted) & (edges[1:] > edges[:-1]))
    return joined([np.stack((edges[held], edges[held + 1]), axis=1)])
