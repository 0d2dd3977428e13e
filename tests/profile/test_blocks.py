# SPDX-License-Identifier: Apache-2.0
"""Blocks from made-up looks: what they hold, how old their pages are, and how often pages of an age return."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.pages import REGION_BYTES, Extents, Grain
from memsculpt.domain.pool import AGE_CLASSES, AGE_MOST, Blocks, Pool, Tier, Zone
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.profile import blocks as profile
from tests.profile.test_heat import BLOCK, touches

HERE = 1 << 32


def pool(count: int, block_bytes: int = BLOCK, start: int = HERE) -> Pool:
    return Pool(
        id="web",
        workload=WorkloadId("web"),
        process=Instance(pid=1, start_ticks=1),
        ranges=((start, start + count * block_bytes),),
        block_bytes=block_bytes,
    )


def looked(count: int, *looks: tuple[int, ...], step_s: float = 10.0) -> Blocks:
    """Blocks after looks that each give a mask for every block; the first is at 10 s."""
    state = profile.begin(pool(count), 0.0)
    for number, masks in enumerate(looks):
        state = profile.update(state, touches(*masks, start=HERE), step_s * (number + 1))
    return state


def age_of(state: Blocks, row: int, page: int) -> int:
    return sum(int(state.ages[plane, row] >> page & 1) << plane for plane in range(len(state.ages)))


@given(st.lists(st.integers(0, 0xFFFF), min_size=2, max_size=24))
def test_an_age_is_the_number_of_looks_since_a_touch(masks):
    """Page by page, up to fifteen; each look of the whole history counts."""
    state = looked(1, (0xFFFF,), *((mask,) for mask in masks))
    for page in range(16):
        since = next((n for n, mask in enumerate(reversed(masks)) if mask >> page & 1), len(masks))
        assert age_of(state, 0, page) == min(since, AGE_MOST)
    classes = state.classes()
    assert sum(int(one[0]) for one in classes) == 0xFFFF  # every page is of one class


def test_returns_are_counted_by_age():
    """A page that returns after two looks counts for the class of two, and what was watched is told in seconds."""
    state = looked(1, (0xFFFF,), (0,), (0,), (0b1,), (0,))
    assert state.returned_pages.round(1).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    # 16 pages of age 0 for one look, 16 of age 1, 16 of age 2, then 15 of age 3 and one of age 0.
    assert state.watched_page_s[:3] == pytest.approx([170.0, 160.0, 310.0], rel=0.1)
    assert AGE_CLASSES[2] == 2


def test_a_block_remembers_how_long_it_was_idle_before_it_returned():
    state = looked(2, (0xFFFF, 0xFFFF), (0, 0), (0, 0), (0, 0), (1, 0))
    assert state.return_s.tolist() == [40.0, 0.0]


def test_more_accesses_make_more_heat():
    """A block of which half the pages are touched is less hot than one of which all are, and a still one is cold."""
    state = looked(3, (1, 1, 1), (0xFFFF, 0xFF, 0))
    assert state.heat[0] > 2 * state.heat[1] > 0.0
    assert state.heat[2] == 0.0


def test_what_left_and_came_back_shows():
    """Swapped blocks lie in compressed memory; one that returns is warm again."""
    state = looked(2, (0xFFFF, 0xFFFF), (0, 0))
    state = profile.with_zone(state, np.array([True, True]), Zone.COLD)
    gone = touches(0, 0, start=HERE)
    gone = dataclasses.replace(gone, present=np.array([0, 0]), swapped=np.array([16, 16]))
    state = profile.update(state, gone, 30.0)
    assert state.tier.tolist() == [Tier.COMPRESSED, Tier.COMPRESSED]
    assert state.zone_bytes(Zone.COLD) == 2 * BLOCK
    state = profile.update(state, touches(1, 0, start=HERE), 40.0)
    assert state.zone.tolist() == [Zone.WARM, Zone.COLD]


def test_what_was_sent_out_counts_as_gone_before_the_next_look():
    """Whole blocks and parts of them, no more than was there; what lies outside of the pool is nobody's."""
    state = looked(3, (0xFFFF,) * 3, (0, 0, 0))
    there = int(state.present[0])
    left = profile.with_left(
        state, np.array([[HERE - 4096, HERE + BLOCK + 3 * 4096], [HERE + 2 * BLOCK + 4096, HERE + 9 * BLOCK]])
    )

    assert left.present.tolist() == [0, there - 3, 1]
    assert (left.present + left.swapped == state.present + state.swapped).all()


