# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a pool are gathered in huge pages, which leave and to where, and which are due to come back. Pure.

Every choice is a bet with a price. A collapse costs the kernel's work now and whatever memory it fills for nothing; it
wins a share of the processor's waiting for page tables, as far as the accesses fall there. A page-out wins memory; it
costs a fault for each page that is needed again, and how many that will be is known from the pages of that age before
them (profile/blocks.py counts them). Nothing is chosen whose price is not known.

A slow node is the first place to go: a page that is needed again is used there at once, without a fault. What is most
likely to return goes there, and the oldest go to the swap.
"""

from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, REGION_PAGES
from memsculpt.domain.pool import (
    AGE_CLASSES,
    INCOMPRESSIBLE,
    NO_RANGES,
    PARTS,
    Blocks,
    ColdTo,
    ColdZone,
    HotZone,
    Prefetch,
    Promote,
    SculptOrder,
    SculptRequest,
    Tier,
    UInt16,
    Zone,
)
from memsculpt.domain.units import format_bytes

OLDEST_S = np.uint16((1 << 16) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SculptRules:
    """Bounds and prices; prices as measured on the reference machine (docs/methods/sculpting.md)."""

    collapse_s: float = 0.004  # of a region: the agent's call, and what the process waits meanwhile
    walk_ratio: float = 0.15  # of a program's processor time that huge pages save it where it reads all over memory
    pays_within_s: float = 300.0  # a region is taken to stay hot for so long
    holes_most_pages: int = 32  # of the 512 of a region that a collapse may fill for nothing
    grown_most_ratio: float = 0.02  # of the pool, filled for nothing by all collapses together
    touched_least_ratio: float = 0.25  # of a region's pages, in the last interval
    cool_s: float = 60.0  # a huge page untouched for so long is split
    fault_s: float = 25e-6  # a page that must come back costs its process so much
    # One that is used on a slow node, until it is brought back: twenty cache misses of 250 ns more. A guess: the
    # reference machine has no such node.
    slow_s: float = 5e-6
    due_s: float = 15.0  # a block comes back from a slow node so long before it is due
    loss_most_ratio: float = 0.005  # of wall time that returning pages may cost
    class_least: int = 3  # the youngest class of ages that may leave: four looks
    returns_least_page_s: float = 20_000.0  # of watching before a class of ages is believed
    return_margin: float = 1.25  # a block is cold when it idles so many times as long as its last return took


def choose_hot(
    blocks: Blocks, size_bytes: int, now_s: float, *, cpu_ratio: float = 1.0, rules: SculptRules | None = None
) -> SculptOrder:
    """Choose up to `size_bytes` of regions to gather, the best first, and the huge pages that have cooled.

    `cpu_ratio` is the processor time that the pool's process takes: what is to be saved is a share of it.
    """
    rules = rules or SculptRules()
    regions = _regions(blocks)
    if not len(regions.starts):
        return SculptOrder()
    all_heat = float(regions.heat.sum())
    gain = cpu_ratio * rules.walk_ratio * regions.heat / max(all_heat, 1e-9)
    holes = REGION_PAGES - regions.present
    is_hot = regions.is_whole & ~regions.is_huge & (regions.swapped == 0) & ~regions.is_slow
    is_hot &= regions.touched >= rules.touched_least_ratio * REGION_PAGES
    is_dense = holes <= rules.holes_most_pages
    is_worth = gain * rules.pays_within_s > rules.collapse_s
    order = np.argsort(-gain, kind="stable")
    order = order[(is_hot & is_dense & is_worth)[order]]
    room_bytes = int(rules.grown_most_ratio * regions.present.sum()) * PAGE_BYTES
    filled = np.cumsum(holes[order]) * PAGE_BYTES
    fits = (filled <= room_bytes) & (np.arange(1, len(order) + 1) * REGION_BYTES <= size_bytes)
    chosen = np.sort(order[fits])
    cooled = regions.is_huge & (now_s - blocks.began_s - regions.touched_at_s >= rules.cool_s) & regions.is_ours
    return SculptOrder(
        collapse=_as_ranges(regions.starts[chosen]),
        split=_as_ranges(regions.starts[cooled]),
        size_bytes=len(chosen) * REGION_BYTES,
        holes_most_bytes=rules.holes_most_pages * PAGE_BYTES,
        reason=_why_no_hotter(len(chosen), is_hot, is_dense, is_worth),
        gain_s_per_s=float(gain[chosen].sum()),
        fills_bytes=int(holes[chosen].sum()) * PAGE_BYTES,
        sparse_bytes=int((is_hot & ~is_dense).sum()) * REGION_BYTES,
        dear_bytes=int((is_hot & is_dense & ~is_worth).sum()) * REGION_BYTES,
    )


def choose_cold(
    blocks: Blocks,
    size_bytes: int,
    now_s: float,
    *,
    loss_ratio: float = 0.0,
    slow_room_bytes: int = 0,
    to: ColdTo = ColdTo.NEAREST,
    rules: SculptRules | None = None,
) -> SculptOrder:
    """Choose up to `size_bytes` of pages to send out, the oldest first, as far as their returns may cost.

    `loss_ratio` is what returning pages cost the process now, of wall time; `slow_room_bytes` what a slow node takes.
    """
    rules = rules or SculptRules()
    order, taken = _cold(blocks, size_bytes, now_s, loss_ratio, slow_room_bytes, to, rules)
    demote, leave = _parted(blocks, taken, 0 if to is ColdTo.SWAP else slow_room_bytes)
    return replace(order, demote=_ranges_of_pages(blocks, demote), leave=_ranges_of_pages(blocks, leave))


def weigh_cold(
    blocks: Blocks,
    size_bytes: int,
    now_s: float,
    *,
    loss_ratio: float = 0.0,
    slow_room_bytes: int = 0,
    to: ColdTo = ColdTo.NEAREST,
    rules: SculptRules | None = None,
) -> SculptOrder:
    """Return what `choose_cold` comes to without saying which pages, which is most of its work."""
    return _cold(blocks, size_bytes, now_s, loss_ratio, slow_room_bytes, to, rules or SculptRules())[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Taken:
    """What is cold of one class of ages."""

    pages: UInt16
    younger: UInt16
    size_bytes: int


def _cold(
    blocks: Blocks,
    size_bytes: int,
    now_s: float,
    loss_ratio: float,
    slow_room_bytes: int,
    to: ColdTo,
    rules: SculptRules,
) -> tuple[SculptOrder, list[_Taken]]:
    budget = rules.loss_most_ratio - loss_ratio
    if budget <= 0.0:
        return SculptOrder(reason=f"pages that return already cost {loss_ratio:.2%} of its time"), []
    if to is ColdTo.SLOW_NODE:
        size_bytes = min(size_bytes, slow_room_bytes)
    # Where all of it fits on the slow node, none of it costs a fault.
    is_near = to is not ColdTo.SWAP and size_bytes <= slow_room_bytes
    return_s = rules.slow_s if is_near else rules.fault_s
    now = now_s - blocks.began_s
    may = (blocks.present > 0) & ~np.isnan(blocks.looked_at_s) & (blocks.zone != Zone.PREFETCH)
    if not is_near:
        may &= (blocks.flags & INCOMPRESSIBLE) == 0
    # What lies on the slow node is out of fast memory already; to the swap it goes from there as well.
    there = np.zeros_like(blocks.slow) if to is ColdTo.SWAP else blocks.slow
    idle_s = now - blocks.touched_at_s
    # In a block that was touched of late there may be cold pages; what counts against it is its last return.
    may &= (blocks.touched != 0) | (idle_s > rules.return_margin * blocks.return_s)
    if not may.any():
        return SculptOrder(reason="no block is idle for longer than it took to return before"), []
    classes = blocks.classes()
    taken: list[_Taken] = []
    left_bytes, loss, oldest, reason = size_bytes, 0.0, 0, "no page is idle"
    if float(blocks.watched_page_s[-1]) < rules.returns_least_page_s:
        # Else the young would leave before the old are there, which would have been the better choice.
        return SculptOrder(reason=f"no page was watched yet for as long as {AGE_CLASSES[-1]} looks and more"), []
    for number in range(len(AGE_CLASSES) - 1, rules.class_least - 1, -1):
        watched = float(blocks.watched_page_s[number])
        if watched < rules.returns_least_page_s:
            reason = "no page was idle for long enough to know how likely it returns"
            continue
        # One more than were seen: what never happened yet may happen.
        per_page = (float(blocks.returned_pages[number]) + 1.0) / watched * return_s
        fits_bytes = int((budget - loss) / per_page) * PAGE_BYTES
        younger = np.bitwise_or.reduce(classes[:number]) | there
        got, count = _oldest(blocks, classes[number] * may & ~there, younger, min(left_bytes, fits_bytes))
        taken.append(_Taken(pages=got, younger=younger, size_bytes=count * PAGE_BYTES))
        left_bytes -= count * PAGE_BYTES
        loss += count * per_page
        oldest = number if count else oldest
        if left_bytes < PAGE_BYTES or fits_bytes < left_bytes:
            reason = "" if left_bytes < PAGE_BYTES else f"more would cost over {rules.loss_most_ratio:.2%} of its time"
            break
    chosen_bytes = size_bytes - left_bytes
    order = SculptOrder(
        size_bytes=chosen_bytes,
        loss_ratio=loss,
        idle_least_s=AGE_CLASSES[oldest] * blocks.interval_s if chosen_bytes else float("nan"),
        reason=reason,
    )
    return order, taken


def _parted(blocks: Blocks, taken: list[_Taken], slow_room_bytes: int) -> tuple[UInt16, UInt16]:
    """Return which pages go to the slow node and which to the swap: there go the youngest while there is room."""
    demote, leave = np.zeros(blocks.pool.count, np.uint16), np.zeros(blocks.pool.count, np.uint16)
    room_bytes = slow_room_bytes
    for one in reversed(taken):
        near, size_bytes = one.pages, one.size_bytes
        if size_bytes > room_bytes:
            near, count = _oldest(blocks, one.pages, one.younger, room_bytes)
            size_bytes = count * PAGE_BYTES
        demote |= near
        leave |= one.pages & ~near
        room_bytes -= size_bytes
    return demote, leave


def choose_due(blocks: Blocks, window_s: float, now_s: float) -> SculptOrder:
    """Choose the blocks that are gone and will be needed within `window_s` if they return as the last time.

    The plainest of forecasts: it knows no phase, only how long each block was idle before.
    """
    is_due = _is_due(blocks, window_s, now_s)
    rows, there = is_due & (blocks.swapped > 0), is_due & (blocks.slow != 0)
    size_bytes = int(blocks.swapped[rows].sum(dtype=np.int64)) * PAGE_BYTES + slow_bytes(blocks, there)
    return SculptOrder(
        come=ranges_of_rows(blocks, rows),
        promote=ranges_of_rows(blocks, there),
        size_bytes=size_bytes,
        reason="" if size_bytes else "nothing is due to return by its last interval",
    )


def choose_returned(blocks: Blocks, size_bytes: int, now_s: float, *, rules: SculptRules | None = None) -> SculptOrder:
    """Choose up to `size_bytes` of the pages that come back from the slow node: of the hottest blocks first.

    These are pages that the last interval touched, and all of blocks that are due by their last return.
    """
    is_due = _is_due(blocks, (rules or SculptRules()).due_s, now_s)
    pages = np.where(is_due, blocks.slow, blocks.slow & blocks.touched)
    rows = np.flatnonzero(pages)
    order = rows[np.argsort(-blocks.heat[rows].astype(np.float32), kind="stable")]
    sizes = np.bitwise_count(pages[order]).astype(np.int64) * (blocks.pool.block_bytes // PARTS)
    order = order[np.cumsum(sizes) <= size_bytes]
    chosen = np.zeros_like(pages)
    chosen[order] = pages[order]
    found_bytes = int(sizes[: len(order)].sum())
    return SculptOrder(
        promote=_ranges_of_pages(blocks, chosen),
        size_bytes=found_bytes,
        reason="" if found_bytes else "nothing that lies on the slow node is in use, or due",
    )


def slow_bytes(blocks: Blocks, rows: Bool | slice = slice(None)) -> int:
    """Return how much of blocks lies on a slow node."""
    return int(np.bitwise_count(blocks.slow[rows]).sum(dtype=np.int64)) * (blocks.pool.block_bytes // PARTS)


def slow_by_block(blocks: Blocks) -> tuple[Int64, Int64]:
    """Return the addresses of the blocks of which any page lies on a slow node, and how much does, in bytes."""
    rows = np.flatnonzero(blocks.slow)
    sizes = np.bitwise_count(blocks.slow[rows]).astype(np.int64) * (blocks.pool.block_bytes // PARTS)
    return blocks.addresses()[rows] if len(rows) else np.empty(0, np.int64), sizes


def _is_due(blocks: Blocks, window_s: float, now_s: float) -> Bool:
    """Return which blocks will be touched within so many seconds if they return as the last time."""
    due_s = blocks.began_s + blocks.touched_at_s.astype(np.float64) + blocks.return_s
    return (blocks.return_s > 0) & (due_s >= now_s - window_s) & (due_s <= now_s + window_s)


def explain_sculpt(request: SculptRequest, order: SculptOrder) -> str:
    """Return in a sentence what an order is, and why it is no more."""
    size, said = format_bytes(order.size_bytes), ""
    if isinstance(request, HotZone) and (order.size_bytes or len(order.split)):
        said = f"{size} gathered for an expected {order.gain_s_per_s:.2%} of a processor"
        cooled_bytes = int((order.split[:, 1] - order.split[:, 0]).sum())
        said += f", {format_bytes(cooled_bytes)} that has cooled split" if cooled_bytes else ""
    elif isinstance(request, ColdZone) and order.size_bytes:
        said = f"{size} idle for {order.idle_least_s:.0f} s and more, at an expected loss of {order.loss_ratio:.3%}"
        near_bytes = int((order.demote[:, 1] - order.demote[:, 0]).sum())
        if near_bytes:
            rest = ", the oldest to the swap" if len(order.leave) else ""
            said += f"; {format_bytes(near_bytes)} of it to the slow node, where it is used without a fault{rest}"
    elif isinstance(request, Promote) and order.size_bytes:
        said = f"{size} on the slow node that is in use again, or due, comes back"
    elif isinstance(request, Prefetch) and order.size_bytes:
        said = f"{size} due within {request.window_s:g} s"
        if len(order.leave):
            leaving_bytes = int((order.leave[:, 1] - order.leave[:, 0]).sum())
            said += f", in place of blocks of {format_bytes(leaving_bytes)}"
    return "; ".join(filter(None, (said, order.reason)))


def ranges_of_rows(blocks: Blocks, rows: Bool) -> Int64:
    """Return the addresses of whole blocks as ranges; neighbours are one."""
    where = np.flatnonzero(rows)
    if not len(where):
        return NO_RANGES
    starts = blocks.addresses()[where]
    return joined(np.stack((starts, starts + blocks.pool.block_bytes), axis=1))


def joined(ranges: Int64) -> Int64:
    """Return ascending ranges with neighbours that touch as one."""
    if len(ranges) < 2:
        return ranges
    breaks = np.flatnonzero(ranges[1:, 0] > ranges[:-1, 1])
    starts = ranges[np.concatenate(([0], breaks + 1)), 0]
    ends = ranges[np.concatenate((breaks, [len(ranges) - 1])), 1]
    return np.stack((starts, ends), axis=1)


def _why_no_hotter(chosen: int, is_hot: Bool, is_dense: Bool, is_worth: Bool) -> str:
    """Return why not more is gathered, "" where all that is hot is."""
    left = int(is_hot.sum()) - chosen
    if left <= 0:
        return "" if chosen else "no region is hot that is not huge already"
    sparse, dear = int((is_hot & ~is_dense).sum()), int((is_hot & is_dense & ~is_worth).sum())
    return (
        f"of {left} more hot regions {sparse} are sparse, {dear} would save less than it costs, "
        f"{left - sparse - dear} are beyond the size or the bound on what may be filled"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Regions:
    """Blocks by regions of 2 MiB, shape (n_regions,)."""

    starts: Int64
    heat: Float64
    present: Int64
    swapped: Int64
    touched: Int64
    touched_at_s: Float64
    is_huge: Bool
    is_slow: Bool  # any page of it lies on a slow node
    is_ours: Bool  # gathered by us: what a program has gathered itself is its own business
    is_whole: Bool


def _regions(blocks: Blocks) -> _Regions:
    addresses = blocks.addresses() // REGION_BYTES
    firsts = np.flatnonzero(np.diff(addresses, prepend=-1))
    per_part = blocks.pool.block_bytes // PAGE_BYTES // PARTS
    counts = np.diff(np.append(firsts, len(addresses)))
    touched = np.bitwise_count(blocks.touched).astype(np.uint16)

    def sums(column: UInt16) -> Int64:
        return np.add.reduceat(column, firsts, dtype=np.int64) if len(firsts) else np.empty(0, np.int64)

    return _Regions(
        starts=addresses[firsts] * REGION_BYTES,
        heat=np.add.reduceat(blocks.heat.astype(np.float64), firsts) if len(firsts) else np.empty(0),
        present=sums(blocks.present),
        swapped=sums(blocks.swapped),
        touched=sums(touched) * per_part,
        touched_at_s=np.maximum.reduceat(blocks.touched_at_s, firsts).astype(np.float64)
        if len(firsts)
        else np.empty(0),
        is_huge=np.logical_or.reduceat(blocks.tier == Tier.HUGE, firsts) if len(firsts) else np.empty(0, np.bool_),
        is_slow=np.logical_or.reduceat(blocks.slow != 0, firsts) if len(firsts) else np.empty(0, np.bool_),
        is_ours=np.logical_or.reduceat(blocks.zone == Zone.HOT, firsts) if len(firsts) else np.empty(0, np.bool_),
        is_whole=counts * blocks.pool.block_bytes == REGION_BYTES,
    )


def _oldest(blocks: Blocks, pages: UInt16, younger: UInt16, size_bytes: int) -> tuple[UInt16, int]:
    """Return up to `size_bytes` of `pages`, of the blocks that were touched longest ago, and how many are in memory.

    Which pages of a block are in memory is not known, but how many are: the younger ones are taken to be.
    """
    per_part = blocks.pool.block_bytes // PAGE_BYTES // PARTS
    rows = np.flatnonzero(pages)
    there = blocks.present[rows].astype(np.int64) - np.bitwise_count(younger[rows]).astype(np.int64) * per_part
    counts = np.clip(there, 0, np.bitwise_count(pages[rows]).astype(np.int64) * per_part)
    rows, counts = rows[counts > 0], counts[counts > 0]
    if int(counts.sum()) * PAGE_BYTES > size_bytes:
        # In whole seconds, of which a sort by digits makes short work.
        touched_at_s = blocks.touched_at_s[rows]
        idle_s = np.minimum(touched_at_s.max() - touched_at_s, OLDEST_S).astype(np.uint16)
        order = np.argsort(OLDEST_S - idle_s, kind="stable")
        order = order[np.cumsum(counts[order]) * PAGE_BYTES <= size_bytes]
        rows, counts = rows[order], counts[order]
    got = np.zeros_like(pages)
    got[rows] = pages[rows]
    return got, int(counts.sum())


def _ranges_of_pages(blocks: Blocks, pages: UInt16) -> Int64:
    """Return the addresses of the pages (or sixteenths of blocks) that are set, as ranges; neighbours are one."""
    rows = np.flatnonzero(pages)
    if not len(rows):
        return NO_RANGES
    starts = blocks.addresses()[rows]
    part_bytes = blocks.pool.block_bytes // PARTS
    is_all = pages[rows] == (1 << PARTS) - 1
    whole = np.stack((starts[is_all], starts[is_all] + blocks.pool.block_bytes), axis=1)
    bits = np.unpackbits(pages[rows[~is_all]].view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    edges = np.diff(bits.astype(np.int8), axis=1, prepend=0, append=0)
    row, at = np.nonzero(edges == 1)
    _, end = np.nonzero(edges == -1)
    base = starts[~is_all][row]
    parts = np.stack((base + at * part_bytes, base + end * part_bytes), axis=1)
    both = np.concatenate((whole, parts))
    return joined(both[np.argsort(both[:, 0], kind="stable")])


def _as_ranges(starts: Int64) -> Int64:
    return joined(np.stack((starts, starts + REGION_BYTES), axis=1)) if len(starts) else NO_RANGES
