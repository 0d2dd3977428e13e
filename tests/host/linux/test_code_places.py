# SPDX-License-Identifier: Apache-2.0
"""Addresses -> places in code -> names, also when the process or the file has gone."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.growth import KINDS, MODULE_SHIFT, Module, SampledStack
from memsculpt.domain.pages import Mapping
from memsculpt.host.linux import elf
from memsculpt.host.linux.build_id import parse_notes, read_identity
from memsculpt.host.linux.code_places import ANONYMOUS, FILE, SHARED, Modules, ProcessPlaces
from memsculpt.host.linux.maps import parse_mappings
from memsculpt.host.linux.stored_symbols import name_stacks
from memsculpt.host.linux.symbols import follows_call, parse_perf_map

PYTHON = os.path.realpath(sys.executable)


def identity_of(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_identity(descriptor)
    finally:
        os.close(descriptor)


def mapping(start, size, name="", *, offset=0, code=True):
    return Mapping(
        start=start,
        end=start + size,
        name=name,
        is_shared=False,
        is_file=name.startswith("/"),
        is_executable=code,
        offset=offset,
    )


def stack(*frames, words=(), touched=4096):
    return SampledStack(
        frames=frames,
        words=words,
        kind="anonymous",
        touched_bytes=touched,
        held_bytes=touched,
        sample_count=1,
        touched_variance=1.0,
        held_variance=0.5,
    )


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_it_has_an_identity(content):
    """A build id or facts of the file; never an error but the kernel's."""
    parse_notes(content)
    descriptor = os.memfd_create("identity")
    try:
        os.write(descriptor, content)
        assert read_identity(descriptor).startswith("inode ")
        os.pwrite(descriptor, b"\x7fELF\x02\x01", 0)
        assert read_identity(descriptor)
    finally:
        os.close(descriptor)


def test_a_note_is_read():
    note = (
        (4).to_bytes(4, "little") + (2).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"GNU\0" + b"\xab\xcd\0\0"
    )
    other = (4).to_bytes(4, "little") + (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"GNU\0"
    assert parse_notes(other + note) == "abcd"
    assert parse_notes(note[:-3]) == ""


@given(st.binary(max_size=9))
def test_calls_are_recognised_by_seven_bytes(code):
    assert not (len(code) != 7 and follows_call(code))
    assert follows_call(b"\x90\x90\xe8\0\0\0\0")


def test_addresses_become_places_and_what_is_no_code_becomes_nothing():
    modules = Modules()
    places = ProcessPlaces(
        [
            mapping(0x10000, 0x2000, PYTHON, offset=0x3000),
            mapping(0x20000, 0x1000, code=True),
            mapping(0x30000, 0x1000, code=False),
        ],
        modules,
        os.getpid(),
    )
    found = places.places(np.array([[0x10010, 0xFFFF], [0x20008, 0x30000]], np.uint64))
    assert found[0].tolist() == [(1 << MODULE_SHIFT) + 0x3010, 0]
    assert found[1].tolist() == [(2 << MODULE_SHIFT) + 0x20008, 0]
    known = modules.all()
    assert [one.name for one in known] == ["[unknown]", PYTHON, "[anonymous code]"]
    assert known[1].identity == identity_of(PYTHON)
    assert known[2].pid == os.getpid()


def test_a_file_is_one_module_wherever_it_is_mapped():
    modules = Modules()
    for start in (0x10000, 0x70000):
        ProcessPlaces([mapping(start, 0x1000, PYTHON)], modules, os.getpid())
    assert len(modules.all()) == 2


def test_memory_of_files_and_shared_memory_are_told_apart():
    places = ProcessPlaces(
        [
            mapping(0x10000, 0x1000, "/lib/data", code=False),
            replace(mapping(0x20000, 0x1000, "/dev/shm/x", code=False), is_file=True),
            mapping(0x30000, 0x1000, code=False),
        ],
        Modules(),
        os.getpid(),
    )
    found = places.kinds(np.array([0x10000, 0x20FFF, 0x30000, 0x21000]))
    assert found.tolist() == [FILE, SHARED, ANONYMOUS, ANONYMOUS]
    assert [KINDS[kind] for kind in found.tolist()] == ["file", "shared", "anonymous", "anonymous"]


def test_our_own_code_is_found_again_by_name():
    """A place in the middle of a function of the C library has that function's name."""
    libc = next(
        one
        for one in parse_mappings(Path("/proc/self/maps").read_bytes())
        if "libc.so" in one.name and one.is_executable
    )
    functions = elf.read_functions(libc.name, libc.name)
    row = functions.names.index("malloc")
    begin, size, at = next(one for one in functions.segments if one[2] <= functions.starts[row] < one[2] + one[1])
    offset = functions.starts[row] + 4 - at + begin
    module = Module(name=libc.name, identity=identity_of(libc.name), places=("/nowhere", libc.name))
    named, notes = name_stacks((Module(name="[unknown]"), module), (stack((1 << MODULE_SHIFT) + offset),))
    assert named[0].frames == (("malloc", libc.name),)
    assert notes == ()
    assert size > 0


def test_a_file_that_was_replaced_gives_no_wrong_names(tmp_path):
    path = tmp_path / "program"
    shutil.copy(PYTHON, path)
    old = Module(name=str(path), identity="0123", places=(str(path),))
    named, notes = name_stacks((Module(name="[unknown]"), old), (stack((1 << MODULE_SHIFT) + 0x5000),))
    assert named[0].frames == (("[program]", str(path)),)
    assert any("was replaced" in note for note in notes)


def test_two_files_of_one_path_are_kept_apart():
    modules = (
        Module(name="[unknown]"),
        Module(name="/usr/bin/x", functions=((0, 9, "before"),)),
        Module(name="/usr/bin/x", identity="beef", functions=((0, 9, "after"),)),
    )
    named, _ = name_stacks(modules, (stack((1 << MODULE_SHIFT) + 1), stack((2 << MODULE_SHIFT) + 1)))
    assert {one.frames for one in named} == {(("before", "/usr/bin/x"),), (("after", "/usr/bin/x (beef)"),)}


def test_stacks_that_are_alike_by_name_are_one():
    modules = (Module(name="[unknown]"), Module(name="/x", functions=((0, 9, "f"), (16, 32, "g"))))
    base = 1 << MODULE_SHIFT
    named, _ = name_stacks(modules, (stack(base + 1, base + 20), stack(base + 5, base + 18), stack(0)))
    by_frames = {one.frames: one for one in named}
    assert set(by_frames) == {(("f", "/x"), ("g", "/x")), (("[unknown]", "[unknown]"),)}
    assert by_frames[("f", "/x"), ("g", "/x")].touched_bytes == 8192
    assert by_frames[("f", "/x"), ("g", "/x")].touched_variance == 2.0


def test_code_that_a_living_process_made_has_the_names_that_it_wrote():
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    path.write_text("7f0000001000 100 py::made:file.py\n")
    try:
        assert parse_perf_map(path.read_bytes())
        made = Module(name="[anonymous code]", pid=os.getpid())
        places = (stack((1 << MODULE_SHIFT) + 0x7F0000001010),)
        named, _ = name_stacks((Module(name="[unknown]"), made), places)
    finally:
        path.unlink()
    assert named[0].frames == (("py::made:file.py", "[jit]"),)


@pytest.mark.parametrize("number", [0, 1, 4095])
def test_places_never_overflow(number):
    modules = tuple(Module(name=f"m{row}") for row in range(number + 1))
    named, _ = name_stacks(modules, (stack((number << MODULE_SHIFT) + (1 << MODULE_SHIFT) - 1),))
    assert len(named) == 1
