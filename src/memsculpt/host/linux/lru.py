# SPDX-License-Identifier: Apache-2.0
"""Pages that have just come lie in a batch of their processor before they join the kernel's lists (mm/swap.c).

Up to 31 for each processor (PAGEVEC_SIZE). What works on lists passes them over: MADV_COLD leaves their accessed bits
(mm/madvise.c, folio_test_lru), and MADV_PAGEOUT leaves them in memory. Both empty the batch of the processor that they
run on first; for the others somebody has to go there.
"""

import mmap
import os
from pathlib import Path

MADV_COLD = 20


def drain_batches(sys: str = "/sys") -> int:
    """Empty the batches of all processors that this thread may run on, by a MADV_COLD on each (some 20 us); count them.

    Isolated processors are left alone: whoever isolates one wants nobody there, and may not let us run at all. Raises
    OSError.
    """
    allowed = os.sched_getaffinity(0)
    chosen = sorted(allowed - parse_cpus(_text(Path(sys, "devices/system/cpu/isolated"))))
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        try:
            for cpu in chosen:
                os.sched_setaffinity(0, {cpu})
                page.madvise(MADV_COLD)
        finally:
            os.sched_setaffinity(0, allowed)
    return len(chosen)


def parse_cpus(content: str) -> set[int]:
    """Return the processors of a list such as `0-3,8` (Documentation/admin-guide/cputopology.rst)."""
    found: set[int] = set()
    for part in content.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # a kernel without the file isolates none
        return ""
