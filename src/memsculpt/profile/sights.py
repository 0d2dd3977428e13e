# SPDX-License-Identifier: Apache-2.0
"""Blocks of a pool as the phase learner counts them, from what a look at all of it tells. Pure.

A block's number is its address divided by 64 KiB: it stays the same as mappings come and go around it.
"""

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import Grain, Touches
from memsculpt.domain.pool import BLOCK_BYTES


def blocks_of(touches: Touches) -> tuple[Int64, Int64, Int64, Int64]:
    """Return (numbers, touched, present, swapped pages) of the blocks of sculptable memory, ascending, each once.

    Rows larger than a block are cut, each part touched where the whole is. A source that knows whole mappings alone
    (Grain.MAPPING) tells nothing of blocks: none are returned.
    """
    none = np.empty(0, np.int64)
    if touches.grain is Grain.MAPPING or not len(touches.starts):
        return none, none, none, none
    ours = np.array([one.is_sculptable for one in touches.mappings], np.bool_)[touches.mapping_index]
    rows = np.flatnonzero(ours)
    first = touches.starts[rows] // BLOCK_BYTES
    counts = -(-touches.ends[rows] // BLOCK_BYTES) - first
    row = np.repeat(np.arange(len(rows)), counts)
    numbers = first[row] + (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts))
    columns = [column[rows][row] // counts[row] for column in (touches.present, touches.swapped)]
    touched = np.where(touches.touched[rows][row] > 0, np.maximum(touches.touched[rows][row] // counts[row], 1), 0)
    if not len(numbers):
        return none, none, none, none
    # Two mappings may meet inside a block.
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    present, swapped = (np.add.reduceat(column, firsts) for column in columns)
    return numbers[firsts], np.add.reduceat(touched, firsts), present, swapped


def joined(parts: list[tuple[Int64, Int64, Int64, Int64]]) -> tuple[Int64, Int64, Int64, Int64]:
    """Return the blocks of several stretches as one; a block that two of them share counts once."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if len(parts) == 1 or not len(columns[0]):
        return columns[0], columns[1], columns[2], columns[3]
    order = np.argsort(columns[0], kind="stable")
    numbers, touched, present, swapped = (column[order] for column in columns)
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    sums = [np.add.reduceat(column, firsts) for column in (touched, present, swapped)]
    return numbers[firsts], sums[0], sums[1], sums[2]
