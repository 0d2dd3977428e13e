# SPDX-License-Identifier: Apache-2.0
"""A process with memory of every kind that goes on writing, and can tell whether its memory is what it wrote.

Says "NAME=START-END ..." of its areas first, and answers every command with one line. `sys.argv[1]` is the size of
the plain area, `sys.argv[2]` a file that it may map.
"""

import ctypes
import hashlib
import mmap
import os
import random
import sys
import threading
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED_NOREPLACE = 0x100000
libc = ctypes.CDLL(None, use_errno=True)


def anonymous(size: int, flags: int = PRIVATE) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=flags)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def start_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def fill(memory: mmap.mmap) -> None:
    noise = random.Random(7).randbytes(PAGE)
    for at in range(0, len(memory), PAGE):
        # A third is noise, a third half noise, a third nearly nothing: pages compress badly, well and wholly.
        part = noise[: (PAGE - 8) * (at // PAGE % 3) // 2] + at.to_bytes(8, "little")
        memory[at : at + len(part)] = part


class Scribe:
    """The areas, and a thread that rewrites one of them all the time."""

    def __init__(self, size: int, path: Path) -> None:
        path.write_bytes(b"file" * MIB)
        with path.open("r+b") as file:
            self.file = mmap.mmap(file.fileno(), 4 * MIB, flags=mmap.MAP_SHARED)
        self.plain = anonymous(size)
        self.shared = mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self.locked = anonymous(4 * MIB)
        self.hidden = anonymous(4 * MIB)
        self.busy = anonymous(8 * MIB)
        for memory in (self.plain, self.shared, self.locked, self.hidden):
            fill(memory)
        assert libc.mlock(ctypes.c_void_p(start_of(self.locked)), ctypes.c_size_t(4 * MIB)) == 0
        self.hidden_sum = hashlib.sha256(self.hidden).hexdigest()
        self.protect(0)
        self.sums = [hashlib.sha256(memory).hexdigest() for memory in self.quiet()]
        self.rounds = self.wrong = self.flaps = 0
        self.pause = threading.Lock()
        threading.Thread(target=self.write, daemon=True).start()

    def quiet(self) -> tuple[mmap.mmap, ...]:
        return self.plain, self.shared, self.locked, self.file

    def protect(self, rights: int) -> None:
        libc.mprotect(ctypes.c_void_p(start_of(self.hidden)), ctypes.c_size_t(4 * MIB), rights)

    def write(self) -> None:
        while True:
            with self.pause:
                before = self.rounds.to_bytes(8, "little")
                self.rounds += 1
                stamp = self.rounds.to_bytes(8, "little")
                for at in range(0, len(self.busy), PAGE):
                    if self.rounds > 1 and self.busy[at : at + 8] != before:
                        self.wrong += 1
                    self.busy[at : at + 8] = stamp

    def check(self) -> str:
        with self.pause:
            sums = [hashlib.sha256(memory).hexdigest() for memory in self.quiet()]
            self.protect(3)
            hidden = hashlib.sha256(self.hidden).hexdigest()
            self.protect(0)
            is_right = sums == self.sums and hidden == self.hidden_sum and not self.wrong
        return f"{'right' if is_right else 'WRONG'} {self.rounds}"

    def flap(self) -> None:
        """Map, fill and unmap memory at one place, again and again."""
        libc.mmap.restype = ctypes.c_void_p
        place = self.flapping
        while True:
            libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(8 * MIB))
            found = libc.mmap(
                ctypes.c_void_p(place), ctypes.c_size_t(8 * MIB), 3, PRIVATE | MAP_FIXED_NOREPLACE, -1, ctypes.c_long(0)
            )
            if found != place:  # somebody else was quicker, or the place is given another
                return
            ctypes.memset(place, 5, 8 * MIB)
            self.flaps += 1

    def start_flapping(self) -> str:
        gap = anonymous(16 * MIB)
        self.flapping = -(-start_of(gap) // (2 * MIB)) * 2 * MIB
        self.kept = gap
        threading.Thread(target=self.flap, daemon=True).start()
        return f"{self.flapping}-{self.flapping + 8 * MIB}"


def main() -> None:
    scribe = Scribe(int(sys.argv[1]), Path(sys.argv[2]))
    areas = {name: getattr(scribe, name) for name in ("plain", "shared", "locked", "hidden", "busy", "file")}
    print(*(f"{name}={start_of(area)}-{start_of(area) + len(area)}" for name, area in areas.items()), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["check"]:
                print(scribe.check(), flush=True)
            case ["flap"]:
                print(scribe.start_flapping(), flush=True)
            case ["flaps"]:
                print(scribe.flaps, flush=True)
            case ["fork"]:
                # The child holds what it was born with, and says at its end whether it still does.
                with scribe.pause:
                    asks, told = os.pipe()
                    waits, ends = os.pipe()
                    if os.fork() == 0:
                        os.close(ends)
                        os.read(waits, 1)
                        sums = [hashlib.sha256(memory).hexdigest() for memory in scribe.quiet()]
                        os.write(told, b"right" if sums == scribe.sums else b"WRONG")
                        os._exit(0)
                scribe.child = asks, ends
                print("forked", flush=True)
            case ["join"]:
                os.close(scribe.child[1])
                print(os.read(scribe.child[0], 8).decode(), flush=True)


main()
