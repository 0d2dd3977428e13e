# SPDX-License-Identifier: Apache-2.0
"""Which chunks leave when a cgroup must shrink: the kernel's least-recently-used order, as inexact as it is.

The kernel looks at a limit's whole subtree, so that a neighbour's seldom used pages leave for a newcomer's; it
knows ages only roughly (an accessed bit per scan), prefers page cache to anonymous memory, and spares pages that
were used since it last looked. When it finds nothing but those, again and again, it gives up and kills
(mm/vmscan.c; mm/memcontrol.c, MAX_RECLAIM_RETRIES), even with swap nearly empty: the reference machine's lesson.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.host.simulated.pages import Chunks, Region


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimRules:
    """How the simulated kernel chooses."""

    in_use_s: float = 0.5  # touched within so long: the reclaim finds the accessed bit set
    blur_s: float = 3.0  # the mean error of a known age
    cache_bias_s: float = 60.0  # page cache leaves as if it were so much older
    give_up_after_s: float = 1.0  # kill when a limit's reclaim has found only pages in use for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Victims:
    """What leaves: chunks by region, and how much of it was still in use."""

    by_region: tuple[tuple[Region, Chunks], ...]
    count: int
    in_use_count: int


def choose_victims(
    regions: Iterable[Region],
    wanted: int,
    *,
    swap_room: int,
    now_s: float,
    numbers: frozenset[int],
    rules: ReclaimRules,
    rng: np.random.Generator,
) -> Victims:
    """Choose up to `wanted` resident chunks charged to the cgroups `numbers`, at most `swap_room` of them anonymous.

    Pure but for the draw from `rng`, which blurs the ages.
    """
    candidates: list[tuple[Region, Chunks]] = []
    for region in regions:
        if region.resident_chunks and (region.is_file or swap_room > 0) and not numbers.isdisjoint(region.homes):
            resident = region.resident()
            if not region.homes <= numbers:
                resident = resident[np.isin(region.owner[resident], list(numbers))]
            candidates.append((region, resident))
    if not candidates or wanted <= 0:
        return Victims(by_region=(), count=0, in_use_count=0)
    touched_at_s = np.concatenate([region.touched_at_s[chunks] for region, chunks in candidates])
    origin = np.repeat(np.arange(len(candidates)), [len(chunks) for _, chunks in candidates])
    in_file = np.array([region.is_file for region, _ in candidates])[origin]
    in_use = touched_at_s >= now_s - rules.in_use_s
    blur_s = rules.blur_s * rng.standard_exponential(len(touched_at_s), dtype=np.float32)
    seen_at_s = touched_at_s + blur_s - rules.cache_bias_s * in_file
    # A chunk in use comes behind all others: it is taken only when nothing else is left.
    seen_at_s[in_use] += 1e9
    order = _smallest(seen_at_s, wanted, in_file, swap_room)
    chosen: list[tuple[Region, Chunks]] = []
    starts = np.cumsum([0, *(len(chunks) for _, chunks in candidates)])
    for row, (region, chunks) in enumerate(candidates):
        mine = order[origin[order] == row] - starts[row]
        if len(mine):
            chosen.append((region, np.sort(chunks[mine])))
    return Victims(by_region=tuple(chosen), count=len(order), in_use_count=int(in_use[order].sum()))


def _smallest(keys: Float64, wanted: int, in_file: Bool, swap_room: int) -> Chunks:
    count = min(wanted, len(keys))
    order: Chunks = np.argpartition(keys, count - 1)[:count] if count < len(keys) else np.arange(count)
    anonymous = ~in_file[order]
    if int(anonymous.sum()) <= swap_room:
        return order
    # Swap cannot take them all: the page cache gives the rest, in the same order.
    by_age = np.argsort(keys, kind="stable")
    fits = in_file[by_age] | (np.cumsum(~in_file[by_age]) <= swap_room)
    return by_age[fits][:wanted]