@pytest.mark.parametrize("size", [1, 4])
@given(marked=st.sets(st.integers(0, 95)))
def test_where_pages_lie_is_kept_by_page(size: int, marked: set[int]):
    """Runs of pages on a slow node become bits, whatever blocks they cross; a block's tier goes by most of it."""
    blocks = 4 if size == 4 else 6
    state = profile.begin(pool(blocks // size or 1, size * BLOCK), 0.0)
    state = dataclasses.replace(state, present=np.full(state.pool.count, 16 * size, np.uint16))
    runs = [[HERE + page * 4096, HERE + (page + 1) * 4096] for page in sorted(marked)]
    found = profile.with_slow(state, np.array(runs, np.int64).reshape(-1, 2))
    wanted = [
        sum({1 << (page % (16 * size) // size) for page in marked if page // (16 * size) == row})
        for row in range(state.pool.count)
    ]
    assert found.slow.tolist() == wanted
    mostly = [2 * each.bit_count() > 16 for each in wanted]
    assert (found.tier == Tier.SLOW).tolist() == mostly
    assert not profile.with_slow(found, np.empty((0, 2), np.int64)).slow.any()


def test_what_lies_on_a_slow_node_stays_there_as_looks_pass_and_mappings_come():
    """A look tells that a page is in memory, not where; to the swap it leaves."""
    state = profile.with_slow(looked(2, (0xFFFF, 0xFFFF), (0, 0)), np.array([[HERE, HERE + BLOCK]]))
    assert state.tier.tolist() == [Tier.SLOW, Tier.DRAM]
    state = profile.update(state, touches(1, 1, start=HERE), 30.0)
    assert state.tier.tolist() == [Tier.SLOW, Tier.DRAM]
    wider = dataclasses.replace(state.pool, ranges=((HERE - BLOCK, HERE + 2 * BLOCK),))
    assert profile.moved_to(state, wider).slow.tolist() == [0, 0xFFFF, 0]
    gone = dataclasses.replace(touches(0, 0, start=HERE), present=np.array([0, 0]), swapped=np.array([16, 16]))
    assert profile.update(state, gone, 40.0).tier.tolist() == [Tier.COMPRESSED, Tier.COMPRESSED]


def test_memory_that_is_gone_holds_nothing():
    state = looked(3, (1, 1, 1), (1, None, 1))
    assert state.present.tolist() == [16, 0, 16]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_larger_blocks_have_sixteenths(size):
    """Page 20 of a block of 2 MiB lies in its first sixteenth, page 40 in its second."""
    rows = [0] * 32
    rows[1] = 1 << 4  # page 20
    rows[2] = 1 << 8  # page 40
    state = profile.begin(pool(32 // size, size * BLOCK), 0.0)
    for number in range(2):
        state = profile.update(state, touches(*rows, start=HERE), 10.0 * (number + 1))
    found = {
        int(row) * 16 + part for row, mask in enumerate(state.touched) for part in range(16) if int(mask) >> part & 1
    }
    assert found == {20 // size, 40 // size}
    assert state.present.tolist() == [16 * size] * (32 // size)


def test_rows_of_a_coarse_source_are_cut_into_blocks():
    """A row of 256 KiB that was touched touches all of its blocks; a source of whole mappings tells nothing."""
    row = touches(1, start=HERE, present=64)
    coarse = dataclasses.replace(row, ends=row.starts + 4 * BLOCK, touched_pages=None, grain=Grain.REGION)
    state = profile.begin(pool(4), 0.0)
    for number in range(2):
        state = profile.update(state, coarse, 10.0 * (number + 1))
    assert state.present.tolist() == [16] * 4
    assert state.touched.tolist() == [0xFFFF] * 4
    assert profile.update(state, dataclasses.replace(coarse, grain=Grain.MAPPING), 30.0) is state


def test_a_part_may_be_looked_at_alone():
    state = looked(4, (0xFFFF,) * 4)
    part = profile.update(state, touches(0, 0, start=HERE), 20.0, stretch=(HERE, HERE + 2 * BLOCK))
    assert part.looked_at_s.tolist() == [20.0, 20.0, 10.0, 10.0]
    assert [age_of(part, row, 0) for row in range(4)] == [1, 1, 0, 0]


def test_a_pool_that_grows_keeps_what_is_known():
    state = looked(2, (1, 1), (1, 0))
    grown = profile.moved_to(state, pool(4))
    assert grown.looked_at_s[:2].tolist() == state.looked_at_s.tolist()
    assert np.isnan(grown.looked_at_s[2:]).all()
    assert profile.moved_to(state, state.pool) is state


def test_ranges_come_from_where_there_is_memory():
    regions = np.array([0, 1, 5], np.int64) * REGION_BYTES
    extents = Extents(regions=regions, present=np.array([1, 1, 1], np.int64))
    assert profile.ranges_of(extents) == ((0, 2 * REGION_BYTES), (5 * REGION_BYTES, 6 * REGION_BYTES))


def test_a_block_costs_little():
    """24 GiB are 393,216 blocks, and they take less than 16 MiB."""
    state = profile.begin(pool(1000), 0.0)
    columns = [getattr(state, name) for name in state.__slots__ if isinstance(getattr(state, name), np.ndarray)]
    assert sum(column.nbytes for column in columns) / 1000 * 393_216 < 16 << 20


@pytest.mark.parametrize(
    ("ranges", "size"), [(((0, 1 << 16),), 1 << 15), (((0, 100),), BLOCK), (((BLOCK, 2 * BLOCK), (0, BLOCK)), BLOCK)]
)
def test_a_pool_is_made_of_whole_blocks(ranges, size):
    with pytest.raises(ValueError, match="block"):
        Pool(id="x", workload=WorkloadId("x"), process=Instance(pid=1, start_ticks=1), ranges=ranges, block_bytes=size)


def test_files_and_shared_memory_are_none_of_a_pool_s():
    """A pool's ranges are whole regions, in which other mappings may lie as well."""
    row = touches(1, 1, start=HERE)
    other = dataclasses.replace(row.mappings[0], name="/usr/lib/libc.so.6", is_file=True)
    mixed = dataclasses.replace(row, mappings=(*row.mappings, other), mapping_index=np.array([0, 1]))
    state = profile.update(profile.begin(pool(2), 0.0), mixed, 10.0)
    assert state.present.tolist() == [16, 0]
