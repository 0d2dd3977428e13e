# SPDX-License-Identifier: Apache-2.0
"""Page faults of one process with their user stacks: native/bpf/faults.bpf.c, attached to one event a processor."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.errors import Unavailable
from memsculpt.host.bpf import perf_event
from memsculpt.host.bpf.fault_program import STACK_WORDS, FaultProgram
from memsculpt.host.bpf.program import PROGRAMS

# native/bpf/records.h; tests/kernel/test_growth.py holds the two against each other.
RECORD = np.dtype(
    [
        ("address", "<u8"),
        ("time_ns", "<u8"),
        ("stack", "<i4"),
        ("thread", "<u4"),
        ("copy", "<u4"),
        ("reserved", "<u4"),
        ("words", "<u8", (STACK_WORDS,)),
    ]
)
STATE = np.dtype([("pid", "<u4"), ("every", "<u4"), ("seen", "<u8"), ("dropped", "<u8"), ("copied", "<u8")])
COPY_WORDS = 512
COPY = np.dtype(
    [
        ("number", "<u4"),
        ("bytes", "<u4"),
        ("ip", "<u8"),
        ("sp", "<u8"),
        ("bp", "<u8"),
        ("words", "<u8", (COPY_WORDS,)),
    ]
)

# native/bpf/records.h, enum fault_other: in place of a stack's number
UNMAPPED, BROKEN_OFF, MOVING, MOVED = -1000, -1001, -1002, -1003
GOING = (("on_call", "sys_enter"), ("on_return", "sys_exit"))

Faults = npt.NDArray[Any]  # of RECORD
Copies = npt.NDArray[Any]  # of COPY


class FaultReader:
    """Records the faults of one process; holds a program, its maps (64 MiB) and an event a processor until closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load. Raises Unavailable."""
        self._program = FaultProgram(programs, {"watched": 1}, RECORD)
        try:
            self._state = self._program.shared("state", STATE)
            self._stacks = self._program.map("stacks")
            self._copies = self._program.open_ring("copies", COPY)
        except Unavailable:
            self.close()
            raise

    def watch(self, pid: int, every: int = 1) -> str:
        """Begin: record each `every`-th fault of the process, and what takes its pages away. Raises Unavailable.

        Returns why the latter cannot be told, where it cannot: then a page counts once, however often it comes.
        """
        self._state["pid"], self._state["every"] = pid, every
        self._state["seen"] = self._state["dropped"] = self._state["copied"] = 0
        self._program.attach("on_fault", perf_event.PAGE_FAULTS)
        try:
            for name, tracepoint in GOING:
                self._program.attach_raw_tracepoint(name, tracepoint)
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
        return self._program.ring.fill_ratio()

    def drain(self) -> Faults:
        """Return the records since the last call, and make room."""
        return self._program.ring.drain()

    def drain_copies(self) -> Copies:
        """Return the stacks that were copied since the last call: all that drained faults have, and perhaps more."""
        return self._copies.drain()

    def stack(self, number: int) -> tuple[int, ...]:
        """Return the addresses of a stack, innermost first; empty where it is not known."""
        if number < 0:
            return ()
        content = self._stacks.get(struct.pack("<I", number))
        if content is None:
            return ()
        return tuple(address for address in struct.unpack(f"<{len(content) // 8}Q", content) if address)

    def close(self) -> None:
        """Detach, unload, and give the shared memory back; a second call does nothing."""
        if hasattr(self, "_state"):
            del self._state  # an array holds its memory open
        self._program.close()
