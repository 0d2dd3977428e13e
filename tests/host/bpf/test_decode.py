# SPDX-License-Identifier: Apache-2.0
"""Copied page tables -> bits of pages, for entries that this machine's programs seldom have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.pages import REGION_BYTES, REGION_PAGES
from memsculpt.host.bpf.pagewalk import ACCESSED, DIRTY, PRESENT, PROTNONE, RECORD, SWAP_TYPE_SHIFT, decode

GIB = 1 << 30
HUGE = 1 << 7


def records(*rows):
    return np.array(list(rows), RECORD)


def bits_of(column):
    return np.unpackbits(column, axis=1, bitorder="little")


def test_a_page_of_a_gib_is_512_regions_alike():
    told = decode(
        records(
            (3 * GIB, PRESENT | ACCESSED | HUGE, -1, 512 * REGION_PAGES), (5 * GIB, PRESENT | HUGE, -1, REGION_PAGES)
        ),
        np.empty((0, REGION_PAGES), np.uint64),
    )
    assert len(told.addresses) == 513
    assert told.addresses[:512].tolist() == [3 * GIB + number * REGION_BYTES for number in range(512)]
    assert told.addresses[512] == 5 * GIB
    assert told.is_huge.all()
    assert bits_of(told.present).all()
    assert bits_of(told.accessed)[:512].all()
    assert not bits_of(told.accessed)[512].any()
    assert not bits_of(told.dirty).any()


def test_what_an_entry_can_be():
    """Present; kept but not to be accessed (NUMA hinting); swapped; a page that is being moved; nothing."""
    table = np.zeros((1, REGION_PAGES), np.uint64)
    table[0, :6] = [
        PRESENT | ACCESSED,
        PRESENT | DIRTY,
        PROTNONE | ACCESSED,
        (1 << SWAP_TYPE_SHIFT) | (77 << 9),
        (30 << SWAP_TYPE_SHIFT) | (77 << 9),
        0,
    ]
    told = decode(records((0, PRESENT, 0, REGION_PAGES)), table)
    assert bits_of(told.present)[0, :6].tolist() == [1, 1, 1, 0, 0, 0]
    assert bits_of(told.accessed)[0, :6].tolist() == [1, 0, 1, 0, 0, 0]
    assert bits_of(told.dirty)[0, :6].tolist() == [0, 1, 0, 0, 0, 0]
    assert bits_of(told.swapped)[0, :6].tolist() == [0, 0, 0, 1, 0, 0]
    assert not told.is_huge.any()


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=REGION_PAGES, max_size=REGION_PAGES))
def test_no_entry_breaks_it_and_only_what_is_there_was_touched(entries):
    told = decode(records((0, PRESENT, 0, REGION_PAGES)), np.array([entries], np.uint64))
    present, swapped = bits_of(told.present), bits_of(told.swapped)
    assert not (bits_of(told.accessed) & ~present & 1).any()
    assert not (present & swapped).any()


def test_nothing_was_copied():
    told = decode(records(), np.empty((0, REGION_PAGES), np.uint64))
    assert len(told.addresses) == 0
    assert told.is_complete


@pytest.mark.parametrize("count", [1, 3])
def test_tables_and_huge_pages_stand_in_their_order(count):
    tables = np.full((count, REGION_PAGES), PRESENT, np.uint64)
    rows = []
    for number in range(count):
        rows += [
            (2 * number * REGION_BYTES, PRESENT, number, REGION_PAGES),
            ((2 * number + 1) * REGION_BYTES, PRESENT | DIRTY | HUGE, -1, REGION_PAGES),
        ]
    told = decode(records(*rows), tables)
    assert told.is_huge.tolist() == [False, True] * count
    assert bits_of(told.dirty).any(axis=1).tolist() == [False, True] * count
