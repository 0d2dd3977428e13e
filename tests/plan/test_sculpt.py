# SPDX-License-Identifier: Apache-2.0
"""Which blocks are gathered, which leave, and that nothing is chosen without knowing its price."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES
from memsculpt.domain.pool import AGE_CLASSES, INCOMPRESSIBLE, PARTS, Blocks, ColdTo, ColdZone, Pool, Tier, Zone
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.plan import sculpt

MIB = 1 << 20
HERE = 1 << 32
BLOCKS = 32  # of a region


def blocks(regions: int, **columns: object) -> Blocks:
    """Regions of which every page is in memory, was watched for long, and is as old as `ages` says (15)."""
    count = regions * BLOCKS
    pool = Pool(
        id="web",
        workload=WorkloadId("web"),
        process=Instance(pid=1, start_ticks=1),
        ranges=((HERE, HERE + regions * REGION_BYTES),),
    )
    values = {
        "zone": np.full(count, Zone.WARM, np.uint8),
        "tier": np.full(count, Tier.DRAM, np.uint8),
        "heat": np.ones(count, np.float16),
        "touched_at_s": np.zeros(count, np.float32),
        "looked_at_s": np.full(count, 1000.0, np.float32),
        "return_s": np.zeros(count, np.float32),
        "present": np.full(count, 16, np.uint16),
        "swapped": np.zeros(count, np.uint16),
        "flags": np.zeros(count, np.uint8),
        "ages": np.full((4, count), 0xFFFF, np.uint16),
        "touched": np.zeros(count, np.uint16),
        "slow": np.zeros(count, np.uint16),
        "watched_page_s": np.full(len(AGE_CLASSES), 1e9),
        "returned_pages": np.zeros(len(AGE_CLASSES)),
        "interval_s": 10.0,
    }
    return Blocks(pool=pool, began_s=0.0, **(values | columns))


def size_of(ranges) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def hot(regions: int, **columns: object) -> Blocks:
    return blocks(regions, touched=np.full(regions * BLOCKS, 0xFFFF, np.uint16), **columns)


def test_the_hottest_regions_are_gathered_first():
    heat = np.repeat([1.0, 5.0, 3.0, 2.0], BLOCKS).astype(np.float16)
    chosen = sculpt.choose_hot(hot(4, heat=heat), 2 * REGION_BYTES, 1000.0)
    assert chosen.collapse.tolist() == [[HERE + REGION_BYTES, HERE + 3 * REGION_BYTES]]
    assert chosen.gain_s_per_s == pytest.approx(0.15 * 8 / 11)


def test_a_sparse_region_is_not_gathered():
    """What was never touched would be filled: a region with many holes is left, and told."""
    present = np.full(2 * BLOCKS, 16, np.uint16)
    present[:BLOCKS] = 14
    chosen = sculpt.choose_hot(hot(2, present=present), 8 * REGION_BYTES, 1000.0)
    assert chosen.collapse.tolist() == [[HERE + REGION_BYTES, HERE + 2 * REGION_BYTES]]
    assert chosen.sparse_bytes == REGION_BYTES
    assert chosen.fills_bytes == 0


@given(st.lists(st.integers(8, 16), min_size=BLOCKS * 4, max_size=BLOCKS * 4), st.integers(0, 8 * REGION_BYTES))
def test_no_more_is_filled_than_the_bounds_allow(present, size_bytes):
    state = hot(4, present=np.array(present, np.uint16))
    chosen = sculpt.choose_hot(state, size_bytes, 1000.0)
    rules = sculpt.SculptRules()
    assert size_of(chosen.collapse) <= size_bytes
    assert chosen.fills_bytes <= rules.grown_most_ratio * sum(present) * PAGE_BYTES
    assert chosen.fills_bytes <= rules.holes_most_pages * PAGE_BYTES * size_of(chosen.collapse) // REGION_BYTES


def test_what_would_not_pay_is_left():
    """A program that hardly runs saves nothing; one whose heat is spread thin saves less than a collapse costs."""
    assert size_of(sculpt.choose_hot(hot(4), 1 << 40, 1000.0, cpu_ratio=0.0).collapse) == 0
    dear = sculpt.choose_hot(hot(4), 1 << 40, 1000.0, cpu_ratio=0.0).dear_bytes
    assert dear == 4 * REGION_BYTES


def test_nothing_is_gathered_that_is_still_or_swapped_or_huge():
    assert size_of(sculpt.choose_hot(blocks(2), 1 << 40, 1000.0).collapse) == 0
    swapped = np.full(2 * BLOCKS, 1, np.uint16)
    assert size_of(sculpt.choose_hot(hot(2, swapped=swapped), 1 << 40, 1000.0).collapse) == 0
    huge = np.full(2 * BLOCKS, Tier.HUGE, np.uint8)
    assert size_of(sculpt.choose_hot(hot(2, tier=huge), 1 << 40, 1000.0).collapse) == 0


def test_a_huge_page_that_has_cooled_is_split_if_it_is_ours():
    """What the program gathered itself is its own business."""
    huge = np.full(2 * BLOCKS, Tier.HUGE, np.uint8)
    zone = np.repeat([Zone.HOT, Zone.WARM], BLOCKS).astype(np.uint8)
    state = blocks(2, tier=huge, zone=zone)
    assert sculpt.choose_hot(state, 0, 59.0).split.tolist() == []
    assert sculpt.choose_hot(state, 0, 61.0).split.tolist() == [[HERE, HERE + REGION_BYTES]]


def test_the_oldest_leave_first():
    touched_at_s = np.arange(2 * BLOCKS, dtype=np.float32)[::-1].copy()
    chosen = sculpt.choose_cold(blocks(2, touched_at_s=touched_at_s), 4 * 16 * PAGE_BYTES, 1000.0)
    end = HERE + 2 * REGION_BYTES
    assert chosen.leave.tolist() == [[end - 4 * 16 * PAGE_BYTES, end]]
    assert chosen.size_bytes == 4 * 16 * PAGE_BYTES
    assert chosen.idle_least_s == 120.0


def test_pages_leave_alone_where_their_block_stays():
    """Page 3 of each block is in use: the others go, in two stretches a block."""
    ages = np.full((4, BLOCKS), 0xFFFF & ~0b1000, np.uint16)
    chosen = sculpt.choose_cold(blocks(1, ages=ages, touched=np.full(BLOCKS, 0b1000, np.uint16)), 1 << 30, 1000.0)
    assert chosen.size_bytes == 15 * BLOCKS * PAGE_BYTES
    assert chosen.leave[:2].tolist() == [[HERE, HERE + 3 * PAGE_BYTES], [HERE + 4 * PAGE_BYTES, HERE + 19 * PAGE_BYTES]]


@given(st.integers(0, 4 * REGION_BYTES), st.floats(0.0, 1e9), st.floats(0.0, 0.01))
def test_no_more_leaves_than_was_asked_and_may_be_lost(size_bytes, returned, loss_ratio):
    rules = sculpt.SculptRules()
    state = blocks(2, returned_pages=np.full(len(AGE_CLASSES), returned))
    chosen = sculpt.choose_cold(state, size_bytes, 1000.0, loss_ratio=loss_ratio)
    assert chosen.size_bytes <= size_bytes
    assert chosen.loss_ratio + loss_ratio <= rules.loss_most_ratio + 1e-9 or not chosen.size_bytes
    assert (chosen.size_bytes == 0) == (size_of(chosen.leave) == 0)
    assert chosen.reason or size_bytes - chosen.size_bytes < 16 * PAGE_BYTES


@pytest.mark.parametrize(
    "columns",
    [
        {"watched_page_s": np.zeros(len(AGE_CLASSES))},  # nobody knows how likely they return
        {"return_s": np.full(BLOCKS, 900.0, np.float32)},  # they took as long the last time
        {"flags": np.full(BLOCKS, INCOMPRESSIBLE, np.uint8)},
        {"zone": np.full(BLOCKS, Zone.PREFETCH, np.uint8)},  # just brought back
        {"present": np.zeros(BLOCKS, np.uint16)},
        {"looked_at_s": np.full(BLOCKS, np.nan, np.float32)},
        {"ages": np.zeros((4, BLOCKS), np.uint16)},
    ],
)
def test_what_may_be_needed_stays(columns):
    chosen = sculpt.choose_cold(blocks(1, **columns), 1 << 30, 1000.0)
    assert size_of(chosen.leave) == 0
    assert chosen.reason


def test_pages_touched_at_random_stay():
    """Whose pages return as often whatever their age takes a share so small that it hardly shows."""
    hazard_per_s = 0.05
    watched = np.full(len(AGE_CLASSES), 1e6)
    state = blocks(16, watched_page_s=watched, returned_pages=watched * hazard_per_s)
    chosen = sculpt.choose_cold(state, 1 << 30, 1000.0)
    rules = sculpt.SculptRules()
    assert chosen.size_bytes <= rules.loss_most_ratio / rules.fault_s / hazard_per_s * PAGE_BYTES


def test_what_is_due_comes_back():
    """Blocks that are gone, and were idle for as long before they returned the last time."""
    swapped = np.full(BLOCKS, 16, np.uint16)
    return_s = np.where(np.arange(BLOCKS) < 2, 100.0, 500.0).astype(np.float32)
    state = blocks(1, swapped=swapped, present=np.zeros(BLOCKS, np.uint16), return_s=return_s)
    assert sculpt.choose_due(state, 5.0, 97.0).come.tolist() == [[HERE, HERE + 2 * 16 * PAGE_BYTES]]
    assert size_of(sculpt.choose_due(state, 5.0, 50.0).come) == 0


@given(st.lists(st.integers(0, 0xFFFF), min_size=BLOCKS, max_size=BLOCKS))
def test_ranges_are_exactly_the_pages(masks):
    """However the pages lie."""
    state = blocks(1, ages=np.tile(np.array(masks, np.uint16), (4, 1)))
    chosen = sculpt.choose_cold(state, 1 << 30, 1000.0)
    got = {page for start, end in chosen.leave.tolist() for page in range(start, end, PAGE_BYTES)}
    wanted = {
        HERE + (row * PARTS + page) * PAGE_BYTES
        for row, mask in enumerate(masks)
        for page in range(PARTS)
        if mask >> page & 1
    }
    assert got == wanted
    assert (chosen.leave[1:, 0] > chosen.leave[:-1, 1]).all()


def test_choosing_changes_nothing():
    state = hot(1)
    with pytest.raises(ValueError, match="read-only"):
        state.heat[0] = 1.0
    assert dataclasses.is_dataclass(state)


# --- a slow node ------------------------------------------------------------------------------------------------------


def bits(count: int, *rows: int) -> np.ndarray:
    found = np.zeros(count, np.uint16)
    found[list(rows)] = 0xFFFF
    return found


def test_cold_pages_go_to_the_slow_node_first_and_the_oldest_to_the_swap():
    """Half fits there: it is the younger half, for it is the likelier to return."""
    ages = np.full((4, 2 * BLOCKS), 0xFFFF, np.uint16)
    ages[1:3, BLOCKS:] = 0  # the second region's pages are nine looks old, the first's fifteen
    state = blocks(2, ages=ages)
    half = sculpt.choose_cold(state, 4 * MIB, 1000.0, slow_room_bytes=2 * MIB)
    assert half.demote.tolist() == [[HERE + REGION_BYTES, HERE + 2 * REGION_BYTES]]
    assert half.leave.tolist() == [[HERE, HERE + REGION_BYTES]]
    assert half.size_bytes == 4 * MIB
    told = sculpt.explain_sculpt(ColdZone(size_bytes=4 * MIB), half)
    assert "2.0 MiB of it to the slow node, where it is used without a fault, the oldest to the swap" in told
    all_near = sculpt.choose_cold(state, 4 * MIB, 1000.0, slow_room_bytes=8 * MIB)
    assert (size_of(all_near.demote), size_of(all_near.leave)) == (4 * MIB, 0)
    assert all_near.loss_ratio < half.loss_ratio
    only = sculpt.choose_cold(state, 4 * MIB, 1000.0, slow_room_bytes=MIB, to=ColdTo.SLOW_NODE)
    assert (size_of(only.demote), size_of(only.leave)) == (MIB, 0)


def test_what_lies_there_goes_to_the_swap_only_when_that_is_asked():
    """It is out of fast memory already; for what its workload is charged it counts as ever."""
    state = blocks(2, slow=bits(2 * BLOCKS, *range(BLOCKS)))
    near = sculpt.choose_cold(state, 8 * MIB, 1000.0, slow_room_bytes=8 * MIB)
    assert near.demote.tolist() == [[HERE + REGION_BYTES, HERE + 2 * REGION_BYTES]]
    out = sculpt.choose_cold(state, 8 * MIB, 1000.0, slow_room_bytes=8 * MIB, to=ColdTo.SWAP)
    assert (size_of(out.demote), size_of(out.leave)) == (0, 4 * MIB)


def test_what_does_not_compress_may_go_to_the_slow_node():
    state = blocks(1, flags=np.full(BLOCKS, INCOMPRESSIBLE, np.uint8))
    assert size_of(sculpt.choose_cold(state, 2 * MIB, 1000.0).leave) == 0
    assert size_of(sculpt.choose_cold(state, 2 * MIB, 1000.0, slow_room_bytes=2 * MIB).demote) == 2 * MIB


def test_pages_in_use_come_back_from_there_and_blocks_that_are_due():
    """Of a block that was touched its touched pages, of one that is due by its last return all of it."""
    touched, slow = np.zeros(BLOCKS, np.uint16), bits(BLOCKS, 0, 1, 2)
    touched[:2] = 0b11, 0
    touched_at_s, return_s = np.full(BLOCKS, 500.0, np.float32), np.zeros(BLOCKS, np.float32)
    return_s[2] = 510.0
    state = blocks(1, touched=touched, slow=slow, touched_at_s=touched_at_s, return_s=return_s)
    found = sculpt.choose_returned(state, MIB, 1000.0)
    assert found.promote.tolist() == [[HERE, HERE + 2 * PAGE_BYTES], [HERE + 2 * 65536, HERE + 3 * 65536]]
    assert found.size_bytes == size_of(found.promote) == 18 * PAGE_BYTES
    assert sculpt.choose_returned(state, MIB, 900.0).size_bytes == 2 * PAGE_BYTES
    assert sculpt.choose_returned(state, PAGE_BYTES, 900.0).size_bytes == 0
    due = sculpt.choose_due(state, 20.0, 1000.0)
    assert due.promote.tolist() == [[HERE + 2 * 65536, HERE + 3 * 65536]]


def test_a_region_of_which_a_page_lies_there_is_not_gathered():
    slow = np.zeros(2 * BLOCKS, np.uint16)
    slow[3] = 1
    chosen = sculpt.choose_hot(hot(2, slow=slow), 1 << 40, 1000.0)
    assert chosen.collapse.tolist() == [[HERE + REGION_BYTES, HERE + 2 * REGION_BYTES]]


@given(
    st.lists(st.integers(0, 0xFFFF), min_size=BLOCKS, max_size=BLOCKS),
    st.integers(0, 4 * MIB),
    st.integers(0, 4 * MIB),
    st.sampled_from(ColdTo),
)
def test_no_page_goes_two_ways_and_no_more_than_fits(slow, size_bytes, room_bytes, to):
    state = blocks(1, slow=np.array(slow, np.uint16))
    found = sculpt.choose_cold(state, size_bytes, 1000.0, slow_room_bytes=room_bytes, to=to)
    assert size_of(found.demote) + size_of(found.leave) == found.size_bytes <= size_bytes
    assert size_of(found.demote) <= (0 if to is ColdTo.SWAP else room_bytes)
    assert to is not ColdTo.SLOW_NODE or not len(found.leave)
    edges = sorted([*found.demote.tolist(), *found.leave.tolist()])
    assert all(before[1] <= after[0] for before, after in pairwise(edges))
