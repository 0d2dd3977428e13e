# SPDX-License-Identifier: Apache-2.0
"""The scene's process on a real host: fills private memory, sleeps, and touches all of it when told to.

Takes the bytes to fill and the cgroup.procs file to enter. Speaks lines: says "filled" once; answers each "touch" with
"touched N", N the pages that do not hold what was written, and "huge" with "huge": its memory may then be gathered in
huge pages. Ends with its standard input.
"""

import ctypes
import mmap
import os
import random
import sys
from pathlib import Path

PAGE_BYTES = 4096
PR_SET_THP_DISABLE = 41  # linux/prctl.h


def main() -> None:
    pages = int(sys.argv[1]) // PAGE_BYTES
    Path(sys.argv[2]).write_text(str(os.getpid()))  # enters its cgroup first, so that all is charged there
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    allow_huge(False)  # counts are of base pages
    noise = random.Random(7).randbytes(PAGE_BYTES // 2)  # half of a page compresses, half does not
    for page in range(pages):
        memory[page * PAGE_BYTES : page * PAGE_BYTES + 8] = page.to_bytes(8, "little")
        memory[page * PAGE_BYTES + 8 : page * PAGE_BYTES + 8 + len(noise)] = noise
    print("filled", flush=True)
    for line in sys.stdin:
        if line.strip() == "touch":
            wrong = sum(
                memory[page * PAGE_BYTES : page * PAGE_BYTES + 8] != page.to_bytes(8, "little") for page in range(pages)
            )
            print("touched", wrong, flush=True)
        if line.strip() == "huge":
            allow_huge(True)
            print("huge", flush=True)


def allow_huge(is_allowed: bool) -> None:
    """Let this process have huge pages or not; advice by range would wake khugepaged, which gathers before the test."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_THP_DISABLE, int(not is_allowed), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl: PR_SET_THP_DISABLE")


main()
