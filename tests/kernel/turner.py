# SPDX-License-Identifier: Apache-2.0
"""A process with two sets of private memory that it uses as it is told, one line at a time; ends with its input.

Says "ready" first. Answers every command with one line. `sys.argv[1]` is the size of a set.
"""

import hashlib
import mmap
import random
import resource
import sys

PAGE_BYTES = 4096


def main() -> None:
    size = int(sys.argv[1])
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    sets = [mmap.mmap(-1, size, flags=flags) for _ in range(2)]
    more: list[mmap.mmap] = []
    noise = random.Random(7).randbytes(PAGE_BYTES // 2)  # half of a page compresses, half does not
    for number, memory in enumerate(sets):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, PAGE_BYTES):
            memory[at : at + len(noise) + 8] = noise + (at + number).to_bytes(8, "little")
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["use", number]:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
                memory = sets[int(number)]
                for _ in range(3):
                    sum(memory[at] for at in range(0, size, PAGE_BYTES))
                print(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before, flush=True)
            case ["grow", length]:
                more.append(mmap.mmap(-1, int(length), flags=flags))
                more[-1].madvise(mmap.MADV_NOHUGEPAGE)
                for at in range(0, int(length), PAGE_BYTES):
                    more[-1][at : at + len(noise)] = noise
                print("grown", flush=True)
            case ["checksum"]:
                print(hashlib.sha256(b"".join(sets)).hexdigest(), flush=True)


main()
