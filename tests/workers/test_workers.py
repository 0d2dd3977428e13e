# SPDX-License-Identifier: Apache-2.0
"""A worker gives its result or a typed error; nothing that it does harms who asked."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsculpt.errors import Refused, Vanished, WorkerFailed
from memsculpt.workers import Bounds, run
from tests.workers import tasks

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
USUAL = Bounds(timeout_s=20.0)
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def opened():
    return len(os.listdir("/proc/self/fd"))


def test_arguments_go_in_and_the_result_comes_out():
    assert run(USUAL, tasks.double, 21) == 42
    assert run(USUAL, tasks.double, "ab", plus="c") == "ababc"


@given(st.lists(VALUES, max_size=3))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_can_be_pickled_passes(values):
    assert run(USUAL, tasks.same, values) == values


def test_it_is_another_process_and_gives_way():
    """Lowest priority, the first to go when memory runs out, no part of our terminal's session."""
    found = run(USUAL, tasks.conditions)
    assert found["pid"] != os.getpid()
    assert found["nice"] == 19
    assert found["oom"] == 1000
    assert found["session"] == found["pid"]


def test_what_it_prints_is_no_result():
    assert run(USUAL, tasks.chatter) == "the result"


def test_our_own_errors_come_through_with_their_facts():
    with pytest.raises(Refused, match="is not wanted") as caught:
        run(USUAL, tasks.refuse)
    assert (caught.value.place, caught.value.fix) == ("here", "want it")
    with pytest.raises(Vanished, match="process 7"):
        run(USUAL, tasks.vanish)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (tasks.break_down, (), "LookupError: a bug"),
        (tasks.crash, (), "killed by SIGSEGV: last words"),
        (tasks.leave, (), "exit code 0 and no result"),
        (tasks.eat, (400 * MIB,), "needs more than 256 MiB"),
        (tasks.flood, (2 * MIB,), "1048576 are the most"),
        (tasks.print_for_ever, (), "OSError"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_goes_wrong_is_told(function, arguments, words):
    before = opened()
    bounds = Bounds(timeout_s=20.0, memory_bytes=256 * MIB, result_bytes=MIB)
    with pytest.raises(WorkerFailed, match=words):
        run(bounds, function, *arguments)
    assert opened() == before


def test_one_that_hangs_is_ended(tmp_path):
    place = tmp_path / "pid"
    with pytest.raises(WorkerFailed, match="no result in 2 s"):
        run(Bounds(timeout_s=2.0), tasks.hang, str(place))
    assert not Path("/proc", place.read_text().strip()).exists()


def test_a_function_without_a_name_is_refused_at_once():
    with pytest.raises(ValueError, match="cannot be found by its name"):
        run(USUAL, lambda: 1)
