# SPDX-License-Identifier: Apache-2.0
"""Page faults of one process with their user stacks: native/bpf/faults.bpf.c, attached to one event a processor."""

import ctypes
import errno
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.errors import Unavailable
from memsculpt.host.bpf.libbpf import Program
from memsculpt.host.bpf.tasks import PROGRAMS

# native/bpf/records.h; tests/kernel/test_growth.py holds the two against each other.
STACK_WORDS = 48
RECORD = np.dtype(
    [
        ("address", "<u8"),
        ("time_ns", "<u8"),
        ("stack", "<i4"),
        ("thread", "<u4"),
        ("words", "<u8", (STACK_WORDS,)),
    ]
)
STATE = np.dtype([("pid", "<u4"), ("every", "<u4"), ("seen", "<u8"), ("dropped", "<u8")])

SYS_PERF_EVENT_OPEN = 298
PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS = 1, 2
PERF_ATTR_BYTES = 128
PERF_FLAG_FD_CLOEXEC = 8
# A record of a ring buffer begins with its length and two flags (Documentation/bpf/ringbuf.rst).
HEADER_BYTES = 8
BUSY, DISCARDED = 1 << 31, 1 << 30
STRIDE = HEADER_BYTES + RECORD.itemsize

# native/bpf/records.h, enum fault_other: in place of a stack's number
UNMAPPED, BROKEN_OFF, MOVING, MOVED = -1000, -1001, -1002, -1003
GOING = ("on_call", "on_return")

Faults = npt.NDArray[Any]  # of RECORD


class FaultReader:
    """Records the faults of one process; holds a program, its maps (48 MiB) and an event a processor until closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load and attach. Raises Unavailable."""
        path = programs / "faults.bpf.o"
        if not path.exists():
            raise Unavailable(
                place=f"BPF program {path.name}",
                problem="was not compiled",
                fix="apt install clang libbpf-dev, then tools/setup run",
            )
        self._program = Program(path)
        self._closing: list[mmap.mmap] = []
        try:
            memory = self._program.map("state").memory()
            self._closing.append(memory)
            self._state: npt.NDArray[Any] = np.frombuffer(memory, STATE, 1)
            self._stacks = self._program.map("stacks")
            ring = self._program.map("faults")
            self._size = ring.max_entries
            self._consumer = mmap.mmap(ring.number, mmap.PAGESIZE)
            self._closing.append(self._consumer)
            # The data lie twice behind one another, so that no record is cut at the end.
            self._producer = mmap.mmap(
                ring.number, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
            )
            self._closing.append(self._producer)
        except OSError as error:
            self.close()
            raise Unavailable(
                place="faults", problem=f"no shared memory: {error.strerror}", fix="run as root"
            ) from error
        except Unavailable:
            self.close()
            raise

    def watch(self, pid: int, every: int = 1) -> str:
        """Begin: record each `every`-th fault of the process, and what takes its pages away. Raises Unavailable.

        Returns why the latter cannot be told, where it cannot: then a page counts once, however often it comes.
        """
        self._state["pid"], self._state["every"] = pid, every
        self._state["seen"] = self._state["dropped"] = 0
        for cpu in sorted(_online()):
            event = _open_event(cpu)
            try:
                self._program.attach_perf_event("on_fault", event)
            except Unavailable:
                os.close(event)
                raise
        try:
            for name in GOING:
                self._program.attach(name)
        except Unavailable as error:
            return error.problem
        return ""

    def sample(self, every: int) -> None:
        """Record each `every`-th fault from now on."""
        self._state["every"] = every

    @property
    def seen_count(self) -> int:
        """Return how many faults the process had."""
        return int(self._state["seen"][0])

    @property
    def dropped_count(self) -> int:
        """Return how many of those to be recorded found no room."""
        return int(self._state["dropped"][0])

    def fill_ratio(self) -> float:
        """Return how full the ring is."""
        head = struct.unpack_from("<Q", self._producer, 0)[0]
        return (head - struct.unpack_from("<Q", self._consumer, 0)[0]) / self._size

    def drain(self) -> Faults:
        """Return the records since the last call, and make room."""
        head = struct.unpack_from("<Q", self._producer, 0)[0]
        tail = struct.unpack_from("<Q", self._consumer, 0)[0]
        count = (head - tail) // STRIDE
        at = mmap.PAGESIZE + tail % self._size
        content = self._producer[at : at + count * STRIDE]
        rows = np.frombuffer(content, np.dtype([("header", "<u8"), ("record", RECORD)]))
        flags = rows["header"].astype(np.uint32)
        busy = np.flatnonzero(flags & BUSY)
        if len(busy):
            rows, flags = rows[: busy[0]], flags[: busy[0]]
        struct.pack_into("<Q", self._consumer, 0, tail + len(rows) * STRIDE)
        return rows["record"][flags & DISCARDED == 0].copy()

    def stack(self, number: int) -> tuple[int, ...]:
        """Return the addresses of a stack, innermost first; empty where it is not known."""
        if number < 0:
            return ()
        content = self._stacks.get(struct.pack("<I", number))
        if content is None:
            return ()
        return tuple(address for address in struct.unpack(f"<{len(content) // 8}Q", content) if address)

    def close(self) -> None:
        """Detach, unload, and give the shared memory back."""
        self._program.close()
        if hasattr(self, "_state"):
            del self._state
        for memory in self._closing:
            memory.close()
        self._closing.clear()


def _open_event(cpu: int) -> int:
    attributes = bytearray(PERF_ATTR_BYTES)
    # type, size, config, sample_period: every fault; the program itself counts out which are recorded
    struct.pack_into("<IIQQ", attributes, 0, PERF_TYPE_SOFTWARE, PERF_ATTR_BYTES, PERF_COUNT_SW_PAGE_FAULTS, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(
        SYS_PERF_EVENT_OPEN,
        (ctypes.c_char * PERF_ATTR_BYTES).from_buffer(attributes),
        ctypes.c_int(-1),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(PERF_FLAG_FD_CLOEXEC),
    )
    if found < 0:
        number = ctypes.get_errno()
        fix = "run as root" if number in {errno.EPERM, errno.EACCES} else "CONFIG_PERF_EVENTS"
        raise Unavailable(place="perf event of page faults", problem=os.strerror(number), fix=fix)
    return int(found)


def _online() -> set[int]:
    content = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    found: set[int] = set()
    for part in content.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found
