# SPDX-License-Identifier: Apache-2.0
"""Pools of guest RAM: which blocks they have, and that rows of shared memory are theirs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memsculpt import profile
from memsculpt.domain.pages import PAGE_BYTES, Grain, Mapping, Touches
from memsculpt.domain.pool import BLOCK_BYTES, Pool, Zone
from memsculpt.domain.workload import Instance, WorkloadId

BASE = 1 << 40
RANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=5).map(
    lambda parts: tuple(_apart(parts))
)


def _apart(parts):
    at = BASE
    for gap, size in parts:
        at += gap * PAGE_BYTES
        yield at, at + size * PAGE_BYTES
        at += size * PAGE_BYTES


@given(RANGES, RANGES)
def test_ranges_within_are_whole_blocks_of_both(ranges, areas):
    """No byte lies outside either, every block that lies wholly in one range and in the areas is there."""
    found = profile.ranges_within(ranges, areas)

    covered = {page for start, end in areas for page in range(start, end, PAGE_BYTES)}
    wanted = {
        block
        for start, end in ranges
        for block in range(-(-start // BLOCK_BYTES) * BLOCK_BYTES, end // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES)
        if all(page in covered for page in range(block, block + BLOCK_BYTES, PAGE_BYTES))
    }
    assert {block for start, end in found for block in range(start, end, BLOCK_BYTES)} == wanted
    assert all(start % BLOCK_BYTES == end % BLOCK_BYTES == 0 for start, end in found)


def blocks_of(is_guest: bool):
    pool = Pool(
        id="vm:web-1",
        workload=WorkloadId("vm:web-1"),
        process=Instance(pid=7, start_ticks=9),
        ranges=((BASE, BASE + 4 * BLOCK_BYTES),),
        is_guest=is_guest,
    )
    return profile.begin_blocks(pool, 0.0)


def look(swapped: int) -> Touches:
    count = 4
    mapping = Mapping(start=BASE, end=BASE + 8 * BLOCK_BYTES, name="/memfd:ram", is_shared=True, is_file=True)
    starts = BASE + np.arange(count, dtype=np.int64) * BLOCK_BYTES
    zeros = np.zeros(count, np.int64)
    return Touches(
        mappings=(mapping,),
        grain=Grain.PAGE,
        starts=starts,
        ends=starts + BLOCK_BYTES,
        mapping_index=zeros,
        present=np.full(count, 16 - swapped, np.int64),
        touched=zeros.copy(),
        dirty=zeros.copy(),
        swapped=np.full(count, swapped, np.int64),
        unknown=zeros.copy(),
        is_huge=np.zeros(count, np.bool_),
        touched_pages=np.zeros(count, np.uint16),
    )


def test_shared_rows_count_in_a_guests_pool_and_in_no_other():
    """A process's shared memory is not its pool's; a guest's RAM is, whatever it is made of."""
    guest = profile.update_blocks(blocks_of(is_guest=True), look(swapped=4), 1.0)
    other = profile.update_blocks(blocks_of(is_guest=False), look(swapped=4), 1.0)

    assert guest.present.tolist() == [12] * 4
    assert guest.swapped.tolist() == [4] * 4
    assert other.present.tolist() == other.swapped.tolist() == [0] * 4


def test_zones_are_told_as_ranges():
    """Neighbours are one range."""
    blocks = profile.with_zone(blocks_of(is_guest=True), np.array([0, 1, 3]), Zone.COLD)

    assert profile.ranges_of_zone(blocks, Zone.COLD) == (
        (BASE, BASE + 2 * BLOCK_BYTES),
        (BASE + 3 * BLOCK_BYTES, BASE + 4 * BLOCK_BYTES),
    )
    assert profile.ranges_of_zone(blocks, Zone.HOT) == ()
