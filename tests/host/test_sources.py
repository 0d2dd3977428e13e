# SPDX-License-Identifier: Apache-2.0
"""Which source of touched pages is taken: the order, an explicit wish, and one that fails for a process."""

import os

import pytest

from memsculpt.errors import Unavailable, UsageError
from memsculpt.host import sources
from memsculpt.host.linux.damon import DamonSource
from memsculpt.host.linux.opened import find_instance
from memsculpt.host.linux.page_idle import PageIdleSource
from memsculpt.host.linux.smaps import SmapsSource
from tests.trees.damon import contents, write_damon


@pytest.fixture
def offered(tmp_path):
    """A machine without BPF and idle bits, whose DAMON is free but cannot watch virtual addresses."""
    write_damon(tmp_path / "sys", operations="paddr\n")
    return (
        ("page_idle", "every page", lambda: PageIdleSource(str(tmp_path / "nothing"))),
        ("damon", "stretches", lambda: DamonSource(str(tmp_path / "sys"))),
        ("smaps", "mappings", SmapsSource),
    )


def test_the_order_is_from_exact_to_coarse():
    assert sources.NAMES == ("bpf", "page_idle", "damon", "smaps")


def test_the_best_that_works_is_taken_and_better_ones_are_named(offered):
    choice = sources.open_source(offered=offered)
    assert choice.source.name == "damon"
    assert [one.name for one in choice.passed] == ["page_idle"]
    assert choice.passed[0].fix == "CONFIG_IDLE_PAGE_TRACKING"
    choice.source.close()


def test_below_a_source_the_next_best_is_taken(offered):
    choice = sources.open_source(below="damon", offered=offered)
    assert choice.source.name == "smaps"
    assert choice.passed == ()
    with pytest.raises(Unavailable, match="there is no other"):
        sources.open_source(below="smaps", offered=offered)


def test_one_that_fails_for_the_process_is_replaced_and_the_reason_is_kept(offered, tmp_path):
    choice, reader = sources.open_reader(find_instance(os.getpid()), offered=offered)
    assert reader.source == choice.source.name == "smaps"
    assert [one.name for one in choice.passed] == ["page_idle", "damon"]
    assert "virtual addresses" in choice.passed[1].problem
    assert int(reader.read().present.sum()) > 0
    reader.close()
    choice.source.close()
    assert contents(tmp_path / "sys")["kernel/mm/damon/admin/kdamonds/nr_kdamonds"] == "0\n"


@pytest.mark.parametrize(("wanted", "code"), [("page_idle", 3), ("damon", 3), ("nonsense", 2)])
def test_an_explicit_wish_is_granted_or_refused(offered, wanted, code):
    """What this machine lacks is told apart from what no machine has."""
    with pytest.raises(Unavailable if code == 3 else UsageError) as told:
        sources.open_reader(find_instance(os.getpid()), wanted, offered)
    assert told.value.exit_code == code
    assert told.value.fix


def test_where_nothing_works_everything_is_said(offered):
    with pytest.raises(Unavailable) as told:
        sources.open_reader(find_instance(os.getpid()), offered=offered[:2])
    assert "page_idle: " in told.value.problem
    assert "damon: " in told.value.problem


def test_trying_leaves_nothing_behind(offered, tmp_path):
    before = contents(tmp_path / "sys")
    found = sources.try_each(offered)
    assert [bool(one.problem) for one in found] == [True, False, False]
    assert contents(tmp_path / "sys") == before
