# SPDX-License-Identifier: Apache-2.0
"""A pool's blocks, kept up to date from what was touched between clears. Pure; it decides nothing.

Heat of a block is an estimate of how many accesses in a second its pages get. An accessed bit tells once of many
accesses; when n of N pages were touched by accesses that fall anywhere, N ln(N / (N - n)) of them are the likeliest
number (the coupon collector's problem, turned round). It is averaged with weights that halve every HALF_LIFE_S.

Pages have ages, in looks. For each class of ages it is counted how many pages were watched for how long, and how many
of them were touched: how likely a page is to return that has been idle so long. That is what a page-out will cost.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Extents, Grain, Touches
from memsculpt.domain.pool import (
    AGE_CLASSES,
    AGE_PLANES,
    BLOCK_BYTES,
    PARTS,
    Blocks,
    Float32,
    Pool,
    Tier,
    UInt8,
    UInt16,
    Zone,
)

HALF_LIFE_S = 30.0
# What is known of returns halves with as much watching as this many looks at everything.
RETURNS_LOOKS = 30.0
# A block that returns sooner than before is believed by so much a time: one early return is no new rhythm.
RETURN_KEPT = 0.8
INTERVAL_WEIGHT = 0.2
ALL = (1 << PARTS) - 1


def ranges_of(extents: Extents) -> tuple[tuple[int, int], ...]:
    """Return the ranges of a pool that holds all memory of these extents; borders are those of regions of 2 MiB."""
    if not len(extents.regions):
        return ()
    breaks = np.flatnonzero(np.diff(extents.regions) > REGION_BYTES)
    starts = extents.regions[np.concatenate(([0], breaks + 1))]
    ends = extents.regions[np.concatenate((breaks, [len(extents.regions) - 1]))] + REGION_BYTES
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def ranges_within(
    ranges: Sequence[tuple[int, int]], areas: Sequence[tuple[int, int]], block_bytes: int = BLOCK_BYTES
) -> tuple[tuple[int, int], ...]:
    """Return what of ascending `ranges` lies in `areas`, in whole blocks; areas that touch are one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(areas):
        if joined and joined[-1][1] >= start:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        for low, high in joined:
            first = -(-max(start, low) // block_bytes) * block_bytes
            last = min(end, high) // block_bytes * block_bytes
            if first < last:
                found.append((first, last))
    return tuple(found)


def begin(pool: Pool, now_s: float) -> Blocks:
    """Return the blocks of a pool of which nothing is known."""
    count = pool.count
    return Blocks(
        pool=pool,
        began_s=now_s,
        zone=np.full(count, Zone.WARM, np.uint8),
        tier=np.full(count, Tier.DRAM, np.uint8),
        heat=np.zeros(count, np.float16),
        touched_at_s=np.zeros(count, np.float32),
        looked_at_s=np.full(count, np.nan, np.float32),
        return_s=np.zeros(count, np.float32),
        present=np.zeros(count, np.uint16),
        swapped=np.zeros(count, np.uint16),
        flags=np.zeros(count, np.uint8),
        ages=np.zeros((AGE_PLANES, count), np.uint16),
        touched=np.zeros(count, np.uint16),
        slow=np.zeros(count, np.uint16),
        watched_page_s=np.zeros(len(AGE_CLASSES)),
        returned_pages=np.zeros(len(AGE_CLASSES)),
    )


def moved_to(blocks: Blocks, pool: Pool) -> Blocks:
    """Return the blocks of a pool whose ranges have changed, with what is known of those that are still there."""
    if pool == blocks.pool:
        return blocks
    fresh = begin(pool, blocks.began_s)
    old = blocks.rows_of(fresh.addresses())
    known = old >= 0
    names = (*_COLUMNS, "slow") if blocks.slow.any() else _COLUMNS
    columns = {name: getattr(fresh, name).copy() for name in names}
    for name, column in columns.items():
        column[..., known] = getattr(blocks, name)[..., old[known]]
    return replace(
        fresh,
        **columns,
        watched_page_s=blocks.watched_page_s,
        returned_pages=blocks.returned_pages,
        interval_s=blocks.interval_s,
    )


def update(
    blocks: Blocks,
    touches: Touches,
    now_s: float,
    *,
    stretch: tuple[int, int] | None = None,
    swap_tier: Tier = Tier.COMPRESSED,
) -> Blocks:
    """Return the blocks after a look at `stretch` (None: all), at whose end the accessed bits were cleared.

    Blocks of which the look tells nothing hold nothing. The first look at a block tells what it holds; only the second
    tells what an interval touched. A source that knows whole mappings alone (Grain.MAPPING) tells nothing of blocks.
    """
    if touches.grain is Grain.MAPPING:
        return blocks
    rows = blocks.rows_between(*stretch) if stretch is not None else slice(0, blocks.pool.count)
    present, swapped, huge, touched = _by_block(blocks, touches, rows)
    now = np.float32(now_s - blocks.began_s)
    looked = blocks.looked_at_s[rows]
    known = ~np.isnan(looked)
    interval_s = np.where(known, now - looked, np.float32(0.0))
    is_touched = touched != 0
    ages = blocks.ages[:, rows]
    watched, returned, mean_s = _returns(blocks, rows, touched, present + swapped, known, interval_s)
    idle_s = now - blocks.touched_at_s[rows]
    came_back = known & is_touched & (idle_s > 1.5 * interval_s)
    kept = blocks.return_s[rows]
    return_s = np.where(came_back, np.maximum(idle_s, RETURN_KEPT * kept), kept)
    columns = {name: getattr(blocks, name).copy() for name in _COLUMNS}
    columns["present"][rows], columns["swapped"][rows] = present, swapped
    columns["touched"][rows] = np.where(known, touched, 0)
    columns["heat"][rows] = _warmed(blocks.heat[rows], touched, present + swapped, known, interval_s)
    columns["touched_at_s"][rows] = np.where(is_touched | ~known, now, blocks.touched_at_s[rows])
    columns["looked_at_s"][rows] = now
    columns["return_s"][rows] = return_s
    columns["ages"][:, rows] = _aged(ages, touched, present + swapped, known)
    columns["tier"][rows] = _tiers(blocks, rows, huge, present, swap_tier)
    zone = columns["zone"][rows]
    back = np.isin(zone, (Zone.COLD, Zone.PREFETCH)) & is_touched & (present > 0)
    back |= (zone == Zone.HOT) & ~huge
    zone[back] = Zone.WARM
    return replace(blocks, **columns, watched_page_s=watched, returned_pages=returned, interval_s=mean_s)


def ranges_of_zone(blocks: Blocks, zone: Zone) -> tuple[tuple[int, int], ...]:
    """Return where the blocks of a zone lie, ascending; neighbours are one."""
    starts = blocks.addresses()[blocks.zone == zone]
    breaks = np.flatnonzero(np.diff(starts) > blocks.pool.block_bytes)
    if not len(starts):
        return ()
    firsts = starts[np.concatenate(([0], breaks + 1))]
    ends = starts[np.concatenate((breaks, [len(starts) - 1]))] + blocks.pool.block_bytes
    return tuple(zip(firsts.tolist(), ends.tolist(), strict=True))


def with_zone(blocks: Blocks, rows: Int64 | Bool | slice, zone: Zone) -> Blocks:
    """Return the blocks with some of them in a zone."""
    changed = blocks.zone.copy()
    changed[rows] = zone
    return replace(blocks, zone=changed)


def with_flag(blocks: Blocks, rows: Int64 | Bool | slice, flag: int) -> Blocks:
    """Return the blocks with a flag set on some of them."""
    changed = blocks.flags.copy()
    changed[rows] |= flag
    return replace(blocks, flags=changed)


def with_left(blocks: Blocks, ranges: Int64) -> Blocks:
    """Return the blocks without the pages of ascending, disjoint ranges (start, end), which have gone to the swap.

    It is a guess until the next look: how many pages of a block are in memory is known, but not which.
    """
    size = blocks.pool.block_bytes
    row, starts = _blocks_of(ranges, size)
    pages = (np.minimum(starts + size, ranges[row, 1]) - np.maximum(starts, ranges[row, 0])) // PAGE_BYTES
    rows = blocks.rows_of(starts)
    gone = np.zeros(blocks.pool.count, np.int64)
    np.add.at(gone, rows[rows >= 0], pages[rows >= 0])
    gone = np.minimum(gone, blocks.present).astype(np.uint16)
    return replace(blocks, present=blocks.present - gone, swapped=blocks.swapped + gone)


def with_slow(blocks: Blocks, runs: Int64) -> Blocks:
    """Return the blocks with the pages of ascending, disjoint runs (start, end) on a slow node, and no others.

    Of a block above 64 KiB a sixteenth counts of which any page is there.
    """
    size = blocks.pool.block_bytes
    part_bytes = size // PARTS
    row, starts = _blocks_of(runs, size)
    low = np.maximum(runs[row, 0] - starts, 0) // part_bytes
    high = -(-(np.minimum(runs[row, 1], starts + size) - starts) // part_bytes)
    masks = (np.left_shift(1, high) - np.left_shift(1, low)).astype(np.uint16)
    rows = blocks.rows_of(starts)
    slow = np.zeros(blocks.pool.count, np.uint16)
    np.bitwise_or.at(slow, rows[rows >= 0], masks[rows >= 0])
    changed = replace(blocks, slow=slow)
    is_out = blocks.present == 0
    tier = _tiers(changed, slice(0, blocks.pool.count), blocks.tier == Tier.HUGE, blocks.present, Tier.DRAM)
    return replace(changed, tier=np.where(is_out, blocks.tier, tier).astype(np.uint8))


_COLUMNS = (
    *("zone", "tier", "heat", "touched_at_s", "looked_at_s", "return_s"),
    *("present", "swapped", "flags", "ages", "touched"),
)


def _blocks_of(ranges: Int64, size: int) -> tuple[Int64, Int64]:
    """Return of each block that a range lies in: the range's row, and the block's address. Shared ones come twice."""
    firsts = ranges[:, 0] // size
    counts = -(-ranges[:, 1] // size) - firsts
    row = np.repeat(np.arange(len(ranges)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, (firsts[row] + number) * size


def _tiers(blocks: Blocks, rows: slice, huge: Bool, present: UInt16, swap_tier: Tier) -> UInt8:
    """Return where most of each block lies. A page leaves a slow node only by our doing, or to the swap."""
    per_part = blocks.pool.block_bytes // PAGE_BYTES // PARTS
    there = np.bitwise_count(blocks.slow[rows]).astype(np.int32) * per_part
    near = np.where(huge, Tier.HUGE, Tier.DRAM)
    found = np.where(2 * there > present, Tier.SLOW, near)
    return np.where((present > 0) | huge, found, swap_tier).astype(np.uint8)


def _by_block(blocks: Blocks, touches: Touches, rows: slice) -> tuple[UInt16, UInt16, Bool, UInt16]:
    """Return (present, swapped, is huge, which parts were touched) of the blocks of `rows`."""
    starts, present, swapped, huge, pages, ours = _small_rows(touches)
    ours |= blocks.pool.is_guest  # a VM's ranges are its RAM, whatever that is made of
    where = blocks.rows_of(starts) - rows.start
    count = rows.stop - rows.start
    inside = (where >= 0) & (where < count) & ours
    if not inside.all():
        starts, where, huge = starts[inside], where[inside], huge[inside]
        present, swapped, pages = present[inside], swapped[inside], pages[inside]
    size = blocks.pool.block_bytes
    parts = _as_parts(pages, (starts % size // BLOCK_BYTES).astype(np.uint16), size // BLOCK_BYTES)
    if len(where) == count and bool((where[1:] > where[:-1]).all()):
        return present, swapped, huge, parts
    found = np.zeros((3, count), np.uint16)
    is_huge = np.zeros(count, np.bool_)
    if len(where):
        # Several rows of one block stand together: where mappings meet, or where blocks are larger.
        firsts = np.flatnonzero(np.diff(where, prepend=-1))
        at = where[firsts]
        found[0, at] = np.add.reduceat(present, firsts)
        found[1, at] = np.add.reduceat(swapped, firsts)
        found[2, at] = np.bitwise_or.reduceat(parts, firsts)
        is_huge[at] = np.logical_or.reduceat(huge, firsts)
    return found[0], found[1], is_huge, found[2]


def _small_rows(touches: Touches) -> tuple[Int64, UInt16, UInt16, Bool, UInt16, Bool]:
    """Return rows of 64 KiB: as they are, or larger ones cut, each part touched where the whole is.

    The last column tells whether the row's mapping may be sculpted: files and shared memory are none of a pool's.
    """
    ours = np.array([one.is_sculptable for one in touches.mappings], np.bool_)[touches.mapping_index]
    if touches.touched_pages is not None:
        present, swapped = touches.present.astype(np.uint16), touches.swapped.astype(np.uint16)
        return touches.starts, present, swapped, touches.is_huge, touches.touched_pages, ours
    firsts = touches.starts // BLOCK_BYTES
    counts = -(-touches.ends // BLOCK_BYTES) - firsts
    row = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    pages = np.where(touches.touched > 0, ALL, 0).astype(np.uint16)
    return (
        (firsts[row] + number) * BLOCK_BYTES,
        np.minimum(touches.present[row] // counts[row], PARTS).astype(np.uint16),
        np.minimum(touches.swapped[row] // counts[row], PARTS).astype(np.uint16),
        touches.is_huge[row],
        pages[row],
        ours[row],
    )


def _as_parts(pages: UInt16, number: UInt16, size: int) -> UInt16:
    """Return which sixteenths of a block of `size` x 64 KiB the pages of its rows lie in; a row's `number` counts."""
    if size == 1:
        return pages
    each = min(size, PARTS)  # pages in a part, of this row
    step = 1
    while step < each:
        pages = pages | (pages >> np.uint16(step))
        step *= 2
    parts = np.zeros_like(pages)
    for group in range(PARTS // each):
        parts |= ((pages >> np.uint16(group * each)) & np.uint16(1)) << np.uint16(group)
    return (parts << (number * np.uint16(PARTS) // np.uint16(size))).astype(np.uint16)


def _warmed(
    before: "np.ndarray[tuple[int], np.dtype[np.float16]]",
    touched: UInt16,
    held: UInt16,
    known: Bool,
    interval_s: Float32,
) -> Float32:
    count = np.bitwise_count(touched)
    most = np.maximum(np.minimum(held, PARTS), count)
    # All touched: at least so many accesses that one page would be expected to lack half.
    rate = _ACCESSES[most, count] / np.maximum(interval_s, np.float32(1e-3))
    weight = 1.0 - np.exp2(interval_s * np.float32(-1.0 / HALF_LIFE_S))
    warm = before.astype(np.float32)
    return np.where(known, warm + np.where(warm > 0.0, weight, 1.0) * (rate - warm), warm)


def _aged(ages: UInt16, touched: UInt16, held: UInt16, known: Bool) -> UInt16:
    carry = ~touched & ~(ages[0] & ages[1] & ages[2] & ages[3])
    carry[~known] = 0
    aged = np.empty_like(ages)
    for plane in range(AGE_PLANES):
        aged[plane] = (ages[plane] ^ carry) & ~touched
        carry = ages[plane] & carry
    # At first sight: where as many pages are touched as there are, the others are none, and count for nothing.
    absent = ~known & (np.bitwise_count(touched) >= held)
    aged[:, absent] = ~touched[absent]
    return aged


def _returns(
    blocks: Blocks, rows: slice, touched: UInt16, held: UInt16, known: Bool, interval_s: Float32
) -> tuple[Float64, Float64, float]:
    """Return what is known of returns by class of age after this look, and the mean interval."""
    count = int(known.sum())
    if not count:
        return blocks.watched_page_s, blocks.returned_pages, blocks.interval_s
    mean_s = float(interval_s[known].mean())
    classes = [one if count == len(known) else one * known for one in blocks.classes(rows)]
    # What was never there looks old: of the oldest only those exist that are not among the others.
    younger = PARTS - np.bitwise_count(classes[-1]).astype(np.int16)
    oldest = np.maximum(np.minimum(held, PARTS).astype(np.int16) - younger, 0)
    counts = [_count(one) for one in classes[:-1]]
    watched = np.array([*counts, int(oldest[known].sum(dtype=np.int64))], np.float64) * mean_s
    returned = np.array([_count(one & touched) for one in classes], np.float64)
    share = count / max(blocks.pool.count, 1)
    kept = 0.5 ** (share / RETURNS_LOOKS)
    before_s = blocks.interval_s if blocks.interval_s == blocks.interval_s else mean_s
    return (
        blocks.watched_page_s * kept + watched,
        blocks.returned_pages * kept + returned,
        before_s + INTERVAL_WEIGHT * share * (mean_s - before_s),
    )


def _count(pages: UInt16) -> int:
    """Return how many bits are set; in words of 64, which is four times as fast."""
    whole = len(pages) // 4 * 4
    count = int(np.bitwise_count(np.ascontiguousarray(pages[:whole]).view(np.uint64)).sum(dtype=np.int64))
    return count + int(np.bitwise_count(pages[whole:]).sum(dtype=np.int64))


def _table_of_accesses() -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Return the likeliest number of accesses by (pages there are, pages touched)."""
    table = np.zeros((PARTS + 1, PARTS + 1), np.float32)
    for most in range(1, PARTS + 1):
        for count in range(1, most + 1):
            table[most, count] = most * np.log(most / max(most - count, 0.5))
    return table


_ACCESSES = _table_of_accesses()
