# SPDX-License-Identifier: Apache-2.0
"""An analytic job: builds a data set once, works over all of it at random, then keeps it untouched.

Real heaps behave so: what a nightly phase loaded stays allocated until the next one. The work of a
phase is a fixed number of random reads and writes, so a phase takes longer exactly by what it waits.
Prints one JSON line per phase: {"phase", "due_s", "start_s", "end_s", "cpu_s", "total"} on the
monotonic clock. Pages are 4 KiB (an anonymous mapping without MADV_HUGEPAGE) in every arm.
"""

import argparse
import json
import mmap
import sys
import time

import numpy as np
import numpy.typing as npt


def build(data: npt.NDArray[np.int64], seed: int) -> None:
    """Fill the data set with records that compress about as columns of small numbers do."""
    rng = np.random.default_rng(seed)
    step = 1 << 20
    for start in range(0, data.size, step):
        part = data[start : start + step]
        part[:] = rng.integers(0, 1000, part.size, dtype=np.int64)


def work(data: npt.NDArray[np.int64], touches: int, seed: int) -> int:
    """Read `touches` records at random and write back every eighth; return the sum, so none is skipped."""
    rng = np.random.default_rng(seed)
    total = 0
    batch = 1 << 16
    for _ in range(max(1, touches // batch)):
        places = rng.integers(0, data.size, batch, dtype=np.int64)
        total += int(data[places].sum())
        data[places[::8]] += 0  # a write that leaves the content as it is, so pages turn dirty
    return total


def main() -> None:
    """Run the phases of one job on its schedule."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--start-at-s", type=float, required=True, help="monotonic time of phase 0")
    parser.add_argument("--period-s", type=float, required=True)
    parser.add_argument("--phases", type=int, required=True)
    parser.add_argument("--touches", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()

    mapping: mmap.mmap | None = None
    data: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for phase in range(args.phases):
        due_s = args.start_at_s + phase * args.period_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        if mapping is None:
            mapping = mmap.mmap(-1, args.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            data = np.frombuffer(mapping, dtype=np.int64)
            build(data, args.seed)
        total = work(data, args.touches, args.seed + phase)
        end_s = time.monotonic()
        cpu_s = time.process_time() - start_cpu_s
        line = {"phase": phase, "due_s": due_s, "start_s": start_s, "end_s": end_s, "cpu_s": cpu_s, "total": total}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
