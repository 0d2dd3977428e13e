# SPDX-License-Identifier: Apache-2.0
"""Closed loops that time every request and write it into a shared ring, for whoever maps the file.

    timed.py redis FILE ADDRESS KEYS SKEW     asks a redis-server for keys by a Zipf law, one after the other
    timed.py numpy FILE BYTES                 a service over a table in partitions, after a warm-up over everything

The file holds RING + 1 words of 64 bits: the count of requests so far, then the last RING durations in nanoseconds.
Says "ready" when it serves.
"""

import gc
import socket
import sys
import time
from collections.abc import Callable

import numpy as np

from memsculpt_bench.tenants.cache_client import VALUE_BYTES, encode_get, fill, key_sequence

RING = 1 << 18
PARTITION_BYTES = 4 << 20
ROW = 256  # numbers of 4 bytes
ROWS_A_REQUEST = 64
PARTITION_SKEW = 1.3
STAGED_SHARE = 3  # a third of the memory is what loading left behind, and is never used again


def redis_requests(address: str, keys: int, skew: float) -> Callable[[int], None]:
    """Fill the server; return what asks for one key."""
    fill(address, keys, 7)
    sequence = key_sequence(keys, 1 << 20, skew, 7).tolist()
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)

    def ask(number: int) -> None:
        server.sendall(encode_get(b"key:%d" % sequence[number & 0xFFFFF]))
        got = len(server.recv(4096))
        while got < VALUE_BYTES + 9:
            got += len(server.recv(4096))

    return ask


def numpy_requests(size_bytes: int) -> Callable[[int], None]:
    """Load a table and warm up on all of it; return what answers one query from one partition."""
    rng = np.random.default_rng(7)
    staged = rng.integers(0, 1 << 20, size_bytes // STAGED_SHARE // 8, dtype=np.int64)
    partitions = (size_bytes - staged.nbytes) // PARTITION_BYTES
    table = rng.random((partitions, PARTITION_BYTES // 4 // ROW, ROW), dtype=np.float32)
    np.round(table, 2, out=table)  # prices, say: they compress as real columns do
    warm = float(table.sum()) + float(staged.sum())
    weights = 1.0 / np.arange(1, partitions + 1) ** PARTITION_SKEW
    chosen = rng.permutation(partitions)[rng.choice(partitions, 1 << 18, p=weights / weights.sum())].tolist()
    rows = rng.integers(0, table.shape[1], (4096, ROWS_A_REQUEST))
    query = rng.random(ROW, dtype=np.float32)
    kept = [staged, warm]

    def ask(number: int) -> None:
        found = table[chosen[number & 0x3FFFF]][rows[number & 4095]] @ query
        kept[1] = float(found[0])

    return ask


def main() -> None:
    """Serve for ever."""
    told = np.memmap(sys.argv[2], dtype=np.int64, mode="r+", shape=(RING + 1,))
    if sys.argv[1] == "redis":
        ask = redis_requests(sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        ask = numpy_requests(int(sys.argv[3]))
    print("ready", flush=True)
    gc.disable()
    clock, count = time.monotonic_ns, 0
    while True:
        begin = clock()
        ask(count)
        told[1 + count % RING] = clock() - begin
        count += 1
        told[0] = count


main()
