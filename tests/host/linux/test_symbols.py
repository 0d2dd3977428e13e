# SPDX-License-Identifier: Apache-2.0
"""Perf maps, mangled names, and pages that come, go and move."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from memsculpt.host.bpf.faults import BROKEN_OFF, MOVED, MOVING, UNMAPPED
from memsculpt.host.linux import elf
from memsculpt.host.linux.growth import SLIM, follow
from memsculpt.host.linux.maps import parse_mappings
from memsculpt.host.linux.smaps import parse_smaps
from memsculpt.host.linux.symbols import parse_perf_map


def test_a_perf_map_is_read():
    content = b"7f10 20 py::second:file.py\n7f00 10 py::first\nhalf a li"
    assert parse_perf_map(content) == [(0x7F00, 0x7F10, "py::first"), (0x7F10, 0x7F30, "py::second:file.py")]


def test_of_code_that_was_compiled_anew_the_last_counts():
    assert parse_perf_map(b"10 8 old\n10 4 new\n") == [(0x10, 0x14, "new")]


@given(st.binary(max_size=400))
def test_whatever_is_written_there_is_no_harm(content):
    parse_perf_map(content)
    parse_mappings(content)
    parse_smaps(content)


def test_names_as_their_authors_wrote_them():
    assert elf.demangled("_ZN4shop6Basket4fillEl") == "shop::Basket::fill(long)"
    assert elf.demangled("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE") == "core::fmt::Write::write_fmt"
    assert elf.demangled("_RNvC7mycrate3foo") == "mycrate::foo"
    assert elf.demangled("main") == "main"
    assert elf.demangled("_Znot_mangled") == "_Znot_mangled"


@given(st.text(max_size=60))
@example("C:")
def test_no_name_breaks_the_demangler(name):
    assert isinstance(elf.demangled("_R" + name), str)
    assert isinstance(elf.demangled("_Z" + name), str)
    assert isinstance(elf.demangled("_ZN" + name + "17hE"), str)


def test_a_file_that_is_no_elf_has_no_functions(tmp_path):
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(80)):
        (tmp_path / "file").write_bytes(content)
        assert elf.read_functions(str(tmp_path / "file")).name_at(0) is None


def records(*rows):
    made = np.zeros(len(rows), SLIM)
    for row, (address, what, size) in zip(made, rows, strict=True):
        row["address"], row["stack"], row["size"] = address, what, size
    return made


def test_a_page_that_comes_twice_counts_once_unless_it_went():
    came, now = follow(records((0x1000, 1, 0), (0x1008, 2, 0)), set(), set(), (0, 0))
    assert came.tolist() == [[0, 1]]
    assert now.tolist() == [[1, 1]]
    came, now = follow(records((0x1000, 1, 0), (0x1000, UNMAPPED, 4096), (0x1000, 2, 0)), set(), set(), (0, 0))
    assert came[:, 0].tolist() == [0, 2]
    assert now.tolist() == [[1, 0], [1, 1]]


def test_what_was_there_before_is_no_growth_until_it_went():
    rows = records((0x1000, 1, 0), (0x0, UNMAPPED, 8192), (0x1000, 1, 0))
    came, _ = follow(rows, {1}, set(), (0, 0))
    assert came[:, 0].tolist() == [2]


def test_pages_that_move_stay_with_who_brought_them():
    rows = records((0x1000, 1, 0), (0x2000, 1, 0), (0x1000, MOVING, 8192), (0x9000, MOVED, 0))
    _, now = follow(rows, set(), set(), (0, 0))
    assert now.tolist() == [[9, 1], [10, 1]]


def test_a_move_that_failed_moves_nothing():
    rows = records((0x1000, 1, 0), (0x1000, MOVING, 4096), (2**64 - 12, MOVED, 0))
    _, now = follow(rows, set(), set(), (0, 0))
    assert now.tolist() == [[1, 1]]


def test_the_heap_that_shrinks_gives_pages_back():
    rows = records((0x5000, 1, 0), (0x6000, 1, 0), (0x6000, BROKEN_OFF, 0))
    _, now = follow(rows, set(), set(), (0x5000, 0x8000))
    assert now[:, 1].tolist() == [1, 0]


def test_a_fault_that_brought_a_huge_page():
    came, _ = follow(records((0x200000, 1, 0)), set(), {1}, (0, 0))
    assert came.tolist() == [[0, 512]]
    came, _ = follow(records((0x200000, 1, 0), (0x201000, 1, 0)), set(), {1}, (0, 0))
    assert came[:, 1].sum() == 513  # small pages before, then one that the kernel could make huge
