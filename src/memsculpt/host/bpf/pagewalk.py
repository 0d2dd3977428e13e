# SPDX-License-Identifier: Apache-2.0
"""The page tables of a process, copied by native/bpf/pagewalk.bpf.c and decoded here.

Bits of an entry: Intel SDM vol. 3A, 4.5 (present 0, accessed 5, dirty 6, huge 7); Linux gives entries that are not
present their own meaning (arch/x86/include/asm/pgtable_64.h: bit 8 is PROT_NONE, the highest five bits the type of a
swap entry).

The kernel does not tell where its direct map of all memory begins. It is aligned to 1 GiB and lies below the top table
of any process: the candidates are tried until the walk of pages of our own gives the frame numbers that
/proc/self/pagemap gives.
"""

import ctypes
import mmap
import os
import platform
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool
from memsculpt.domain.pages import REGION_BYTES, REGION_PAGES, Bits, PageBits
from memsculpt.errors import Unavailable, Vanished
from memsculpt.host.bpf.program import PROGRAMS, Iterator, Program

# native/bpf/records.h; tests/kernel/test_bpf_walk.py holds the two against each other.
RECORD = np.dtype([("address", "<u8"), ("entry", "<u8"), ("table", "<i4"), ("pages", "<u4")])
STATE = np.dtype(
    [
        ("base", "<u8"),
        ("at", "<u8"),
        ("end", "<u8"),
        ("root", "<u8"),
        ("pid", "<u4"),
        ("levels", "<u4"),
        ("status", "<u4"),
        ("record_count", "<u4"),
        ("table_count", "<u4"),
        ("torn_count", "<u4"),
        ("failed_count", "<u4"),
        ("reserved", "<u4"),
    ]
)
NOT_FOUND, NO_MEMORY, DONE, MORE, GONE = range(5)

PRESENT, ACCESSED, DIRTY = 1, 1 << 5, 1 << 6
PROTNONE = 1 << 8
FRAME = 0x000F_FFFF_FFFF_F000
SWAP_TYPE_SHIFT = 59
# Types above are no swap: migration, poisoned and device pages, markers (include/linux/swap.h, MAX_SWAPFILES). A kernel
# without some of them has up to 8 more, for a 24th swap device.
SWAP_TYPES = 23

GIB = 1 << 30
DIRECT_MAP_LOWEST = 0xFF11_0000_0000_0000  # with five levels; 0xffff888000000000 with four, before it is moved about
USER_END = {4: 1 << 47, 5: 1 << 56}
PAGES_TRIED = 3

Tables = npt.NDArray[np.uint64]
"""Copied tables of the last level, shape (n_tables, 512)."""


