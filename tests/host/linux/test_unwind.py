# SPDX-License-Identifier: Apache-2.0
"""Stacks that were copied: by rules that are known, and what a fault without a copy takes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.bpf.faults import COPY, COPY_WORDS
from memsculpt.host.linux import cfi
from memsculpt.host.linux.fault_stacks import NO_COPY, nearest
from memsculpt.host.linux.unwind import UNKNOWN, unwind

SP = 0x7FFF_0000_1000
LEAF, BY_SP, BY_BP, FIRST, OTHER = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
RULES = {
    LEAF: cfi.Rule(cfi.RSP, 8, -8, 0),  # nothing pushed yet
    BY_SP: cfi.Rule(cfi.RSP, 32, -8, -16),  # has pushed rbp, uses it for something else
    BY_BP: cfi.Rule(cfi.RBP, 16, -8, -16),  # push rbp; mov rsp, rbp; and room of any size
    FIRST: cfi.END,
}


def rules_of(addresses):
    return np.array([RULES.get(address & ~0xFFF, UNKNOWN) for address in addresses], np.int64).reshape(-1, 4)


def copied(ip, words, bp=0, count=None):
    one = np.zeros(1, COPY)
    one["ip"], one["sp"], one["bp"] = ip, SP, bp
    one["words"][0, : len(words)] = words
    one["bytes"] = 8 * (COPY_WORDS if count is None else count)
    return one


def unwound(*copies):
    found, depths, is_whole = unwind(np.concatenate(copies), rules_of)
    return [
        ([int(one) for one in row[:depth]], bool(whole))
        for row, depth, whole in zip(found, depths, is_whole, strict=True)
    ]


def test_frames_of_both_kinds_are_passed():
    """leaf <- by rsp, which keeps the frame pointer <- by rbp, with room between <- the first."""
    frame = SP + 8 * 8  # where the caller by rbp has pushed
    words = [BY_SP + 5, 1, 2, frame, BY_BP + 9, 77, 77, 77, 123, FIRST + 3]
    expected = [LEAF, BY_SP + 5, BY_BP + 9, FIRST + 3], True

    assert unwound(copied(LEAF, words, bp=999)) == [expected]
    assert unwound(copied(FIRST + 1, []), copied(LEAF, words, bp=999)) == [([FIRST + 1], True), expected]


def test_a_stack_ends_where_it_is_not_known_further():
    """No rule, no more bytes, a frame pointer that leads out of the copy, or back."""
    assert unwound(copied(OTHER, [BY_SP])) == [([OTHER], False)]
    assert unwound(copied(LEAF, [OTHER + 1])) == [([LEAF, OTHER + 1], False)]
    assert unwound(copied(BY_SP, [1, 2, SP, FIRST + 1], count=3)) == [([BY_SP], False)]
    for bp in (0, SP - 64, SP + 8 * COPY_WORDS, SP + 4, 2**64 - 1):
        assert unwound(copied(BY_BP, [BY_SP] * COPY_WORDS, bp=bp)) == [([BY_BP], False)]


def test_a_return_to_nowhere_is_the_end():
    assert unwound(copied(LEAF, [BY_SP + 1, 1, 2, 3, 0])) == [([LEAF, BY_SP + 1], True)]


def test_the_call_is_looked_up_and_not_what_follows_it():
    """A call that never returns may be the last of its function: behind it another begins."""
    assert unwound(copied(LEAF, [BY_SP + 0x1000, 1, 2, 3, FIRST + 1])) == [
        ([LEAF, BY_SP + 0x1000, FIRST + 1], True),
    ]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=64), st.sampled_from(sorted(RULES)), st.integers(0, 2**64 - 1))
def test_any_stack_has_an_end(words, ip, bp):
    ((addresses, _),) = unwound(copied(ip, [*words, *[LEAF, BY_SP, BY_BP, SP + 64] * 100], bp=bp))

    assert addresses[0] == ip


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([NO_COPY, 10, 11, 12])), max_size=30))
def test_what_is_missing_is_that_of_the_nearest_before_or_else_the_first_after(rows):
    keys = [key for key, _ in rows]
    known = [one for _, one in rows]
    found = nearest(keys, np.array(known, np.int64)).tolist()

    for at, (key, one) in enumerate(rows):
        before = [other for each, other in rows[: at + 1] if each == key and other != NO_COPY]
        after = [other for each, other in rows[at:] if each == key and other != NO_COPY]
        assert found[at] == (before[-1] if before else after[0] if after else NO_COPY), (at, one)
