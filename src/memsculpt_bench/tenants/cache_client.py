# SPDX-License-Identifier: Apache-2.0
"""A closed-loop Redis client with skewed keys that times every request.

One request is always on its way: the next key is drawn when the answer is in. Keys follow a Zipf
law over a shuffled key space, nine reads to one write. Speaks RESP over a Unix socket by hand, since
a client library's own time would be most of what is measured. Prints one JSON object: quantiles of
the latency in microseconds, in named windows of time and in bins of a quarter of a second.
"""

import argparse
import gc
import json
import socket
import sys
import time
from itertools import pairwise

import numpy as np
import numpy.typing as npt

VALUE_BYTES = 1024
CAPACITY = 1 << 24  # requests in one run; 16 bytes each

Log = npt.NDArray[np.int64]


def key_sequence(keys: int, length: int, skew: float, seed: int) -> npt.NDArray[np.int64]:
    """Draw `length` keys of `keys` by a Zipf law with exponent `skew`, hot keys spread over the space."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, keys + 1, dtype=np.float64) ** skew
    cumulative = np.cumsum(weights)
    drawn: npt.NDArray[np.float64] = rng.random(length) * cumulative[-1]
    ranks: npt.NDArray[np.int64] = np.searchsorted(cumulative, drawn)
    return rng.permutation(keys)[ranks]


def encode_get(key: bytes) -> bytes:
    """Return GET in the Redis protocol."""
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


def encode_set(key: bytes, value: bytes) -> bytes:
    """Return SET in the Redis protocol."""
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)


def values(count: int, seed: int) -> list[bytes]:
    """Return distinct values, half noise and half zeros, as records with padding are."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, VALUE_BYTES // 2), dtype=np.uint8)
    return [row.tobytes() + bytes(VALUE_BYTES // 2) for row in noise]


def fill(address: str, keys: int, seed: int) -> None:
    """Load the key space, pipelined."""
    stock = values(1024, seed)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        for start in range(0, keys, 1000):
            batch = range(start, min(keys, start + 1000))
            server.sendall(b"".join(encode_set(b"key:%d" % key, stock[key % 1024]) for key in batch))
            wanted, got = 5 * len(batch), 0
            while got < wanted:
                got += len(server.recv(1 << 16))


def drive(address: str, keys: int, until_s: float, skew: float, seed: int) -> Log:
    """Ask one key after the other until `until_s`; return sent times and latencies in ns, shape (n, 2)."""
    sequence = key_sequence(keys, 1 << 20, skew, seed).tolist()
    stock = values(64, seed)
    log = np.zeros((CAPACITY, 2), dtype=np.int64)
    log[:] = 1  # fault the log's own pages in now, not between two requests
    gc.disable()
    clock = time.monotonic_ns
    until_ns = int(until_s * 1e9)
    count = 0
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        while count < CAPACITY:
            key = b"key:%d" % sequence[count & 0xFFFFF]
            if count % 10:
                message, wanted = encode_get(key), VALUE_BYTES + 9
            else:
                message, wanted = encode_set(key, stock[count & 63]), 5
            sent = clock()
            server.sendall(message)
            got = len(server.recv(4096))
            while got < wanted:
                got += len(server.recv(4096))
            done = clock()
            log[count, 0] = sent
            log[count, 1] = done - sent
            count += 1
            if done >= until_ns:
                return log[:count]
    raise RuntimeError(f"the log holds {CAPACITY} requests, and the run asked more: raise CAPACITY")


def summarise(log: Log, windows: list[tuple[str, float, float]], bin_s: float) -> dict[str, object]:
    """Reduce a log to quantiles (in microseconds) within each named window, and per bin of time."""
    sent_s, latency_us = log[:, 0] / 1e9, log[:, 1] / 1e3
    summary: dict[str, object] = {"requests": int(log.shape[0])}
    for name, since_s, until_s in windows:
        chosen = latency_us[(sent_s >= since_s) & (sent_s < until_s)]
        if chosen.size == 0:
            raise RuntimeError(f"no request was sent in the window {name!r}")
        p50, p99, p999, most = np.percentile(chosen, [50, 99, 99.9, 100])
        summary[name] = {"requests": int(chosen.size), "p50": p50, "p99": p99, "p999": p999, "max": most}
    edges = np.arange(sent_s[0], sent_s[-1] + bin_s, bin_s)
    cuts = np.searchsorted(sent_s, edges)
    bins: list[list[float]] = []
    for start, stop in pairwise(cuts):
        if stop > start:
            p50, p99, p999 = np.percentile(latency_us[start:stop], [50, 99, 99.9])
            bins.append([float(sent_s[start]), p50, p99, p999, float(latency_us[start:stop].max())])
    summary["bins"] = bins
    return summary


def main() -> None:
    """Fill, or drive."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--until-s", type=float, default=0.0)
    parser.add_argument("--skew", type=float, default=0.9)
    parser.add_argument("--window", nargs=3, action="append", default=[], metavar=("NAME", "SINCE", "UNTIL"))
    args = parser.parse_args()
    if args.fill:
        fill(args.socket, args.keys, args.seed)
        return
    log = drive(args.socket, args.keys, args.until_s, args.skew, args.seed)
    windows = [(name, float(since), float(until)) for name, since, until in args.window]
    json.dump(summarise(log, windows, bin_s=0.25), sys.stdout)


if __name__ == "__main__":
    main()
