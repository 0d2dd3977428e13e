# SPDX-License-Identifier: Apache-2.0
"""Carry out what plan/sculpt.py orders for a pool, and take it back. Contents never change.

What leaves for the swap comes back when it is touched, so nothing of that is journalled; from a slow node nothing does.

What leaves is sampled first, a page of every MiB: allocators put like beside like, and memory that does not get
smaller is not worth compressing. What is on its way to a disk need not be compressible.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memsculpt.act.journal import Journal
from memsculpt.act.records import Origin, SentToSlowNode, SlowKey, Undone
from memsculpt.domain.arrays import Int64
from memsculpt.domain.plan import SculptPool
from memsculpt.domain.pool import NO_RANGES, Pool, SculptDone, SculptOrder, Tier
from memsculpt.domain.workload import Instance
from memsculpt.host.protocol import Frames, Host, Ranges, Sculpted


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMoved:
    """What a planned sculpt moved; `reason` says why it was no more."""

    moved_bytes: int
    left_bytes: int = 0  # of a prefetch: what made room for it
    cpu_s: float
    reason: str = ""


class Sculptor(Protocol):
    """Who knows the blocks of pools and can do what a plan asks of one."""

    def __call__(self, action: SculptPool, size_bytes: int) -> PoolMoved:
        """Do it, up to `size_bytes`. Raises Vanished, Unavailable, Transient."""
        ...


SAMPLED_BYTES = 1 << 20
SAMPLES_MOST = 512
# Above it compressing saves too little: zram keeps such a page as it is (huge_pages in its mm_stat).
PACKED_MOST_RATIO = 0.9


def sculpt(host: Host, pool: Pool, order: SculptOrder, journal: Journal | None = None) -> SculptDone:
    """Carry an order out: what frees memory first, what takes some last.

    Before the first pages of a process go to a slow node, the journal says so: nothing else would bring them back.
    Raises JournalUnwritable then, and nothing was done.
    Returns what was really done, as the page tables say. Raises Vanished, Unavailable, Transient (no room in the swap;
    nothing was done then, for what leaves comes first).
    """
    begin_s = host.now_s()
    if len(order.demote) and journal is not None and not journal.ledger.is_on_slow_node(pool.process):
        origin = Origin(action_id=0, at_s=begin_s, why="slow-node", boot=journal.boot)
        journal.append(SentToSlowNode(process=pool.process, origin=origin))
    # What is exchanged in parts comes often and makes no huge pages: two walks over all of the pool are not worth it.
    measured = () if order.part_bytes else pool.ranges
    before = host.frames(pool.process, measured)
    leave, stays = _sifted(host, pool, order.leave)
    told = Counter[str]()
    cpu_s = 0.0
    sizes = Counter[str]()
    grown_bytes = 0
    calls = {
        "demote": host.to_slow_node,
        "leave": host.page_out_ranges,
        "promote": host.from_slow_node,
        "split": host.split,
        "collapse": _collapsing(host, order.holes_most_bytes),
        "come": host.bring_in_ranges,
    }
    times_s = dict.fromkeys(calls, 0.0)
    for name, ranges in _in_turns(leave, order):
        if host.now_s() - begin_s > order.most_s:
            told["no time was left in this tick"] += size_of(ranges)
            continue
        done = calls[name](pool.process, listed(ranges))
        told.update(done.problems)
        sizes[name] += done.moved_bytes
        times_s[name] += done.duration_s
        cpu_s += done.cpu_s
        grown_bytes += done.grown_bytes
    after = host.frames(pool.process, measured)
    if len(stays):
        told["hardly compressible"] += size_of(stays)
    return SculptDone(
        at_s=host.now_s(),
        order=order,
        left_bytes=sizes["leave"],
        split_bytes=sizes["split"],
        collapsed_bytes=sizes["collapse"],
        came_bytes=sizes["come"],
        demoted_bytes=sizes["demote"],
        promoted_bytes=sizes["promote"],
        grown_bytes=grown_bytes,
        incompressible=stays,
        resident_before_bytes=_total(before.resident_bytes),
        resident_after_bytes=_total(after.resident_bytes),
        huge_before_bytes=_total(before.huge_bytes),
        huge_after_bytes=_total(after.huge_bytes),
        longest_run_before_bytes=_longest(before),
        longest_run_after_bytes=_longest(after),
        duration_s=host.now_s() - begin_s,
        leave_s=times_s["leave"],
        come_s=times_s["come"],
        cpu_s=cpu_s,
        problems=tuple(sorted(told.items())),
    )


def forget_slow(journal: Journal, process: Instance) -> None:
    """Take a process off the journal that has ended: nothing of it lies anywhere."""
    if journal.ledger.is_on_slow_node(process):
        journal.forget(Undone(change=SlowKey(process=process)))


def reversed_order(order: SculptOrder) -> SculptOrder:
    """Return the order that takes another one back: what left comes, what was gathered is split.

    What came back stays: it lies where it lay before anything was done.
    """
    return SculptOrder(split=order.collapse, come=order.leave, promote=order.demote, reason="taken back")


def listed(ranges: Int64) -> list[tuple[int, int]]:
    """Return ranges as the host takes them."""
    return [(start, end) for start, end in ranges.tolist()]


def size_of(ranges: Int64) -> int:
    """Return how many bytes ranges span."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def _in_turns(leave: Int64, order: SculptOrder) -> list[tuple[str, Int64]]:
    """Return what is done one after the other: what leaves, is split and gathered, and comes.

    In parts, so that no more room is made at any moment than the next part needs.
    """
    if not order.part_bytes:
        steps = [
            ("demote", order.demote),
            ("leave", leave),
            ("promote", order.promote),
            ("split", order.split),
            ("collapse", order.collapse),
            ("come", order.come),
        ]
        return [(name, ranges) for name, ranges in steps if len(ranges)]
    out, back = _parts(leave, order.part_bytes), _parts(order.come, order.part_bytes)
    turns: list[tuple[str, Int64]] = []
    for number in range(max(len(out), len(back))):
        turns += [("leave", part) for part in out[number : number + 1]]
        turns += [("come", part) for part in back[number : number + 1]]
    return turns + [("promote", part) for part in _parts(order.promote, order.part_bytes)]


