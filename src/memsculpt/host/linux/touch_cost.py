# SPDX-License-Identifier: Apache-2.0
"""What it costs a program to touch a page whose accessed bit was cleared: measured on pages of our own.

The processor has to write the bit into the page table. On bare metal that is some tens of nanoseconds; in a virtual
machine it was found to be 500. A look at memory must be paid for with that price, so it is measured, not assumed.

Our few pages have their page table in the cache, those of a large process do not: 0.03 us a page with 16 MiB, 0.16
with 1 GiB on the reference machine, where a program that reads 1 to 4 GiB at random lost 0.13 to 0.2 us a page after a
clear. Hence FAR: what is measured near is told as the dearer case, which is the one that matters.
"""

import mmap
import os
import time
from functools import cache

import numpy as np

from memsculpt.host.linux import madvise
from memsculpt.host.linux.clear_accessed import MADV_COLD

PAGES = 1024  # 4 MiB, which is the agent's peak; of 8 MiB it is 42 ns a page on the reference machine, of these 35
ROUNDS = 5
FAR = 6.0
ASSUMED_S = 5e-7  # where it cannot be measured


@cache
def measure_touch_cost_s() -> float:
    """Return the seconds a page. Takes some milliseconds, once."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        bytes_of = np.frombuffer(memory, np.uint8)
        first_of_each = bytes_of[:: mmap.PAGESIZE]
        first_of_each[:] = 1
        address = bytes_of.ctypes.data
        try:
            pidfd = os.pidfd_open(os.getpid())
        except OSError:
            return ASSUMED_S
        costs: list[float] = []
        try:
            for _ in range(ROUNDS):
                warm_s = min(_timed(first_of_each) for _ in range(2))
                madvise.advise(pidfd, [(address, PAGES * mmap.PAGESIZE)], MADV_COLD)
                costs.append((_timed(first_of_each) - warm_s) / PAGES)
        except OSError:
            return ASSUMED_S
        finally:
            os.close(pidfd)
            del first_of_each, bytes_of
    return FAR * max(0.0, sorted(costs)[ROUNDS // 2])


def _timed(values: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> float:
    begin_s = time.perf_counter()
    values.sum()
    return time.perf_counter() - begin_s
