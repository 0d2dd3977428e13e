# SPDX-License-Identifier: Apache-2.0
"""native/bpf/faults.bpf.c in the kernel: what the readers of one process and of many share, loading, ring and end."""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.errors import Unavailable
from memsculpt.host.bpf import perf_event
from memsculpt.host.bpf.program import Map, Program
from memsculpt.host.bpf.ring import Ring

STACK_WORDS = 48  # native/bpf/records.h
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO


class FaultProgram:
    """The program, its maps and its ring, and an event a processor once it is attached, until it is closed."""

    def __init__(self, programs: Path, sizes: Mapping[str, int], record: "np.dtype[Any]") -> None:
        """Load, with maps of these sizes; `record` is what is in the ring. Raises Unavailable."""
        _check_namespace()
        self._program = Program(programs / "faults.bpf.o", sizes)
        self._shared: list[mmap.mmap | Ring] = []
        self._events: tuple[int, ...] = ()
        try:
            self.ring = self.open_ring("faults", record)
        except Unavailable:
            self._program.close()
            raise

    def map(self, name: str) -> Map:
        """Return the map of this name. Raises Unavailable."""
        return self._program.map(name)

    def open_ring(self, name: str, record: "np.dtype[Any]") -> Ring:
        """Return a ring of such records, which is closed with the program. Raises Unavailable."""
        try:
            self._shared.append(ring := Ring(self._program.map(name), record))
        except OSError as error:
            raise _no_memory(error) from error
        return ring

    def shared(self, name: str, kind: "np.dtype[Any]") -> npt.NDArray[Any]:
        """Return the only value of an array map, to read and to write; let go of it before the close.

        Raises Unavailable.
        """
        try:
            memory = self._program.map(name).memory()
        except OSError as error:
            raise _no_memory(error) from error
        self._shared.append(memory)
        return np.frombuffer(memory, kind, 1)

    def attach(self, name: str, event: int) -> None:
        """Run the program of this name at every `event` of the machine from now on. Raises Unavailable."""
        self._events = perf_event.attach(self._program, name, event)

    def attach_raw_tracepoint(self, name: str, tracepoint: str) -> None:
        """Run the program of this name at a raw tracepoint from now on. Raises Unavailable."""
        self._program.attach_raw_tracepoint(name, tracepoint)

    def passed_count(self) -> int:
        """Return how many events of the machine have passed. Raises OSError."""
        return perf_event.count(self._events)

    def close(self) -> None:
        """Detach, unload, and give the shared memory back; a second call does nothing."""
        self._events = ()
        self._program.close()
        while self._shared:
            self._shared.pop().close()


def _no_memory(error: OSError) -> Unavailable:
    return Unavailable(place="faults", problem=f"no shared memory: {error.strerror}", fix="run as root")


def _check_namespace() -> None:
    """Raise Unavailable in a container with pids of its own: programs in the kernel know processes by other numbers."""
    if os.stat("/proc/self/ns/pid").st_ino != FIRST_PID_NAMESPACE:
        raise Unavailable(
            place="page faults",
            problem="this is a PID namespace of its own: the kernel's programs know its processes by other numbers",
            fix="run memsculpt outside of the container, or the container with the host's pids (--pid=host)",
        )
