# SPDX-License-Identifier: Apache-2.0
"""Shared memory asked through its file: what a process has, seen from outside, and what its page tables do not tell."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import PAGE_BYTES, Grain, Mapping, Touches
from memsculpt.host.blocks import WORD_BYTES
from memsculpt.host.linux import runs, shared_memory
from memsculpt.host.linux.guest_pages import with_unmapped, without_zeros
from memsculpt.host.linux.maps import parse_mappings

PAGES = 64
BASE = 1 << 40


@pytest.fixture
def memfd() -> Iterator[mmap.mmap]:
    file = os.memfd_create("memsculpt-test")
    os.ftruncate(file, PAGES * PAGE_BYTES)
    with mmap.mmap(file, PAGES * PAGE_BYTES) as memory:
        os.close(file)
        yield memory


def opened(name: str) -> shared_memory.SharedMemory:
    mapping = next(one for one in parse_mappings(Path("/proc/self/maps").read_bytes()) if name in one.name)
    folder = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return shared_memory.SharedMemory(folder, mapping)
    finally:
        os.close(folder)


def area(file: shared_memory.SharedMemory) -> Int64:
    return np.array([(file.mapping.start, file.mapping.end)], np.int64)


@pytest.mark.needs("root")
def test_what_exists_is_told_from_what_was_never_touched(memfd):
    """Pages that were written are held and resident, holes are neither, and a look at them makes none."""
    memfd[5 * PAGE_BYTES] = memfd[6 * PAGE_BYTES] = memfd[40 * PAGE_BYTES] = 1
    file = opened("memsculpt-test")
    try:
        assert file.problem == ""
        start = file.mapping.start
        wanted = [[start + 5 * PAGE_BYTES, start + 7 * PAGE_BYTES], [start + 40 * PAGE_BYTES, start + 41 * PAGE_BYTES]]
        for _ in range(2):
            assert file.held(area(file)).tolist() == wanted
            assert file.resident(area(file)).tolist() == wanted
        resident, swapped = file.unmapped(area(file), runs.NONE)
        assert resident.tolist() == wanted
        assert not len(swapped)
        assert file.held(np.array([[start, start + 6 * PAGE_BYTES]], np.int64)).tolist() == [
            [start + 5 * PAGE_BYTES, start + 6 * PAGE_BYTES]
        ]
    finally:
        file.close()
    file.close()


@pytest.mark.needs("root")
def test_a_file_on_a_disk_is_no_pool(tmp_path):
    """Its pages leave to the file by themselves; the reason says so. (A tmpfs below tmp_path would be one.)"""
    path = Path(__file__)
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED):
        file = opened(path.name)
        try:
            assert file.problem in {shared_memory.ON_DISK, ""}
            assert (file.problem == "") == (os.statvfs(path).f_fsid == os.statvfs("/dev/shm").f_fsid)
        finally:
            file.close()


@pytest.mark.needs("root")
def test_only_shared_mappings_that_meet_the_ranges_are_opened(memfd):
    """Private memory is never opened, nor what lies elsewhere."""
    memfd[0] = 1
    mappings = parse_mappings(Path("/proc/self/maps").read_bytes())
    ours = next(one for one in mappings if "memsculpt-test" in one.name)
    folder = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = shared_memory.open_within(folder, mappings, [(ours.start, ours.end)])
        assert [one.mapping for one in found] == [ours]
        for one in found:
            one.close()
        private = next(one for one in mappings if not one.is_shared)
        assert shared_memory.open_within(folder, mappings, [(private.start, private.end)]) == []
    finally:
        os.close(folder)


def touches_of(rows: list[int], present: list[int], start: int, pages: int) -> Touches:
    """A look at a mapping [start, start + pages) that found rows by number of block."""
    mapping = Mapping(start=start, end=start + pages * PAGE_BYTES, name="", is_shared=True, is_file=True)
    begins = np.maximum(np.array(rows, np.int64) * WORD_BYTES, start)
    ends = np.minimum((np.array(rows, np.int64) + 1) * WORD_BYTES, mapping.end)
    zeros = np.zeros(len(rows), np.int64)
    return Touches(
        mappings=(mapping,),
        grain=Grain.PAGE,
        starts=begins,
        ends=ends,
        mapping_index=zeros,
        present=np.array(present, np.int64),
        touched=zeros.copy(),
        dirty=zeros.copy(),
        swapped=zeros.copy(),
        unknown=zeros.copy(),
        is_huge=np.zeros(len(rows), np.bool_),
        touched_pages=np.arange(len(rows), dtype=np.uint16),
    )


@given(st.data(), st.integers(0, 15), st.integers(16, 200))
def test_pages_out_of_the_tables_join_the_rows_of_their_blocks(data, shift, pages):
    """Every page is counted once, in the row of its block; rows ascend, and what a row knew it keeps."""
    start = BASE + shift * PAGE_BYTES
    states = data.draw(
        st.lists(st.sampled_from("hmrs"), min_size=pages, max_size=pages)
    )  # hole, mapped, resident, swapped
    flags = np.array(states)
    words = (start // PAGE_BYTES + np.arange(pages)) // 16
    mapped = np.bincount(words - words[0], weights=flags == "m").astype(int)
    rows = np.flatnonzero(mapped)
    before = touches_of((rows + words[0]).tolist(), mapped[rows].tolist(), start, pages)

    after = with_unmapped(
        before, 0, runs.runs_of(flags == "r", start, PAGE_BYTES), runs.runs_of(flags == "s", start, PAGE_BYTES)
    )

    assert (np.diff(after.starts) > 0).all()
    assert (after.starts >= start).all()
    assert (after.ends <= start + pages * PAGE_BYTES).all()
    for name, kinds in (("present", "mr"), ("swapped", "s")):
        wanted = np.bincount(words - words[0], weights=np.isin(flags, list(kinds)))
        got = np.zeros(len(wanted))
        got[after.starts // WORD_BYTES - words[0]] = getattr(after, name)
        assert got.tolist() == wanted.tolist()
    kept = np.isin(after.starts, before.starts)
    assert after.touched_pages[kept].tolist() == before.touched_pages.tolist()
    assert not after.touched_pages[~kept].any()


def test_the_page_of_zeros_is_no_memory():
    """A row loses what of it is the page of zeros, and never more than it has."""
    before = touches_of([BASE // WORD_BYTES, BASE // WORD_BYTES + 1], [16, 3], BASE, 32)
    zeros = np.array([[BASE + 4 * PAGE_BYTES, BASE + 30 * PAGE_BYTES]], np.int64)

    assert without_zeros(before, zeros).present.tolist() == [4, 0]
    assert without_zeros(before, runs.NONE) is before
