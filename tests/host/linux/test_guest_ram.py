# SPDX-License-Identifier: Apache-2.0
"""Where guest memory lies: answers of the human monitor, and that no answer is believed which cannot be so."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.vm import Backing, VmId
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable, Vanished
from memsculpt.host.linux import guest_ram
from memsculpt.host.linux.guest_ram import FlatRange, parse_gpa2hva, parse_memdevs, parse_mtree
from memsculpt.host.linux.qmp import CommandError

GIB, MIB = 1 << 30, 1 << 20
BASE = 0x7F0000000000
VM, PROCESS = VmId("x"), Instance(pid=7, start_ticks=1)
# Of a q35 with 4 GiB (QEMU 7.2), shortened.
MTREE = """\
FlatView #0
 AS "virtio-balloon-pci", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pool
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pool @00000000000c0000
  0000000000100000-000000007fffffff (prio 0, ram): pool @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): pool @0000000080000000 KVM

FlatView #3
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000ffffffff (prio 0, ram): somebody
"""
MEMDEV = [{"id": "pool", "size": 4 * GIB, "merge": True, "prealloc": False, "share": False, "dump": True, "policy": "default", "host-nodes": []}]  # noqa: E501  # fmt: skip


class Monitor:
    """Answers as QEMU does for a block at BASE, or as it is told."""

    def __init__(self, mtree: object = MTREE, memdev: object = MEMDEV, base: int = BASE) -> None:
        self.mtree, self.memdev, self.base = mtree, memdev, base
        self.hva: dict[int, object] = {}

    def ask(self, commands) -> list:
        answers = []
        for command in commands:
            line = (command.arguments or {}).get("command-line", "")
            if command.name == "query-memdev":
                answers.append(self.memdev)
            elif line == "info mtree -f":
                answers.append(self.mtree)
            else:
                guest = int(line.split()[1], 16)
                offset = guest if guest < 2 * GIB else guest - 2 * GIB
                told = f"Host virtual address for {guest:#x} (pool) is {self.base + offset:#x}\r\n"
                answers.append(self.hva.get(guest, told))
        return answers


def a_proc(folder: Path, line: str = "rw-p 00000000 00:00 0", kib: int = 4, size: int = 4 * GIB) -> str:
    process = folder / "7"
    process.mkdir()
    head = f"{BASE:x}-{BASE + size:x} {line}"
    (process / "maps").write_text(f"10000-20000 rwxp 00000000 00:00 0\n{head}\n")
    (process / "smaps").write_text(f"{head}\nSize: {size >> 10} kB\nKernelPageSize:        {kib} kB\n")
    return str(folder)


def test_a_split_memory_is_found(tmp_path):
    """Two stretches around the hole, and the first megabyte's; video memory, firmware and other views are not ours."""
    ram = guest_ram.find(VM, PROCESS, Monitor().ask, a_proc(tmp_path))
    assert [(one.guest_start, one.size_bytes) for one in ram.ranges] == [
        (0, 0xA0000),
        (MIB, 2 * GIB - MIB),
        (4 * GIB, 2 * GIB),
    ]
    assert ram.host_address(4 * GIB + 17) == BASE + 2 * GIB + 17
    assert ram.host_address(0xC0000) is None
    assert (ram.backing, ram.page_bytes, ram.is_mergeable, ram.is_preallocated) == (Backing.PRIVATE, 4096, True, False)


@pytest.mark.parametrize(
    ("line", "kib", "backing"),
    [
        ("rw-p 00000000 00:00 0", 4, Backing.PRIVATE),
        ("rw-s 00000000 00:01 5 /dev/zero (deleted)", 4, Backing.SHARED),
        ("rw-s 00000000 00:01 5 /memfd:memory-backend-memfd (deleted)", 4, Backing.MEMFD),
        ("rw-s 00000000 00:1a 5 /dev/shm/guest", 4, Backing.FILE),
        ("rw-s 00000000 00:1a 5 /memfd:memory-backend-memfd (deleted)", 2048, Backing.HUGETLB),
        ("rw-p 00000000 00:1a 5 /dev/hugepages/x (deleted)", 1048576, Backing.HUGETLB),
    ],
)
def test_what_it_is_made_of(tmp_path, line, kib, backing):
    ram = guest_ram.find(VM, PROCESS, Monitor().ask, a_proc(tmp_path, line, kib))
    assert (ram.backing, ram.page_bytes) == (backing, kib * 1024)


