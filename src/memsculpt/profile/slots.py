# SPDX-License-Identifier: Apache-2.0
"""Places for blocks in small columns: a pool of any addresses becomes bits that lie close together. Pure.

Numbers are grouped by 256 (16 MiB of 64 KiB blocks); a group gets the next places when one of its blocks is first
seen, and keeps them. Finding the places of 393,216 ascending numbers takes 2 ms.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64

GROUP_BITS = 8
GROUP = 1 << GROUP_BITS
# A pool of 64 GiB in blocks of 64 KiB. What lies beyond is not learnt.
SLOTS_MOST = 1 << 20

Bits: TypeAlias = npt.NDArray[np.uint8]
"""One bit a slot, packed, shape (n_slots / 8,)."""


def _none() -> Int64:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slots:
    """Which groups of numbers have places."""

    groups: Int64 = field(default_factory=_none)  # ascending
    places: Int64 = field(default_factory=_none)  # of each group, counted in groups
    by_place: Int64 = field(default_factory=_none)  # the group at each place

    @property
    def count(self) -> int:
        """Return how many places there are."""
        return len(self.groups) * GROUP


def extended(slots: Slots, numbers: Int64) -> Slots:
    """Return places for these numbers, too, as long as there is room. `numbers` are ascending."""
    wanted = _groups_of(numbers)
    fresh = wanted[~np.isin(wanted, slots.groups)][: SLOTS_MOST // GROUP - len(slots.groups)]
    if not len(fresh):
        return slots
    by_place = np.concatenate((slots.by_place, fresh))
    order = np.argsort(by_place).astype(np.int64)
    return Slots(groups=by_place[order], places=order, by_place=by_place)


def bits_of(slots: Slots, numbers: Int64) -> Bits:
    """Return the bits of ascending numbers; those without a place are left out."""
    flags = np.zeros(slots.count, np.bool_)
    wanted = _groups_of(numbers)
    edges = np.append(np.searchsorted(numbers, wanted * GROUP), len(numbers))
    place = np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(slots.groups, wanted)
    known = at < len(slots.groups)
    known[known] = slots.groups[at[known]] == wanted[known]
    place[known] = slots.places[at[known]]
    shift = np.repeat((place - wanted) * GROUP, np.diff(edges))
    inside = np.repeat(known, np.diff(edges))
    flags[(numbers + shift)[inside]] = True
    return np.packbits(flags, bitorder="little")


def numbers_where(slots: Slots, flags: npt.NDArray[np.bool_]) -> Int64:
    """Return the numbers of the places that are set, ascending."""
    return numbers_at(slots, np.flatnonzero(ascending(slots, flags)))


def numbers_at(slots: Slots, rows: Int64) -> Int64:
    """Return the numbers of rows of a column that is in the order of the numbers."""
    return (slots.groups[rows >> GROUP_BITS] << GROUP_BITS) | (rows & (GROUP - 1))


def ascending(slots: Slots, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a column, with one value a place, in the order of the blocks' numbers."""
    return column.reshape(-1, GROUP)[slots.places].reshape(-1)


def widened(bits: Bits, slots: Slots) -> Bits:
    """Return bits with room for all places there are now."""
    missing = slots.count // 8 - len(bits)
    return bits if missing == 0 else np.concatenate((bits, np.zeros(missing, np.uint8)))


def size_of(bits: Bits) -> int:
    """Return how many bits are set."""
    return int(np.bitwise_count(bits.view(np.uint64)).sum(dtype=np.int64))


def flags_of(bits: Bits) -> npt.NDArray[np.uint8]:
    """Return a 0 or 1 for each place."""
    return np.unpackbits(bits, bitorder="little")


def _groups_of(numbers: Int64) -> Int64:
    groups = numbers >> GROUP_BITS
    return groups[:1] if len(groups) < 2 else groups[np.append(True, groups[1:] != groups[:-1])]
