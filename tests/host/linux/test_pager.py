# SPDX-License-Identifier: Apache-2.0
"""Which pages leave and which come back: pure choices over runs of addresses."""

from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux.pager import choose_in, choose_out
from tests.host.linux.test_runs import PAGE, numbers_in, page_sets, runs_from

counts = st.integers(0, 100)


@given(page_sets, page_sets, counts)
def test_what_left_before_leaves_first(movable, before, count):
    """As many as asked, movable ones only, and no other page leaves while one that left before stays."""
    chosen = numbers_in(choose_out(runs_from(movable), runs_from(before), count * PAGE))
    ours = movable & before

    assert len(chosen) == min(count, len(movable))
    assert chosen <= movable
    assert chosen <= ours or ours <= chosen


@given(page_sets, counts, counts)
def test_a_set_that_alternates_keeps_what_stayed(movable, first_count, second_count):
    """Whatever is asked for the second time: the smaller of the two choices lies within the larger."""
    first = choose_out(runs_from(movable), runs_from(()), first_count * PAGE)
    second = numbers_in(choose_out(runs_from(movable), first, second_count * PAGE))

    assert numbers_in(first) <= second or second <= numbers_in(first)


@given(page_sets, page_sets, counts)
def test_what_we_sent_comes_back_first(swapped, before, count):
    """As many as asked, and ours before those that the kernel took."""
    chosen = numbers_in(choose_in(runs_from(swapped), runs_from(before), count * PAGE))
    ours = swapped & before

    assert len(chosen) == min(count, len(swapped))
    assert chosen <= swapped
    assert chosen <= ours or ours <= chosen
