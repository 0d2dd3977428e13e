# SPDX-License-Identifier: Apache-2.0
"""A process that holds private memory and does with it what it is told, one line at a time; ends with its input.

Says "ADDRESS" of its memory first. Answers every command with one line.
"""

import ctypes
import hashlib
import mmap
import os
import random
import sys

PAGE_BYTES = 4096
MAP_NORESERVE = 0x4000
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    size = int(sys.argv[1])
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # counts are of base pages
    noise = random.Random(7).randbytes(PAGE_BYTES // 2)  # half of a page compresses, half does not
    for at in range(0, size, PAGE_BYTES):
        memory[at : at + len(noise) + 8] = noise + at.to_bytes(8, "little")
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    kept: list[mmap.mmap] = []
    children: list[int] = []
    print(start, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["checksum"]:
                print(hashlib.sha256(memory).hexdigest(), flush=True)
            case ["change"]:
                for at in range(0, size, PAGE_BYTES):
                    memory[at + 64] ^= 0xFF
                print(hashlib.sha256(memory).hexdigest(), flush=True)
            case ["touch"]:
                print(sum(memory[at] for at in range(0, size, PAGE_BYTES)), flush=True)
            case ["lock", first, length]:
                failed = libc.mlock(ctypes.c_void_p(start + int(first)), ctypes.c_size_t(int(length)))
                print("failed" if failed else "locked", flush=True)
            case ["reserve", length]:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
                kept.append(mmap.mmap(-1, int(length), flags=flags))
                kept[-1].madvise(mmap.MADV_NOHUGEPAGE)
                kept[-1][int(length) // 2] = 1
                print("reserved", flush=True)
            case ["fork"]:
                reader, writer = os.pipe()
                child = os.fork()
                if child == 0:
                    os.close(writer)
                    os.read(reader, 1)  # until the parent is gone
                    os._exit(0)
                os.close(reader)
                children.append(writer)
                print(child, flush=True)
            case ["name", name]:
                libc.prctl(15, ctypes.c_char_p(bytes.fromhex(name)), 0, 0, 0)
                print("named", flush=True)
            case ["thrash", rounds]:
                for _ in range(int(rounds)):
                    for at in range(0, size, PAGE_BYTES):
                        memory[at] = (memory[at] + 1) % 256
                print("thrashed", flush=True)


main()