def _parts(ranges: Int64, part_bytes: int) -> list[Int64]:
    """Return ranges in groups of about `part_bytes`; cut at borders of a MiB, so none is much larger."""
    if not len(ranges):
        return []
    ranges = _cut(ranges)
    number = (np.cumsum(ranges[:, 1] - ranges[:, 0]) - 1) // part_bytes
    return [ranges[number == each] for each in np.unique(number)]


def _collapsing(host: Host, holes_most_bytes: int) -> Callable[[Instance, Ranges], Sculpted]:
    def collapse(process: Instance, ranges: Ranges) -> Sculpted:
        return host.collapse(process, ranges, holes_most_bytes)

    return collapse


def _sifted(host: Host, pool: Pool, leave: Int64) -> tuple[Int64, Int64]:
    """Return what of `leave` is worth compressing, and what is not."""
    if not len(leave) or host.swap_tier() is not Tier.COMPRESSED:
        return leave, NO_RANGES
    leave = _cut(leave)
    # One sample for the ranges in the same MiB, or of some of these.
    firsts = np.flatnonzero(np.diff(leave[:, 0] // SAMPLED_BYTES, prepend=-1))
    firsts = firsts[:: -(-len(firsts) // SAMPLES_MOST)]
    packed = host.packed_ratio(pool.process, leave[firsts, 0])
    counts = np.diff(np.append(firsts, len(leave)))
    is_dense = np.repeat(packed > PACKED_MOST_RATIO, counts)
    return leave[~is_dense], leave[is_dense]


def _cut(ranges: Int64) -> Int64:
    """Return ranges cut at each border of a MiB."""
    first = ranges[:, 0] // SAMPLED_BYTES
    counts = -(-ranges[:, 1] // SAMPLED_BYTES) - first
    row = np.repeat(np.arange(len(ranges)), counts)
    number: Int64 = np.arange(len(row), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.maximum((first[row] + number) * SAMPLED_BYTES, ranges[row, 0])
    ends = np.minimum((first[row] + number + 1) * SAMPLED_BYTES, ranges[row, 1])
    return np.stack((starts, ends), axis=1)


def _total(column: Int64) -> int:
    return int(column.sum())


def _longest(frames: Frames) -> int:
    return int(frames.longest_run_bytes.max(initial=0))
