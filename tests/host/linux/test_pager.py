# SPDX-License-Identifier: Apache-2.0
"""Which pages leave and which come back: pure choices over addresses."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux.pagemap import PAGE, runs_of
from memsculpt.host.linux.pager import choose_in, choose_out


def addresses(numbers):
    return np.array(sorted(numbers), dtype=np.int64) * PAGE


page_sets = st.sets(st.integers(0, 200), max_size=80)


@given(page_sets)
def test_runs_cover_exactly_the_pages(numbers):
    """Every page is in one run, and every run holds pages only."""
    pages = addresses(numbers)
    covered = [at for start, end in runs_of(pages) for at in range(start, end, PAGE)]
    assert covered == pages.tolist()


@given(page_sets, page_sets, st.integers(0, 100))
def test_what_left_before_leaves_first(resident, before, count):
    """As many as asked, resident ones only, and no other page leaves while one that left before stays."""
    pages, sent = addresses(resident), addresses(before)
    chosen = set(choose_out(pages, sent, count).tolist())
    ours = set(pages.tolist()) & set(sent.tolist())
    assert len(chosen) == min(count, len(pages))
    assert chosen <= set(pages.tolist())
    assert chosen <= ours or ours <= chosen


@given(page_sets, page_sets, st.integers(0, 100))
def test_what_we_sent_comes_back_first(swapped, before, count):
    """As many as asked, and ours before those that the kernel took."""
    pages, sent = addresses(swapped), addresses(before)
    chosen = set(choose_in(pages, sent, count).tolist())
    ours = set(pages.tolist()) & set(sent.tolist())
    assert len(chosen) == min(count, len(pages))
    assert chosen <= ours or ours <= chosen
