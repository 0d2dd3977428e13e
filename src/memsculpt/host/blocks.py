# SPDX-License-Identifier: Apache-2.0
"""Bits of pages -> counts by block, cut at the borders of mappings. Pure; costs one pass over the bits."""

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_BYTES, Bits, Extents, Grain, Mapping, PageBits, Touches

WORD_PAGES = 16
WORD_BYTES = WORD_PAGES * PAGE_BYTES  # 64 KiB: a block
WORDS_PER_REGION = REGION_BYTES // WORD_BYTES

Words = npt.NDArray[np.uint16]


def touches_from(bits: PageBits, mappings: tuple[Mapping, ...], unknown: PageBits | None = None) -> Touches:
    """Return the counts. `mappings` ascend; what lies in none of them (it was unmapped meanwhile) is left out.

    Pages that are `present` in `unknown` count as untouched, and are counted apart.
    """
    excluded = aligned(unknown.addresses, unknown.present, bits.addresses) if unknown is not None else None
    doubtful = bits.accessed & excluded if excluded is not None else None
    touched = bits.accessed & ~excluded if excluded is not None else bits.accessed
    columns = [bits.present, touched, bits.dirty, bits.swapped]
    if doubtful is not None:
        columns.append(doubtful)
    held = np.flatnonzero((_words(bits.present) | _words(bits.swapped)) != 0)
    starts = bits.addresses[held // WORDS_PER_REGION] + held % WORDS_PER_REGION * WORD_BYTES
    rows, index, masks = _cut(starts, mappings)
    place = held[rows]
    words = [_words(column)[place] & masks for column in columns]
    kept = np.flatnonzero(words[0] | words[3])
    if len(kept) < len(rows):
        rows, index, masks, place = rows[kept], index[kept], masks[kept], place[kept]
        words = [word[kept] for word in words]
    counts = [np.bitwise_count(word).astype(np.int64) for word in words]
    begins = starts[rows] + _lowest(masks) * PAGE_BYTES
    ends = begins + np.bitwise_count(masks).astype(np.int64) * PAGE_BYTES
    is_huge = bits.is_huge[place // WORDS_PER_REGION]
    return Touches(
        mappings=mappings,
        grain=Grain.PAGE,
        starts=begins,
        ends=ends,
        mapping_index=index,
        present=counts[0],
        touched=counts[1],
        touched_pages=_moved(words[1], masks),
        dirty=counts[2],
        swapped=counts[3],
        unknown=counts[4] if doubtful is not None else np.zeros(len(begins), np.int64),
        is_huge=is_huge,
        is_complete=bits.is_complete,
    )


def extents_from(touches: Touches) -> Extents:
    """Return where there is memory, for sources that know it by their own rows: a row counts where it begins."""
    regions = touches.starts // REGION_BYTES * REGION_BYTES
    firsts = np.flatnonzero(np.diff(regions, prepend=-1))
    present = np.add.reduceat(touches.present, firsts) if len(firsts) else np.empty(0, np.int64)
    return Extents(regions=regions[firsts], present=present)


def _words(bits: Bits) -> Words:
    return bits.view("<u2").ravel()


def _cut(starts: Int64, mappings: tuple[Mapping, ...]) -> tuple[Int64, Int64, Words]:
    """Return, by row, which word it is of, which mapping it is in, and which of the word's pages those are."""
    # What of a mapping is not whole words is a row of its own at each end, or one where both ends are in one word.
    lows = np.array([one.start for one in mappings], np.int64)
    highs = np.array([one.end for one in mappings], np.int64)
    whole_lows, whole_highs = -(-lows // WORD_BYTES) * WORD_BYTES, highs // WORD_BYTES * WORD_BYTES
    firsts = np.searchsorted(starts, whole_lows)
    counts = np.maximum(np.searchsorted(starts, whole_highs) - firsts, 0)
    within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = [np.repeat(firsts, counts) + within]
    indexes = [np.repeat(np.arange(len(mappings), dtype=np.int64), counts)]
    masks = [np.full(len(within), 0xFFFF, np.uint16)]
    is_inside_one = whole_lows > whole_highs
    for low, high, chosen in (
        (lows, np.minimum(highs, whole_lows), lows < whole_lows),
        (whole_highs, highs, (whole_highs < highs) & ~is_inside_one),
    ):
        low, high, number = low[chosen], high[chosen], np.flatnonzero(chosen)  # noqa: PLW2901
        word = low // WORD_BYTES * WORD_BYTES
        place = np.searchsorted(starts, word)
        there = place < len(starts)
        there[there] = starts[place[there]] == word[there]
        from_page, to_page = (low - word)[there] // PAGE_BYTES, (high - word)[there] // PAGE_BYTES
        rows.append(place[there])
        indexes.append(number[there])
        masks.append(((1 << to_page) - (1 << from_page)).astype(np.uint16))
    row, index, mask = np.concatenate(rows), np.concatenate(indexes), np.concatenate(masks)
    # Three ascending runs in one: a stable sort merges them, in some ns a row.
    order = np.argsort(row * (len(mappings) + 1) + index, kind="stable")
    return row[order], index[order], mask[order]


def _moved(words: Words, masks: Words) -> Words:
    """Return the words with the first page of the row as the lowest bit."""
    return words >> _lowest(masks).astype(np.uint16)


def _lowest(masks: Words) -> Int64:
    """Return the number of the lowest page in each mask."""
    return np.bitwise_count((masks & -masks) - np.uint16(1)).astype(np.int64)


def aligned(addresses: Int64, bits: Bits, wanted: Int64) -> Bits:
    """Return the bits of the regions at `wanted`, zeros where `addresses` has none of them. Both ascend."""
    found = np.zeros((len(wanted), bits.shape[1]), np.uint8)
    place = np.searchsorted(addresses, wanted)
    there = place < len(addresses)
    there[there] = addresses[place[there]] == wanted[there]
    found[there] = bits[place[there]]
    return found
