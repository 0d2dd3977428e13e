# SPDX-License-Identifier: Apache-2.0
"""Some page faults of many processes with their user stacks: `on_sample` of native/bpf/faults.bpf.c, kept on."""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.errors import Unavailable
from memsculpt.host.bpf import perf_event
from memsculpt.host.bpf.fault_program import STACK_WORDS, FaultProgram
from memsculpt.host.bpf.program import PROGRAMS

# native/bpf/records.h; tests/kernel/test_growth.py holds the two against each other.
FRAMES = 64
RECORD = np.dtype(
    [
        ("address", "<u8"),
        ("time_ns", "<u8"),
        ("pid", "<u4"),
        ("shift", "<u4"),
        ("depth", "<i8"),
        ("frames", "<u8", (FRAMES,)),
        ("words", "<u8", (STACK_WORDS,)),
    ]
)
RATE = np.dtype(
    [
        ("start_ticks", "<u8"),
        ("shift", "<u4"),
        ("left", "<i4"),
        ("refill", "<u4"),
        ("reserved", "<u4"),
        ("seen", "<u8"),
        ("dropped", "<u8"),
    ]
)
_RATE = struct.Struct("<QIiIIQQ")
RING_BYTES = 512 << 10  # 550 records; shared with us, so it counts as ours, twice
WATCHED_MOST = 1024

Samples = npt.NDArray[Any]  # of RECORD


@dataclass(frozen=True, slots=True)
class Counted:
    """What the program counted of one process."""

    shift: int
    seen_count: int
    dropped_count: int


class SampleReader:
    """One program for all processes that are watched, with its maps (0.7 MiB), until it is closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load. Raises Unavailable."""
        sizes = {"faults": RING_BYTES, "stacks": 1, "copies": mmap.PAGESIZE, "watched": WATCHED_MOST}
        self._program = FaultProgram(programs, sizes, RECORD)
        self._is_open = True
        try:
            self._watched = self._program.map("watched")
            self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            self._program.close()
            raise Unavailable(
                place="faults", problem=error.strerror or str(error), fix="allow more open files (ulimit -n)"
            ) from error
        except Unavailable:
            self._program.close()
            raise

    def attach(self) -> None:
        """Begin; all faults of the machine pass the program from now on. Raises Unavailable."""
        self._program.attach("on_sample", perf_event.PAGE_FAULTS_MINOR)

    def passed_count(self) -> int:
        """Return how many faults of the machine have passed. Raises OSError."""
        return self._program.passed_count()

    def watch(self, pid: int, start_ticks: int, shift: int, refill: int) -> None:
        """Record one page in 2**shift of this process; after `refill` records one in twice as many, and so on.

        What was counted of it is kept. Raises OSError.
        """
        counted = self.counted(pid) or Counted(shift, 0, 0)
        value = _RATE.pack(start_ticks, shift, refill, refill, 0, counted.seen_count, counted.dropped_count)
        self._watched.put(struct.pack("<I", pid), value)

    def forget(self, pid: int) -> None:
        """Watch this process no longer. Raises OSError."""
        self._watched.remove(struct.pack("<I", pid))

    def counted(self, pid: int) -> Counted | None:
        """Return what was counted of a process since it is watched. Raises OSError."""
        value = self._watched.get(struct.pack("<I", pid))
        if value is None:
            return None
        _, shift, _, _, _, seen, dropped = _RATE.unpack(value)
        return Counted(shift, seen, dropped)

    def drain(self) -> Samples:
        """Return the records since the last call, and make room."""
        return self._program.ring.drain() if self._is_open else np.empty(0, RECORD)

    def wait(self) -> bool:
        """Sleep until the ring is half full (True) or `interrupt` is called (False)."""
        return self._is_open and self._program.ring.wait(self._stop)

    def interrupt(self) -> None:
        """End a wait, now and for ever; safe from any thread."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Detach, unload, and give the shared memory back; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            os.close(self._stop)
            self._program.close()
