# SPDX-License-Identifier: Apache-2.0
"""Call frame information: as another reader of it (readelf) tells it, and in files that are broken."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import cfi

FILES = ("/usr/bin/true", "/lib/x86_64-linux-gnu/libm.so.6", os.path.realpath(sys.executable))
LOST, KEPT = 1, 0


@cache
def content_of(path):
    return Path(path).read_bytes()


def table_of(content):
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return cfi.read_table(file.fileno())


def told_by_readelf(path):
    """Yield (address, rule) of every row of every function; a rule is None where it is beyond us."""
    # Not checked: it also complains of debug files that are not installed.
    output = subprocess.run(["readelf", "-wF", path], capture_output=True, text=True, check=False).stdout
    columns = []
    is_function = False
    for line in output.splitlines():
        if " CIE" in line or " FDE " in line:
            is_function, columns = " FDE " in line, []
        elif line.lstrip().startswith("LOC"):
            columns = line.split()
        elif is_function and columns and re.match(r"[0-9a-f]{16} ", line):
            row = dict(zip(columns, line.split(), strict=False))
            yield int(row["LOC"], 16), rule_from(row)


def rule_from(row):
    base = re.fullmatch(r"r(sp|bp)\+(\d+)", row["CFA"])
    if row["ra"] == "u":
        return cfi.END
    if base is None:
        return None
    frame = row.get("rbp", "u")
    at = re.fullmatch(r"c([-+]\d+)", frame)
    return cfi.Rule(
        cfi.RSP if base[1] == "sp" else cfi.RBP,
        int(base[2]),
        int(row["ra"].removeprefix("c")),
        KEPT if frame in {"u", "s"} else int(at[1]) if at else LOST,
    )


@pytest.mark.parametrize("path", FILES)
def test_every_row_is_as_readelf_tells_it(path):
    if shutil.which("readelf") is None or not os.path.exists(path):
        pytest.skip("no readelf (apt install binutils), or no such file")
    table = table_of(content_of(path))
    assert table is not None
    rows = list(told_by_readelf(path))

    assert len(rows) > 100
    different = [
        (hex(address), rule, table.rule_at(address))
        for address, rule in rows
        if rule is not None and table.rule_at(address) != rule
    ]
    assert different == []


def test_an_entry_of_a_linkage_table_may_have_pushed_a_word():
    """rsp + 8, and 8 more from the eleventh byte on: as ld writes it (DW_CFA_def_cfa_expression)."""
    program = bytes([0x0F, 11, 0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22])
    found = []
    for address in (0x1020, 0x102A, 0x102B, 0x102F):
        state = cfi.State()
        common = cfi.Common(1, -8, 0, has_length=False, is_signal=False, program=b"")
        assert cfi.run(program, common, state, cfi.State(), (0x1020, address + 1, address))
        found.append((state.base, state.cfa_offset))

    assert found == [(cfi.RSP, 8), (cfi.RSP, 8), (cfi.RSP, 16), (cfi.RSP, 16)]


def test_what_has_no_table_says_so():
    assert table_of(b"") is None
    assert table_of(b"#!/bin/sh\n" * 20) is None
    assert table_of(content_of("/usr/bin/true")[:4096]) is None


@cache
def place_of_tables():
    """Where in the file both tables are."""
    with Path("/usr/bin/true").open("rb") as file:
        parts = [ELFFile(file).get_section_by_name(name) for name in (".eh_frame_hdr", ".eh_frame")]
    return parts[0]["sh_offset"], parts[1]["sh_offset"] + parts[1]["sh_size"]


@given(data=st.data())
def test_a_broken_file_is_never_more_than_not_known(data):
    """Bytes of the tables are changed at will."""
    content = bytearray(content_of("/usr/bin/true"))
    begin, end = place_of_tables()
    for _ in range(data.draw(st.integers(1, 40))):
        content[data.draw(st.integers(begin, end - 1))] = data.draw(st.integers(0, 255))
    table = table_of(bytes(content))
    if table is not None:
        for address in data.draw(st.lists(st.integers(0, 1 << 20), max_size=20)):
            rule = table.rule_at(address)
            assert rule is None or rule.base in {cfi.RSP, cfi.RBP, cfi.RETURN}
