# SPDX-License-Identifier: Apache-2.0
"""Page faults of one process with their user stacks: native/bpf/faults.bpf.c, attached to one event a processor."""

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.errors import Unavailable
from memsculpt.host.bpf import perf_event
from memsculpt.host.bpf.libbpf import Program
from memsculpt.host.bpf.ring import Ring
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

# native/bpf/records.h, enum fault_other: in place of a stack's number
UNMAPPED, BROKEN_OFF, MOVING, MOVED = -1000, -1001, -1002, -1003
GOING = ("on_call", "on_return")

Faults = npt.NDArray[Any]  # of RECORD

FIRST_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO


def check_namespace() -> None:
    """Raise Unavailable in a container with pids of its own: programs in the kernel know processes by other numbers."""
    if os.stat("/proc/self/ns/pid").st_ino != FIRST_PID_NAMESPACE:
        raise Unavailable(
            place="page faults",
            problem="this is a PID namespace of its own: the kernel's programs know its processes by other numbers",
            fix="run memsculpt outside of the container, or the container with the host's pids (--pid=host)",
        )


class FaultReader:
    """Records the faults of one process; holds a program, its maps (48 MiB) and an event a processor until closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load and attach. Raises Unavailable."""
        check_namespace()
        path = programs / "faults.bpf.o"
        if not path.exists():
            raise Unavailable(
                place=f"BPF program {path.name}",
                problem="was not compiled",
                fix="apt install clang libbpf-dev, then tools/setup run",
            )
        self._program = Program(path, {"watched": 1})
        self._closing: list[mmap.mmap | Ring] = []
        try:
            memory = self._program.map("state").memory()
            self._closing.append(memory)
            self._state: npt.NDArray[Any] = np.frombuffer(memory, STATE, 1)
            self._stacks = self._program.map("stacks")
            self._ring = Ring(self._program.map("faults"), RECORD)
            self._closing.append(self._ring)
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
        perf_event.attach(self._program, "on_fault", perf_event.PAGE_FAULTS)
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
        return self._ring.fill_ratio()

    def drain(self) -> Faults:
        """Return the records since the last call, and make room."""
        return self._ring.drain()

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
        while self._closing:
            self._closing.pop().close()