class PageWalker:
    """Reads page tables; holds one program and three maps (2.1 MiB) in the kernel until it is closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load the program and find the direct map. Raises Unavailable."""
        if platform.machine() != "x86_64":
            raise Unavailable(
                place="BPF page walker",
                problem=f"reads the page tables of x86-64, not of {platform.machine()}",
                fix="none yet: a slower source serves",
            )
        self._program = Program(programs / "pagewalk.bpf.o")
        self._closing: list[mmap.mmap] = []
        self._all: Iterator | None = None
        try:
            self._state = self._share("state", STATE)
            self._records = self._share("records", RECORD)
            self._tables: Tables = self._share("tables", np.dtype("<u8")).reshape(-1, REGION_PAGES)
            self._base, self._levels = self._find_base()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the program and give the shared memory back."""
        self._program.close()
        for name in ("_state", "_records", "_tables"):
            if hasattr(self, name):
                delattr(self, name)  # an array holds its memory open
        for memory in self._closing:
            memory.close()
        self._closing.clear()

    def attach(self, pid: int) -> "AttachedWalker":
        """Return what walks one process, until it is closed. Raises Unavailable."""
        if self._all is None:
            try:
                return AttachedWalker(self, pid, self._program.iterator("walk_pages", pid), is_own=True)
            except Unavailable:  # before 6.1 all are listed, and the program looks for the one
                self._all = self._program.iterator("walk_pages")
        return AttachedWalker(self, pid, self._all, is_own=False)

    def walk(self, iterator: Iterator, pid: int, start: int = 0, end: int | None = None) -> PageBits:
        """Return what the tables say of the pages in [start, end); see AttachedWalker."""
        begin = start // REGION_BYTES * REGION_BYTES
        end = USER_END[self._levels] if end is None else min(end, USER_END[self._levels])
        parts: list[PageBits] = []
        is_complete = True
        at = begin
        while at < end:
            status, at = self._step(iterator, pid, at, end)
            if status in {NOT_FOUND, NO_MEMORY}:
                if not parts:
                    raise Vanished(place=f"process {pid}")
                is_complete = False
                break
            if status == GONE:
                is_complete = False
                break
            is_complete = is_complete and not int(self._state["failed_count"][0])
            parts.append(decode(self._copied_records(), self._tables))
            if status == DONE:
                break
        return joined(parts, is_complete=is_complete)

    def frame_of(self, iterator: Iterator, pid: int, address: int) -> int | None:
        """Return the frame number of one small page, None where it is not present."""
        self._step(iterator, pid, address // REGION_BYTES * REGION_BYTES, address + 1)
        return self._frame(address)

    def _step(self, iterator: Iterator, pid: int, at: int, end: int) -> tuple[int, int]:
        state = self._state[0]
        state["base"], state["levels"] = self._base, self._levels
        state["pid"], state["at"], state["end"], state["status"] = pid, at, end, NOT_FOUND
        state["record_count"] = state["table_count"] = state["torn_count"] = state["failed_count"] = 0
        iterator.read()
        return int(state["status"]), int(state["at"])

    def _copied_records(self) -> npt.NDArray[np.void]:
        return self._records[: int(self._state["record_count"][0])]

    def _frame(self, address: int) -> int | None:
        for record in self._copied_records():
            if int(record["address"]) <= address < int(record["address"]) + REGION_BYTES and record["table"] >= 0:
                entry = int(self._tables[record["table"], address // mmap.PAGESIZE % REGION_PAGES])
                return (entry & FRAME) // mmap.PAGESIZE if entry & PRESENT else None
        return None

    def _share(self, name: str, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        shared = self._program.map(name)
        memory = shared.memory()
        self._closing.append(memory)
        count = shared.max_entries * shared.value_bytes // kind.itemsize
        return np.frombuffer(memory, kind, count)

    def _find_base(self) -> tuple[int, int]:
        pid = os.getpid()
        with own_pages() as pages, closing(self.attach(pid)) as attached:
            iterator = attached.iterator
            for levels in (4, 5):
                self._base, self._levels = 0, levels
                first = next(iter(pages))
                status, _ = self._step(iterator, pid, first, first)
                if status == NOT_FOUND:
                    raise Unavailable(
                        place="BPF page walker",
                        problem="the kernel's list of processes does not show this process under its own number",
                        fix="run memsculpt in the first PID namespace, not inside a container",
                    )
                highest = int(self._state["root"][0]) // GIB * GIB
                for base in range(highest, max(DIRECT_MAP_LOWEST, highest - _direct_map_most()) - 1, -GIB):
                    self._base = base
                    if all(self._leads_to(iterator, pid, address, frame) for address, frame in pages.items()):
                        return base, levels
        raise Unavailable(
            place="BPF page walker",
            problem="found no place of the kernel's direct map from which our own pages are seen",
            fix="none: a slower source serves",
        )

    def _leads_to(self, iterator: Iterator, pid: int, address: int, frame: int) -> bool:
        self._step(iterator, pid, address // REGION_BYTES * REGION_BYTES, address + 1)
        return self._frame(address) == frame


class AttachedWalker:
    """A walker on one process; holds a link in the kernel until it is closed."""

    def __init__(self, walker: PageWalker, pid: int, iterator: Iterator, *, is_own: bool) -> None:
        self._walker, self._pid, self.iterator, self._is_own = walker, pid, iterator, is_own

    def walk(self, start: int = 0, end: int | None = None) -> PageBits:
        """Return what the tables say of the pages in [start, end), widened to regions of 2 MiB.

        Incomplete where the process ended meanwhile or changed faster than it could be read. Raises Vanished where
        there is no such process or it has no memory (a kernel thread, a zombie), or the kernel hides it.
        Cost: some 0.7 ms per GiB of small pages (bench sense).
        """
        return self._walker.walk(self.iterator, self._pid, start, end)

    def frame_of(self, address: int) -> int | None:
        """Return the frame number of one small page, None where it is not present. Raises OSError."""
        return self._walker.frame_of(self.iterator, self._pid, address)

    def close(self) -> None:
        """Give the link back."""
        if self._is_own:
            self.iterator.close()


def decode(records: npt.NDArray[np.void], tables: Tables) -> PageBits:
    """Return the bits of what was copied. Pure."""
    rows = _spread(records) if len(records) and int(records["pages"].max()) > REGION_PAGES else records
    in_table = rows["table"] >= 0
    copied = tables[: int(in_table.sum())]  # records name the tables in the order in which they were copied
    # Only the lowest byte of each entry is looked at where nothing is swapped, which is four fifths of the work saved.
    low = copied.view(np.uint8)[:, ::8] if copied.flags.c_contiguous else copied.astype(np.uint8)
    low = np.ascontiguousarray(low)
    present = _packed(low & np.uint8(PRESENT))
    accessed, dirty = _packed(low & np.uint8(ACCESSED)) & present, _packed(low & np.uint8(DIRTY)) & present
    swapped = np.zeros_like(present)
    odd = np.flatnonzero((copied.any(axis=1)) & (present != 255).any(axis=1))
    if len(odd):
        absent: npt.NDArray[np.uint64] = np.array(copied[odd])
        is_absent: Bool = (absent & np.uint64(PRESENT) == 0) & (absent != 0)
        is_kept: Bool = is_absent & (absent & np.uint64(PROTNONE) != 0)
        kept = _packed(is_kept)
        present[odd] |= kept
        accessed[odd] |= _packed(low[odd] & np.uint8(ACCESSED)) & kept
        dirty[odd] |= _packed(low[odd] & np.uint8(DIRTY)) & kept
        swapped[odd] = _packed(is_absent & ~is_kept & (absent >> np.uint64(SWAP_TYPE_SHIFT) < SWAP_TYPES))
    if in_table.all():
        columns = present, accessed, dirty, swapped
    else:
        columns = (
            _filled(in_table, present, 255),
            _filled(in_table, accessed, _all_or_none(rows["entry"], ACCESSED)),
            _filled(in_table, dirty, _all_or_none(rows["entry"], DIRTY)),
            _filled(in_table, swapped, 0),
        )
    return PageBits(
        addresses=rows["address"].astype(np.int64),
        is_huge=~in_table,
        present=columns[0],
        accessed=columns[1],
        dirty=columns[2],
        swapped=columns[3],
    )


def joined(parts: list[PageBits], *, is_complete: bool) -> PageBits:
    """Return ascending parts as one."""
    if len(parts) == 1 and is_complete:
        return parts[0]
    none = np.empty((0, REGION_PAGES // 8), np.uint8)
    return PageBits(
        addresses=np.concatenate([np.empty(0, np.int64), *(part.addresses for part in parts)]),
        is_huge=np.concatenate([np.empty(0, np.bool_), *(part.is_huge for part in parts)]),
        present=np.concatenate([none, *(part.present for part in parts)]),
        accessed=np.concatenate([none, *(part.accessed for part in parts)]),
        dirty=np.concatenate([none, *(part.dirty for part in parts)]),
        swapped=np.concatenate([none, *(part.swapped for part in parts)]),
        is_complete=is_complete,
    )


@contextmanager
def own_pages() -> Generator[dict[int, int]]:
    """Yield the addresses of some pages of our own with the frames that pagemap gives. Raises Unavailable."""
    memory = mmap.mmap(-1, PAGES_TRIED * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    handle = ctypes.c_char.from_buffer(memory)
    found: dict[int, int] = {}
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123  read at an offset
            for number in range(PAGES_TRIED):
                memory[number * mmap.PAGESIZE] = 1
                address = ctypes.addressof(handle) + number * mmap.PAGESIZE
                entry = int.from_bytes(os.pread(pagemap.fileno(), 8, address // mmap.PAGESIZE * 8), "little")
                found[address] = entry & ((1 << 55) - 1)
        if not all(found.values()):
            raise Unavailable(
                place="/proc/self/pagemap", problem="tells no frame numbers to this user", fix="run as root"
            )
        yield found
    finally:
        del handle
        memory.close()


def _direct_map_most() -> int:
    """Return how far above the direct map's beginning a table may lie: main memory, and the holes in it."""
    return (os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // GIB + 1) * 2 * GIB + 64 * GIB


def _packed(flags: npt.NDArray[np.uint8] | Bool) -> Bits:
    return np.packbits(flags, axis=1, bitorder="little")


def _all_or_none(entries: npt.NDArray[np.uint64], bit: int) -> npt.NDArray[np.uint8]:
    return np.where(entries & np.uint64(bit), 255, 0).astype(np.uint8)


def _filled(in_table: Bool, of_tables: Bits, of_huge: int | npt.NDArray[np.uint8]) -> Bits:
    whole = np.empty((len(in_table), REGION_PAGES // 8), np.uint8)
    whole[:] = of_huge if isinstance(of_huge, int) else of_huge[:, np.newaxis]
    whole[in_table] = of_tables
    return whole


def _spread(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the records with each page of 1 GiB as 512 of 2 MiB."""
    counts = (records["pages"] // REGION_PAGES).astype(np.int64)
    rows = np.repeat(records, counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows["address"] += (within * REGION_BYTES).astype(np.uint64)
    return rows
