# SPDX-License-Identifier: Apache-2.0
"""Every process on the machine in one read: the iterator of native/bpf/tasks.bpf.c, and what its records mean."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.errors import Unavailable
from memsculpt.host.bpf.program import PROGRAMS, Program

# native/bpf/records.h, struct task_record; tests/kernel/test_bpf_tasks.py holds the two against each other.
RECORD = np.dtype(
    [
        ("start_boottime_ns", "<u8"),
        ("cpu_ns", "<u8"),
        ("minor_faults", "<u8"),
        ("major_faults", "<u8"),
        ("read_bytes", "<u8"),
        ("written_bytes", "<u8"),
        ("file_pages", "<i8"),
        ("anon_pages", "<i8"),
        ("swapped_pages", "<i8"),
        ("shmem_pages", "<i8"),
        ("memory_cgroup", "<u8"),
        ("unified_cgroup", "<u8"),
        ("pid", "<u4"),
        ("thread", "<u4"),
        ("user", "<u4"),
        ("flags", "<u4"),
        ("comm", "S16"),
    ]
)
SUMMED = ("cpu_ns", "minor_faults", "major_faults", "read_bytes", "written_bytes")
Records = npt.NDArray[Any]  # of RECORD


class TaskReader:
    """Reads all processes at once; holds one program and one link in the kernel until it is closed."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        """Load the program. Raises Unavailable where it was not compiled, or the kernel refuses it."""
        self._program = Program(programs / "tasks.bpf.o")
        try:
            self._iterator = self._program.iterator("list_tasks")
        except Unavailable:
            self._program.close()
            raise

    def read(self) -> tuple[Records, Int64]:
        """Return the processes, by pid, and how many threads each has.

        Counters of a process are summed over its threads, also those that have ended; a process whose leader was gone
        while its threads were listed is left out. Raises OSError. Cost: 0.4 us a thread (bench sense).
        """
        return by_process(np.frombuffer(self._iterator.read(), RECORD))

    def close(self) -> None:
        """Unload the program."""
        self._program.close()


def by_process(threads: Records) -> tuple[Records, Int64]:
    """Return the leaders' records with the threads' counters added, by pid, and the numbers of threads. Pure."""
    is_leader = threads["pid"] == threads["thread"]
    leaders = threads[is_leader]
    pids = leaders["pid"]
    if not (pids[1:] > pids[:-1]).all():  # the kernel lists them in this order, but nowhere promises it
        leaders = leaders[np.argsort(pids, kind="stable")]
    if len(leaders) == len(threads):
        return leaders, np.ones(len(leaders), np.int64)
    others = threads[~is_leader]
    rows = np.searchsorted(leaders["pid"], others["pid"])
    known = rows < len(leaders)
    known[known] = leaders["pid"][rows[known]] == others["pid"][known]
    rows, others = rows[known], others[known]
    for name in SUMMED:
        np.add.at(leaders[name], rows, others[name])
    return leaders, 1 + np.bincount(rows, minlength=len(leaders)).astype(np.int64)
