# SPDX-License-Identifier: Apache-2.0
"""Heat, idle age and working set of a stretch of memory, from what was touched between clears. Pure.

Heat of a block is the share of its pages that was touched, averaged over intervals with weights that halve every
`HALF_LIFE_S`: an interval of t seconds counts 1 - 2^(-t / half-life), so that it does not matter how often is looked.

The working set over a window is the union of what was touched in it (Denning, "The Working Set Model for Program
Behavior", 1968), page by page. A window begins at a clear: the touches of an interval cannot be told apart by time.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.pages import PAGE_BYTES, Touches

WINDOWS_S = (1.0, 10.0, 60.0, 600.0)
HALF_LIFE_S = 30.0
# A tick is never quite on time: a window that is this much of its length has passed.
PASSED_RATIO = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """Pages touched in a window that has passed."""

    window_s: float
    measured_s: float  # how long it really was
    ended_at_s: float
    touched_pages: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatState:
    """What is known of a stretch of one address space; rows as in the last Touches, shape (n_rows,)."""

    cleared_at_s: float  # when the interval under way began
    starts: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    heat: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    touched_at_s: Float64 = field(default_factory=lambda: np.empty(0))  # of the last interval that touched it
    known_since_s: Float64 = field(default_factory=lambda: np.empty(0))
    seen: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty((0, len(WINDOWS_S)), np.uint16))
    window_began_s: tuple[float, ...] = ()
    working_sets: tuple[WorkingSet | None, ...] = (None,) * len(WINDOWS_S)
    touched_pages: int = 0  # in the last whole interval
    resident_pages: int = 0

    def idle_s(self, now_s: float) -> Float64:
        """Return how long each row has not been touched, at least; shape (n_rows,)."""
        return now_s - self.touched_at_s


def begin(now_s: float) -> HeatState:
    """Return the state of a stretch that was just cleared for the first time."""
    return HeatState(cleared_at_s=now_s, window_began_s=(now_s,) * len(WINDOWS_S))


def resume(state: HeatState, now_s: float) -> HeatState:
    """Return the state where an interval begins and nothing is known of the one before it."""
    return replace(state, cleared_at_s=now_s, seen=np.zeros_like(state.seen), window_began_s=(now_s,) * len(WINDOWS_S))


def update(state: HeatState, touches: Touches, now_s: float, *, cleared: bool) -> HeatState:
    """Return the state after a look at the whole stretch; `cleared`: a new interval begins here.

    A look without a clear only completes windows that began with the interval; heat takes whole intervals.
    """
    old = _rows_of(state.starts, touches.starts)
    known = old >= 0
    count = len(touches.starts)
    pages = touches.touched_pages if touches.touched_pages is not None else _as_pages(touches.touched)
    seen = np.zeros((count, len(WINDOWS_S)), np.uint16)
    seen[known] = state.seen[old[known]]
    now_seen = seen | pages[:, np.newaxis]
    sets, began = list(state.working_sets), list(state.window_began_s)
    for number, window_s in enumerate(WINDOWS_S):
        measured_s = now_s - began[number]
        is_first = sets[number] is None or sets[number].ended_at_s <= began[number]  # pyright: ignore[reportOptionalMemberAccess]
        if measured_s >= window_s * PASSED_RATIO and is_first:
            sets[number] = WorkingSet(
                window_s=window_s,
                measured_s=measured_s,
                ended_at_s=now_s,
                touched_pages=_count(now_seen[:, number], touches),
            )
        if cleared and measured_s >= window_s * PASSED_RATIO:
            began[number] = now_s
            now_seen[:, number] = 0
    heat = np.zeros(count, np.float32)
    heat[known] = state.heat[old[known]]
    touched_at_s = np.full(count, state.cleared_at_s)
    touched_at_s[known] = state.touched_at_s[old[known]]
    since_s = np.full(count, state.cleared_at_s)
    since_s[known] = state.known_since_s[old[known]]
    touched_at_s[touches.touched > 0] = now_s
    if cleared:
        weight = 1.0 - 2.0 ** (-(now_s - state.cleared_at_s) / HALF_LIFE_S)
        room = np.maximum(touches.present + touches.swapped, 1)
        share = (touches.touched / room).astype(np.float32)
        # The first interval is all that is known of a new row.
        heat = np.where(known, heat + np.float32(weight) * (share - heat), share).astype(np.float32)
    return replace(
        state,
        cleared_at_s=now_s if cleared else state.cleared_at_s,
        starts=touches.starts,
        heat=heat,
        touched_at_s=touched_at_s,
        known_since_s=since_s,
        seen=now_seen if cleared else seen,
        window_began_s=tuple(began),
        working_sets=tuple(sets),
        touched_pages=int(touches.touched.sum()) if cleared else state.touched_pages,
        resident_pages=int(touches.present.sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTouches:
    """What one module (heap, stack, a library, a file, shared memory) has in memory, and what of it was touched."""

    name: str
    resident_pages: int
    touched_pages: int
    dirty_pages: int
    swapped_pages: int
    unknown_pages: int


def by_module(touches: Touches) -> tuple[ModuleTouches, ...]:
    """Return the counts by module, the largest first."""
    names = [module_of(one.name, is_shared=one.is_shared) for one in touches.mappings]
    order = sorted(set(names))
    number_of = {name: number for number, name in enumerate(order)}
    numbers = np.array([number_of[name] for name in names], np.int64)[touches.mapping_index]
    columns = (touches.present, touches.touched, touches.dirty, touches.swapped, touches.unknown)
    sums = [np.bincount(numbers, weights=column, minlength=len(order)).astype(np.int64) for column in columns]
    found = [
        ModuleTouches(
            name=name,
            resident_pages=int(sums[0][number]),
            touched_pages=int(sums[1][number]),
            dirty_pages=int(sums[2][number]),
            swapped_pages=int(sums[3][number]),
            unknown_pages=int(sums[4][number]),
        )
        for number, name in enumerate(order)
    ]
    found = [one for one in found if one.resident_pages or one.swapped_pages]
    return tuple(sorted(found, key=lambda one: (-one.resident_pages - one.swapped_pages, one.name)))


def module_of(name: str, *, is_shared: bool = False) -> str:
    """Return the module that a mapping of this name belongs to."""
    if name.startswith(("/dev/zero", "/memfd:", "/SYSV", "/dev/shm/", "[anon_shmem")):  # noqa: S108  where they lie
        return "[shared memory]"
    if not name:
        return "[shared memory]" if is_shared else "[anonymous]"
    return name.removesuffix(" (deleted)")


def blocks_of(touches: Touches, block_bytes: int) -> tuple[Int64, Int64, Int64]:
    """Return (addresses, touched, mapping_index) of blocks of this size that were touched, cut where mappings end.

    Raises ValueError where `block_bytes` is no power of two from 64 KiB on.
    """
    check_block_bytes(block_bytes)
    rows = np.flatnonzero(touches.touched)
    starts, index, touched = touches.starts[rows], touches.mapping_index[rows], touches.touched[rows]
    if not len(rows):
        return starts, touched, index
    block = starts // block_bytes
    firsts = np.flatnonzero((np.diff(block, prepend=-1) != 0) | (np.diff(index, prepend=-1) != 0))
    return block[firsts] * block_bytes, np.add.reduceat(touched, firsts), index[firsts]


def check_block_bytes(block_bytes: int) -> None:
    """Raise ValueError where blocks of this size are not to be had."""
    if block_bytes < 16 * PAGE_BYTES or block_bytes & (block_bytes - 1):
        raise ValueError(f"a block is a power of two from {16 * PAGE_BYTES} bytes on, not {block_bytes}")


def _rows_of(before: Int64, now: Int64) -> Int64:
    """Return where each of `now` stood in `before`, -1 where it did not."""
    place = np.searchsorted(before, now)
    found = place < len(before)
    found[found] = before[place[found]] == now[found]
    return np.where(found, place, -1).astype(np.int64)


def _as_pages(touched: Int64) -> npt.NDArray[np.uint16]:
    """Return something set for rows that were touched, where the source does not say which pages."""
    return np.where(touched > 0, 0xFFFF, 0).astype(np.uint16)


def _count(seen: npt.NDArray[np.uint16], touches: Touches) -> int:
    if (
        touches.touched_pages is None
    ):  # the most that a row was ever seen touched is not kept: what is now, stands for it
        return int(touches.touched[seen > 0].sum())
    return int(np.bitwise_count(seen).sum(dtype=np.int64))


def merged(before: Touches | None, now: Touches) -> Touches:
    """Return `now` with what `before` saw touched in rows that are still there: one interval made of two."""
    if before is None:
        return now
    if now.touched_pages is None or before.touched_pages is None:
        old = _rows_of(before.starts, now.starts)
        most = np.where(old >= 0, before.touched[old], 0)
        return replace(now, touched=np.maximum(now.touched, np.minimum(most, now.present)))
    old = _rows_of(before.starts, now.starts)
    pages = now.touched_pages.copy()
    pages[old >= 0] |= before.touched_pages[old[old >= 0]]
    return replace(now, touched_pages=pages, touched=np.bitwise_count(pages).astype(np.int64))
