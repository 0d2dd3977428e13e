# SPDX-License-Identifier: Apache-2.0
"""A walk through a pool: blocks that are newly touched one after the other, at a stride. Pure."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64

# So much of the steps between new blocks has to be the same step.
REGULAR_RATIO = 0.7
SAMPLED_STEPS = 1024
FAR_BLOCKS = 256  # 16 MiB of 64 KiB: no stride is as long
NEW_LEAST = 2  # of blocks: fewer show no stride
# A walk is believed when it went on as foretold so often.
CONFIRMED_LEAST = 2
AHEAD_MOST = 4096  # blocks, 256 MiB of 64 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A walk that may be under way; strides are in blocks, and negative ones go down."""

    at_s: float = 0.0
    stride: int = 0
    next_block: int = -1
    next_below: int = -1  # of a first stretch, which may go down
    blocks_per_s: float = 0.0
    confirmed: int = 0


def follow(stream: Stream, fresh: Int64, at_s: float) -> Stream:
    """Return the walk after an interval in which the blocks `fresh` were touched that were not before; ascending."""
    fresh = _main_stretch(fresh)
    if len(fresh) < NEW_LEAST:
        return Stream(at_s=at_s)
    steps = np.diff(fresh)
    # Of a walk most steps are equal, so a part of them tells which it is; they are all counted below.
    stride = int(np.median(steps[:: 1 + len(steps) // SAMPLED_STEPS]))
    if np.count_nonzero(steps == stride) < REGULAR_RATIO * len(steps):
        return Stream(at_s=at_s)
    low, high = int(fresh[0]), int(fresh[-1])
    pace = len(fresh) / max(at_s - stream.at_s, 1e-3)
    up, down = (stream.next_block, stream.next_below) if stream.stride == 0 else (stream.next_block,) * 2
    for sign, begin, end, expected in ((1, low, high, up), (-1, high, low, down)):
        # The border block may have been touched in both intervals.
        if expected >= 0 and abs(begin - expected) <= 2 * stride and stream.stride * sign >= 0:
            pace = pace if stream.blocks_per_s == 0.0 else 0.5 * (pace + stream.blocks_per_s)
            return Stream(
                at_s=at_s,
                stride=sign * stride,
                next_block=end + sign * stride,
                blocks_per_s=pace,
                confirmed=stream.confirmed + 1,
            )
    return Stream(at_s=at_s, next_block=high + stride, next_below=low - stride, blocks_per_s=pace)


def _main_stretch(fresh: Int64) -> Int64:
    """Return the blocks without those that lie far away from most of them; none where there is no such stretch.

    A program that walks through a table touches a few blocks of its own besides, and so do its neighbours in the pool.
    """
    edges = np.concatenate(([0], np.flatnonzero(np.diff(fresh) > FAR_BLOCKS) + 1, [len(fresh)]))
    if len(edges) <= 2:
        return fresh
    sizes = np.diff(edges)
    longest = int(sizes.argmax())
    most = int(sizes[longest])
    return fresh[edges[longest] : edges[longest + 1]] if most >= REGULAR_RATIO * len(fresh) else fresh[:0]


def goes_on(stream: Stream) -> bool:
    """Tell whether the last interval went on with a walk."""
    return stream.confirmed > 0


def ahead(stream: Stream, now_s: float, within_s: float) -> Int64:
    """Return the blocks that the walk will reach within the time, in the order in which it will; none if unsure."""
    if stream.confirmed < CONFIRMED_LEAST:
        return np.empty(0, np.int64)
    count = int(min(AHEAD_MOST, np.ceil(stream.blocks_per_s * (now_s - stream.at_s + within_s))))
    blocks = stream.next_block + stream.stride * np.arange(count, dtype=np.int64)
    return blocks[blocks >= 0]
