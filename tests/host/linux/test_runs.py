# SPDX-License-Identifier: Apache-2.0
"""Runs of pages against the sets that they stand for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import runs

PAGE = 4096
START = 0x7F00_0000_0000
MOST = 200

page_sets = st.sets(st.integers(0, MOST - 1), max_size=80)


def runs_from(numbers):
    """The runs of a set of page numbers."""
    flags = np.zeros(MOST, dtype=np.bool_)
    flags[list(numbers)] = True
    return runs.runs_of(flags, START, PAGE)


def numbers_in(found):
    """The page numbers that runs hold, after a check that they are what they promise to be."""
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[1:, 0] > found[:-1, 1]).all()
    return {number for start, end in ((found - START) // PAGE).tolist() for number in range(start, end)}


@given(page_sets)
def test_runs_hold_exactly_the_pages(numbers):
    """No page more, none less, and as few runs as can be."""
    assert numbers_in(runs_from(numbers)) == numbers
    assert runs.size_of(runs_from(numbers)) == len(numbers) * PAGE
    assert ((runs.pages_of(runs_from(numbers), PAGE) - START) // PAGE).tolist() == sorted(numbers)


@given(page_sets, page_sets)
def test_they_are_combined_as_sets_are(one, other):
    """Union, intersection and difference are those of the page numbers."""
    assert numbers_in(runs.union(runs_from(one), runs_from(other))) == one | other
    assert numbers_in(runs.intersection(runs_from(one), runs_from(other))) == one & other
    assert numbers_in(runs.difference(runs_from(one), runs_from(other))) == one - other


@given(page_sets, st.integers(0, MOST))
def test_first_and_last_cut_to_size(numbers, count):
    """The lowest and the highest pages, as many as asked or all there are."""
    lowest = numbers_in(runs.first(runs_from(numbers), count * PAGE))
    highest = numbers_in(runs.last(runs_from(numbers), count * PAGE))

    assert sorted(lowest) == sorted(numbers)[:count]
    assert sorted(highest) == sorted(numbers)[max(len(numbers) - count, 0) :]


@given(st.lists(page_sets, max_size=4), st.integers(0, 5))
def test_joined_fills_gaps_up_to_the_limit(parts, gap_pages):
    """Parts in ascending order become one; only gaps of at most the limit are filled."""
    shifted = [runs_from(numbers) + number * (MOST + 50) * PAGE for number, numbers in enumerate(parts)]
    whole = runs.joined(shifted, gap_pages * PAGE)
    held = {page for part in shifted for page in runs.pages_of(part, PAGE).tolist()}

    assert held <= set(runs.pages_of(whole, PAGE).tolist())
    assert (whole[1:, 0] - whole[:-1, 1] > gap_pages * PAGE).all()
    assert {int(edge) for edge in whole.ravel()} <= {int(edge) for part in shifted for edge in part.ravel()}


@given(page_sets, st.sets(st.integers(-5, MOST + 5), max_size=10))
def test_split_cuts_where_told_and_nowhere_else(numbers, cuts):
    """The same pages, in runs none of which reaches over a cut."""
    addresses = sorted(START + cut * PAGE for cut in cuts)
    whole = runs_from(numbers)
    parts = runs.split(whole, addresses)

    assert runs.joined([parts]).tolist() == whole.tolist()
    assert not any(start < address < end for start, end in parts.tolist() for address in addresses)
    assert set(parts.ravel().tolist()) <= set(whole.ravel().tolist()) | set(addresses)
