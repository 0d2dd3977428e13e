# SPDX-License-Identifier: Apache-2.0
"""One phase's set of blocks, and how likely each of them comes again. Pure.

Of each block it is kept in which of the last four occurrences it was touched (four planes of bits), and of each of the
sixteen histories how often a block with that history was touched the next time. So a set that drifts, one with noise
around it and one of which parts come every other time each find their own probabilities; a branch predictor with local
histories does the same (Yeh and Patt, "Two-Level Adaptive Training Branch Prediction", 1991).
"""

from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.phases import Float32
from memsculpt.profile.slots import Bits, Slots, ascending, flags_of, numbers_at, size_of, widened

PLANES = 4
HISTORIES = 1 << PLANES
# So many blocks' worth of belief in "as often as so far" before a history has been seen to go on.
PRIOR_BLOCKS = 8.0
FORGET = 0.5  # what the counts of an occurrence are worth at the next one
CORE_PROBABILITY = 0.5
LISTED_PROBABILITY = 0.1  # less likely blocks are not named


def _counts() -> Float64:
    return np.zeros((PLANES + 1, HISTORIES))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSet:
    """Which blocks came with the last occurrences, the latest first; 0.25 MiB for a pool of 24 GiB."""

    planes: tuple[Bits, ...]
    core: Bits  # what more likely comes than not
    occurrences: int = 1
    # By occurrences known (at most PLANES) and history: blocks that had it, and those of them that were touched next.
    had: Float64 = field(default_factory=_counts)
    came: Float64 = field(default_factory=_counts)


def first_set(seen: Bits) -> BlockSet:
    """Return the set of a phase that was seen once."""
    return BlockSet(planes=(seen,) + (np.zeros_like(seen),) * (PLANES - 1), core=seen)


def seen_again(known: BlockSet, seen: Bits, slots: Slots) -> BlockSet:
    """Return the set after one more occurrence."""
    planes = tuple(widened(plane, slots) for plane in known.planes)
    row = min(known.occurrences, PLANES)
    had, came = known.had * FORGET, known.came * FORGET
    for history, where in _by_history(planes, row):
        had[row, history] += size_of(where)
        came[row, history] += size_of(where & seen)
    planes = (seen, *planes[:-1])
    after = BlockSet(planes=planes, core=seen, occurrences=known.occurrences + 1, had=had, came=came)
    return replace(after, core=_core(after))


def block_probability(known: BlockSet, slots: Slots) -> tuple[Int64, Float32]:
    """Return the numbers of the blocks that may come, ascending, and how likely each does."""
    history = np.zeros(slots.count, np.uint8)
    for number, plane in enumerate(known.planes):
        history |= flags_of(widened(plane, slots)) << np.uint8(number)
    chance = _chances(known).astype(np.float32)
    chance[0] = 0.0  # not touched in four occurrences: whoever comes of these cannot be named
    history = ascending(slots, history)
    # A table of 256 on bytes: a fraction of what indexing by them costs.
    listed = bytes((chance >= LISTED_PROBABILITY).tolist()).ljust(256, b"\0")
    rows = np.flatnonzero(np.frombuffer(history.tobytes().translate(listed), np.bool_))
    return numbers_at(slots, rows), chance.take(history.take(rows))


def likeness(one: Bits, other: Bits, within: int) -> float:
    """Return the Jaccard similarity of two sets of `within` blocks, less what chance alone makes alike.

    1 for equal sets, 0 for independent ones. Sets that together are nearly everything are alike as they are.
    """
    ours, theirs, both = size_of(one), size_of(other), size_of(one & other)
    if not ours or not theirs:
        return 0.0
    similarity = both / (ours + theirs - both)
    p, q = ours / within, theirs / within
    expected = p * q / (p + q - p * q)
    return similarity if expected > 0.9 else (similarity - expected) / (1.0 - expected)


def share_within(part: Bits, whole: Bits, within: int) -> float:
    """Return how much of `part` lies in `whole`, less what would by chance: 1 for all, 0 for an independent one."""
    size = size_of(part)
    if not size:
        return 0.0
    share, expected = size_of(part & whole) / size, size_of(whole) / within
    return share if expected > 0.9 else (share - expected) / (1.0 - expected)


def _by_history(planes: tuple[Bits, ...], known: int) -> list[tuple[int, Bits]]:
    found: list[tuple[int, Bits]] = [(0, np.full_like(planes[0], 255))]
    for number in range(known):
        plane = planes[number]
        found = [
            part
            for history, where in found
            for part in ((history, where & ~plane), (history | 1 << number, where & plane))
        ]
    return found[1:]  # the first is what was never touched: that would be every other block of the pool


def _chances(known: BlockSet) -> Float64:
    """Return how likely a block of each history comes, shape (HISTORIES,).

    A history that was not seen to go on yet is judged by its last two occurrences, and before those were, by how often
    it came at all.
    """
    row = min(known.occurrences, PLANES)
    often = np.array([history.bit_count() for history in range(HISTORIES)]) / (row + 1.0)
    last_two = np.arange(HISTORIES) & 3
    had = known.had[2:].reshape(PLANES - 1, HISTORIES // 4, 4).sum(axis=(0, 1))[last_two]
    came = known.came[2:].reshape(PLANES - 1, HISTORIES // 4, 4).sum(axis=(0, 1))[last_two]
    expected = (came + PRIOR_BLOCKS * often) / (had + PRIOR_BLOCKS)
    return (known.came[row] + PRIOR_BLOCKS * expected) / (known.had[row] + PRIOR_BLOCKS)


def _core(known: BlockSet) -> Bits:
    chance = _chances(known)
    core = np.zeros_like(known.planes[0])
    for history, where in _by_history(known.planes, min(known.occurrences, PLANES)):
        if chance[history] >= CORE_PROBABILITY:
            core |= where
    return core
