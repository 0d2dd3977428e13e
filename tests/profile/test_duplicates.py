# SPDX-License-Identifier: Apache-2.0
"""What merging would save, against a count of everything."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.sharing import PAGE_WORDS, PageContents
from memsculpt.domain.vm import VmId
from memsculpt.profile import duplicates

PAGE = 4096
MOST = 256
RANDOM = np.random.default_rng(7)
SALT = duplicates.salt_from(RANDOM.bytes(2 * PAGE))


def pages_of(ids, first=0):
    """Pages whose content is made from a number; 0 is a page of zeros."""
    numbers = np.asarray(ids, np.uint64)
    words = numbers[:, np.newaxis] * (np.arange(PAGE_WORDS, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(1))
    return PageContents(addresses=(first + np.arange(len(numbers), dtype=np.int64)) * PAGE, words=words)


def looked(contents, *, again=None, salt=SALT, kept_most=duplicates.KEPT_MOST, chunk=1000):
    """Look at VMs twice; `again` are the contents at the second look."""
    again = contents if again is None else again
    sweep = duplicates.begin_sweep(tuple(contents), salt)
    for vm, ids in contents.items():
        for first in range(0, len(ids), chunk):
            part = pages_of(ids[first : first + chunk], first)
            sweep = duplicates.take_in(sweep, vm, part, kept_most=kept_most)
    for vm, ids in again.items():
        wanted = duplicates.to_see_again(sweep, vm)
        there = wanted[wanted // PAGE < len(ids)]
        found = pages_of(np.asarray(ids, np.uint64)[there // PAGE])
        sweep = duplicates.see_again(sweep, vm, PageContents(addresses=there, words=found.words))
    return duplicates.estimate_gain(sweep, most_sharing=MOST, uses_zero_pages=False, at_s=1.0)


def saved_pages(contents):
    """What the kernel would save: of each content all but one in MOST."""
    users = Counter(one for ids in contents.values() for one in ids)
    return sum(count - -(-count // MOST) for count in users.values())


vms = st.dictionaries(
    st.sampled_from([VmId("a"), VmId("b"), VmId("c")]), st.lists(st.integers(0, 12), max_size=25), min_size=1
)


@settings(max_examples=25)
@given(contents=vms, chunk=st.integers(5, 30))
def test_of_few_pages_all_are_counted(contents, chunk):
    """Where nothing has to be left out the estimate is the count, its interval what drifts, the VMs' parts its sum."""
    gain = looked(contents, chunk=chunk)

    assert gain.total.size_bytes == pytest.approx(saved_pages(contents) * PAGE)
    assert gain.total.low_bytes == pytest.approx(gain.total.size_bytes * (1 - duplicates.DRIFT_RATIO))
    assert gain.total.high_bytes == pytest.approx(gain.total.size_bytes * (1 + duplicates.DRIFT_RATIO))
    assert sum(gain.by_vm.values()) == pytest.approx(gain.total.size_bytes)
    assert gain.looked_pages == sum(map(len, contents.values()))
    assert gain.kept_ratio == 1.0


@settings(max_examples=25)
@given(contents=vms)
def test_what_changes_between_two_looks_is_not_merged(contents):
    """No page is as it was: nothing is promised; the upper end is what all of them would have given."""
    other = {vm: [one + 1000 for one in ids] for vm, ids in contents.items()}

    gain = looked(contents, again=other)

    assert gain.total.size_bytes == 0.0
    assert gain.total.high_bytes == pytest.approx(saved_pages(contents) * PAGE)


def test_a_part_that_changes_counts_for_nothing():
    """Of twins whose second half is written all the time the first half is what merging saves."""
    same = list(range(1, 1001))
    contents = {VmId("a"): same, VmId("b"): same}
    again = {VmId("a"): same[:500] + [one + 5000 for one in same[500:]], VmId("b"): same}

    gain = looked(contents, again=again)

    assert gain.total.size_bytes == 500 * PAGE
    assert gain.unsteady_ratio == pytest.approx(0.25)
    assert gain.by_vm == {VmId("a"): 250 * PAGE, VmId("b"): 250 * PAGE}


def test_pages_that_are_gone_at_the_second_look_count_for_nothing():
    """A balloon took them, or they were swapped out."""
    ids = list(range(1, 101))

    gain = looked({VmId("a"): ids, VmId("b"): ids}, again={VmId("a"): ids[:40], VmId("b"): []})

    assert gain.total.size_bytes == 0.0


def test_one_page_has_so_many_users_at_most():
    """1000 pages of zeros need four of the kernel's merged pages, or none where its own page of zeros stands in."""
    sweep = duplicates.begin_sweep((VmId("a"),), SALT)
    sweep = duplicates.take_in(sweep, VmId("a"), pages_of([0] * 1000))
    sweep = duplicates.see_again(sweep, VmId("a"), pages_of([0] * 1000))

    merged = duplicates.estimate_gain(sweep, most_sharing=MOST, uses_zero_pages=False, at_s=0.0)
    replaced = duplicates.estimate_gain(sweep, most_sharing=MOST, uses_zero_pages=True, at_s=0.0)

    assert merged.total.size_bytes == 996 * PAGE
    assert replaced.total.size_bytes == 1000 * PAGE
    assert merged.zero_pages == 1000


def test_the_interval_of_a_sample_holds_the_count():
    """With one content in eight kept, and a salt of its own each time, 95 of 100 intervals hold it, or nearly so."""
    shared = RANDOM.integers(1, 1 << 40, 600)
    often = np.repeat(RANDOM.integers(1, 1 << 40, 40), 10)
    contents = {
        VmId("a"): [*shared, *RANDOM.integers(1, 1 << 40, 300), *[0] * 100],
        VmId("b"): [*shared, *RANDOM.integers(1, 1 << 40, 300), *often],
    }
    truth = saved_pages(contents) * PAGE
    errors, held = [], 0
    for _ in range(20):
        gain = looked(contents, salt=duplicates.salt_from(RANDOM.bytes(2 * PAGE)), kept_most=300)
        assert gain.kept_ratio <= 1 / 4
        errors.append(gain.total.size_bytes / truth - 1.0)
        drift = duplicates.DRIFT_RATIO * gain.total.size_bytes  # of which there is none here
        held += gain.total.low_bytes + drift <= truth <= gain.total.high_bytes - drift

    assert held >= 17
    assert abs(np.mean(errors)) < 0.06


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32), at=st.integers(0, PAGE_WORDS - 1), bit=st.integers(0, 63))
def test_pages_that_differ_in_one_bit_have_different_hashes(seed, at, bit):
    """Also in the highest one, which a sum of products loses."""
    first = np.random.default_rng(seed).integers(0, 1 << 64, PAGE_WORDS, np.uint64)
    words = np.array([first, first])
    words[1, at] ^= np.uint64(1) << np.uint64(bit)

    one, other = duplicates.hashes_of(words, SALT)

    assert one != other


def test_pages_that_differ_in_two_highest_bits_have_different_hashes():
    """The case that odd multipliers would always get wrong."""
    words = np.zeros((2, PAGE_WORDS), np.uint64)
    words[1, [3, 77]] = np.uint64(1 << 63)

    assert len(set(duplicates.hashes_of(words, SALT).tolist())) == 2


def test_a_salt_has_one_length():
    """What is too short would make hashes that miss differences."""
    with pytest.raises(ValueError, match="8192 bytes, not 10"):
        duplicates.salt_from(b"0123456789")
