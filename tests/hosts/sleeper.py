# SPDX-License-Identifier: Apache-2.0
"""The scene's process on a real host: fills private memory, sleeps, and touches all of it when told to.

Speaks lines: says "filled" once; answers each "touch" with "touched N", N the pages that do not hold what was
written. Ends with its standard input.
"""

import mmap
import random
import sys

PAGE_BYTES = 4096


def main() -> None:
    pages = int(sys.argv[1]) // PAGE_BYTES
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # counts are of base pages
    noise = random.Random(7).randbytes(PAGE_BYTES // 2)  # noqa: S311  half of a page compresses, half does not
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


main()
