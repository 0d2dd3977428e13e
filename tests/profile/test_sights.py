# SPDX-License-Identifier: Apache-2.0
"""Blocks as the phase learner counts them: of sculptable memory only, each once, from rows of any size."""

import numpy as np

from memsculpt.domain.pages import PAGE_BYTES, Grain, Mapping, Touches
from memsculpt.domain.pool import BLOCK_BYTES
from memsculpt.profile import blocks_seen, joined_blocks

HEAP = Mapping(start=0, end=1 << 40, name="[heap]", is_shared=False, is_file=False)
FILE = Mapping(start=0, end=1 << 40, name="/usr/lib/libc.so", is_shared=False, is_file=True)


def touches(rows, grain=Grain.REGION):
    """Rows of (start block, blocks, touched, present, swapped pages, mapping)."""
    starts = np.array([row[0] for row in rows], np.int64) * BLOCK_BYTES
    count = len(rows)
    return Touches(
        mappings=(HEAP, FILE),
        grain=grain,
        starts=starts,
        ends=starts + np.array([row[1] for row in rows], np.int64) * BLOCK_BYTES,
        mapping_index=np.array([row[5] for row in rows], np.int64),
        present=np.array([row[3] for row in rows], np.int64),
        touched=np.array([row[2] for row in rows], np.int64),
        dirty=np.zeros(count, np.int64),
        swapped=np.array([row[4] for row in rows], np.int64),
        unknown=np.zeros(count, np.int64),
        is_huge=np.zeros(count, np.bool_),
    )


def test_larger_rows_are_cut_and_files_left_out():
    numbers, touched, present, swapped = blocks_seen(
        touches([(4, 4, 64, 64, 0, 0), (20, 1, 3, 16, 0, 1), (32, 2, 0, 0, 32, 0)])
    )

    assert numbers.tolist() == [4, 5, 6, 7, 32, 33]
    assert (touched > 0).tolist() == [True] * 4 + [False] * 2
    assert present.tolist() == [16] * 4 + [0, 0]
    assert swapped.tolist() == [0] * 4 + [16, 16]


def test_mappings_that_meet_inside_a_block_are_one_block():
    half = touches([(4, 1, 8, 8, 0, 0), (4, 1, 0, 4, 4, 0)])
    numbers, touched, present, swapped = blocks_seen(half)

    assert (numbers.tolist(), touched.tolist(), present.tolist(), swapped.tolist()) == ([4], [8], [12], [4])


def test_a_source_of_whole_mappings_tells_nothing_of_blocks():
    assert [len(column) for column in blocks_seen(touches([(0, 1, 1, 1, 0, 0)], Grain.MAPPING))] == [0] * 4
    assert [len(column) for column in blocks_seen(touches([]))] == [0] * 4


def test_stretches_are_put_together_by_address():
    parts = [
        blocks_seen(touches([(8, 1, 1, 16, 0, 0)])),
        blocks_seen(touches([(2, 1, 0, 16, 0, 0), (8, 1, 2, 0, 1, 0)])),
    ]
    numbers, touched, present, swapped = joined_blocks(parts)

    assert numbers.tolist() == [2, 8]
    assert touched.tolist() == [0, 3]
    assert (present * PAGE_BYTES).tolist() == [BLOCK_BYTES, BLOCK_BYTES]
    assert swapped.tolist() == [0, 1]
