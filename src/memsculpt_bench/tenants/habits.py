# SPDX-License-Identifier: Apache-2.0
"""A program with one habit of using memory, until it is killed: what `bench store` records. Standard library only.

Usage: habits.py HABIT SEED
"""

import os
import random
import sys
import time
import zlib

MIB = 1 << 20


def main(habit: str, seed: int) -> None:
    """Live by the habit. Sleeping is what programs do between their deeds; nothing is waited for."""
    chance = random.Random(seed)
    held: list[bytearray] = [bytearray(32 * MIB)] if habit in {"idle", "cache"} else []
    while True:
        if habit == "idle":
            pause_s = 5.0
        elif habit == "batch":
            pause_s = _work_on([bytearray(MIB) for _ in range(chance.randint(20, 80))], chance)
        elif habit == "growing":
            held.append(bytearray(os.urandom(chance.randint(1_000, 60_000))))
            pause_s = 0.5
        elif habit == "cache":
            for _ in range(chance.randint(50, 400)):
                held[0][chance.randrange(len(held[0]))] = 1
            pause_s = 0.2
        elif habit == "bursts":
            burst = bytearray(chance.randint(1, 40) * MIB) if chance.random() < 0.1 else bytearray()
            time.sleep(chance.uniform(0.1, 2.0) if burst else 0.0)
            pause_s = chance.expovariate(2.0)
        elif habit == "files":
            pause_s = _write_and_read(chance)
        else:
            pause_s = _serve(held, chance)
        time.sleep(pause_s)


def _work_on(parts: list[bytearray], chance: random.Random) -> float:
    for part in parts:
        part[::4096] = b"\1" * len(part[::4096])
    time.sleep(chance.uniform(5.0, 8.0))
    return chance.uniform(15.0, 25.0)


def _write_and_read(chance: random.Random) -> float:
    with open("tenant-file", "wb") as file:  # noqa: PTH123  the tenant is told where it lives by its working directory
        file.write(os.urandom(4 * MIB))
    with open("tenant-file", "rb") as file:  # noqa: PTH123  as above
        file.read()
    return chance.uniform(3.0, 9.0)


def _serve(held: list[bytearray], chance: random.Random) -> float:
    for _ in range(max(0, int(chance.gauss(30, 10)))):
        zlib.compress(os.urandom(2000))
    if chance.random() < 0.05:
        held.append(bytearray(chance.randint(1, 200) * 1024))
    if len(held) > 40:
        held.clear()
    return 0.1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