def test_answers_that_cannot_be_are_refused(tmp_path):
    """Memory outside of what is mapped, in a mapping that cannot be memory, at two places at once, or nowhere."""
    proc = a_proc(tmp_path)
    nowhere = Monitor(base=BASE + 4096)
    with pytest.raises(Unavailable, match="no writable mapping"):
        guest_ram.find(VM, PROCESS, nowhere.ask, proc)
    code = Monitor(mtree=MTREE.replace("000000007fffffff", "0000000000100fff"), base=0x10000 - MIB)
    with pytest.raises(Unavailable):
        guest_ram.find(VM, PROCESS, code.ask, proc)
    twice = Monitor()
    twice.hva[4 * GIB] = f"Host virtual address for {4 * GIB:#x} (pool) is {BASE:#x}"
    with pytest.raises(Unavailable, match="would lie at"):
        guest_ram.find(VM, PROCESS, twice.ask, proc)
    other = Monitor()
    other.hva[0] = f"Host virtual address for 0x0 (vga.vram) is {BASE:#x}"
    with pytest.raises(Unavailable, match="no host address"):
        guest_ram.find(VM, PROCESS, other.ask, proc)
    for mtree in ("", None, CommandError("CommandNotFound", "no"), [], MTREE.partition("FlatView #2")[0]):
        with pytest.raises(Unavailable, match="tells no memory"):
            guest_ram.find(VM, PROCESS, Monitor(mtree=mtree).ask, proc)


def test_a_process_that_has_ended_is_gone(tmp_path):
    with pytest.raises(Vanished):
        guest_ram.find(VM, PROCESS, Monitor().ask, str(tmp_path))


@given(st.text(max_size=300) | st.lists(st.sampled_from(MTREE.splitlines()), max_size=20).map("\n".join))
def test_no_tree_breaks_the_parser(text: str):
    """Torn, shuffled or made up: stretches ascend and hold something, and nothing raises."""
    found = parse_mtree(text)
    assert list(found) == sorted(found, key=lambda one: one.start)
    assert all(0 <= one.start < one.end and one.offset >= 0 for one in found)


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 36), st.text("abc.-@ ", min_size=1, max_size=9)),
        max_size=8,
    )
)
def test_what_is_printed_is_read(stretches: list[tuple[int, int, str]]):
    """Any block names, at any addresses."""
    meant = sorted(
        (
            FlatRange(start=start, end=start + size, block=f"b{name.strip()}", offset=0)
            for start, size, name in stretches
            if " @" not in f"b{name}"
        ),
        key=lambda one: one.start,
    )
    lines = [f"  {one.start:016x}-{one.end - 1:016x} (prio 0, ram): {one.block}" for one in meant]
    text = "\n".join(["FlatView #0", ' AS "memory", root: system', " Root memory region: system", *lines, ""])
    assert parse_mtree(text) == tuple(meant)


@given(st.text(max_size=80))
def test_no_answer_breaks_gpa2hva(text: str):
    assert parse_gpa2hva(text) is None or "is 0x" in text


def test_gpa2hva():
    assert parse_gpa2hva("Host virtual address for 0x100000 (pc.ram) is 0x7fe5abe00000\r\n") == (
        MIB,
        "pc.ram",
        0x7FE5ABE00000,
    )
    assert parse_gpa2hva("No memory is mapped at address 0xc0000000") is None


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda each: st.lists(each) | st.dictionaries(
    st.sampled_from(["id", "size", "share"]), each)))  # fmt: skip
def test_no_answer_breaks_memdev(answer: object):
    assert all(one.size_bytes > 0 for one in parse_memdevs(answer))
