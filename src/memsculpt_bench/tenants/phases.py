# SPDX-License-Identifier: Apache-2.0
"""A program with working sets that it uses in turn, with a pause after each; or one without any pattern.

It builds every set once and keeps all of them. A turn is a fixed amount of work, so it takes longer exactly by what it
waits for memory. Pages are 4 KiB in every arm. Habits:

    random     reads and writes records of the set of the turn, at random
    analytics  sums the columns of the turn's table by group, pass after pass, from its first record to its last
    uniform    reads and writes records of all sets at random, with no pause

Prints one JSON line when it is ready: {"pid", "sets": [[address, bytes], ...]}. It takes its first turn at the time
that a line `go SECONDS` on its input says. Then it prints one line a turn: {"turn", "period", "set", "start_s",
"end_s", "cpu_s", "major_faults", "minor_faults", "total"}. Times are on the monotonic clock.
"""

import argparse
import ctypes
import json
import mmap
import os
import resource
import sys
import time

import numpy as np
import numpy.typing as npt

RECORD_BYTES = 8
BATCH = 1 << 16
GROUPS = 1024

Table = npt.NDArray[np.int64]


def build(data: Table, seed: int) -> None:
    """Fill a set with records that compress about as columns of small numbers do."""
    rng = np.random.default_rng(seed)
    for start in range(0, data.size, 1 << 20):
        part = data[start : start + (1 << 20)]
        part[:] = rng.integers(0, 1000, part.size, dtype=np.int64)


def work_at_random(data: Table, touches: int, rng: np.random.Generator) -> int:
    """Read records at random and write back every eighth; return their sum, so that none is skipped."""
    total = 0
    for _ in range(max(1, touches // BATCH)):
        places = rng.integers(0, data.size, BATCH, dtype=np.int64)
        total += int(data[places].sum())
        data[places[::8]] += 0  # a write that leaves the content as it is
    return total


def work_on_table(data: Table, touches: int) -> int:
    """Sum a table's values by group, in as many passes as make up so many records; return a figure of all sums."""
    sums = np.zeros(GROUPS, np.int64)
    left = touches
    while left > 0:
        for start in range(0, min(left, data.size), BATCH):
            part = data[start : start + BATCH]
            sums += np.bincount(part & (GROUPS - 1), minlength=GROUPS)
        left -= data.size
    return int((sums * np.arange(GROUPS)).sum())


def awaited_start_s() -> float:
    """Wait for the line that tells when the first turn is due, and return that time."""
    words = sys.stdin.readline().split()
    if len(words) != 2 or words[0] != "go":
        raise SystemExit(f"expected a line `go SECONDS` on the input, not {words}")
    return float(words[1])


def main() -> None:
    """Build, then take the turns of the schedule."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--habit", choices=("random", "analytics", "uniform"), required=True)
    parser.add_argument("--bytes", type=int, required=True, help="of a set")
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--touches", type=int, required=True, help="records, in a turn")
    parser.add_argument("--slot-s", type=float, required=True, help="from one turn's begin to the next")
    parser.add_argument("--jitter", type=float, default=0.1, help="of the slot, by which turns begin earlier or later")
    parser.add_argument("--first-set", type=int, default=0, help="the number of its first set in what is printed")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--willneed", action="store_true", help="advise MADV_WILLNEED on the set when its turn begins")
    args = parser.parse_args()

    mapping = mmap.mmap(-1, args.bytes * args.sets, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    everything: Table = np.frombuffer(mapping, dtype=np.int64)
    records = args.bytes // RECORD_BYTES
    sets: list[Table] = [everything[at : at + records] for at in range(0, everything.size, records)]
    for number, data in enumerate(sets):
        build(data, args.seed + number)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    say({"pid": os.getpid(), "sets": [[base + number * args.bytes, args.bytes] for number in range(args.sets)]})
    chance = np.random.default_rng(args.seed)
    slot_s, jitter = float(args.slot_s), float(args.jitter)
    begin_s = awaited_start_s()
    for turn in range(args.turns):
        number = int(turn % args.sets)
        if args.habit != "uniform":
            due_s = begin_s + (turn + chance.uniform(-jitter, jitter)) * slot_s
            time.sleep(max(0.0, due_s - time.monotonic()))
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF)
        if args.willneed:
            mapping.madvise(mmap.MADV_WILLNEED, number * args.bytes, args.bytes)
        if args.habit == "analytics":
            total = work_on_table(sets[number], args.touches)
        else:
            total = work_at_random(everything if args.habit == "uniform" else sets[number], args.touches, chance)
        after = resource.getrusage(resource.RUSAGE_SELF)
        say(
            {
                "turn": turn,
                "period": turn // args.sets,
                "set": args.first_set + number,
                "start_s": start_s,
                "end_s": time.monotonic(),
                "cpu_s": time.process_time() - start_cpu_s,
                "major_faults": after.ru_majflt - before.ru_majflt,
                "minor_faults": after.ru_minflt - before.ru_minflt,
                "total": total,
            }
        )


def say(line: dict[str, object]) -> None:
    """Print a line at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
