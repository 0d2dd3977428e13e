# SPDX-License-Identifier: Apache-2.0
"""A cache's clients of a day: so many requests, one after the other, then a night without any.

Keys follow a Zipf law, nine reads to one write, as in cache_client.py; a day is a fixed number of requests, so it takes
longer exactly by what the server waits for memory. It takes its first turn at the time that a line `go SECONDS` on its
input says, and prints one JSON line a turn, as phases.py does; the faults are the server's.
"""

import argparse
import os
import socket
import time
from ctypes import CDLL, Structure, c_long, c_size_t, c_ulong, c_void_p, get_errno
from pathlib import Path

import numpy as np

from memsculpt_bench.tenants.cache_client import VALUE_BYTES, encode_get, encode_set, key_sequence, values
from memsculpt_bench.tenants.phases import awaited_start_s, say

SYS_PROCESS_MADVISE, MADV_WILLNEED = 440, 3
SKEW = 0.9
SERVER_SET = 0


class Iovec(Structure):
    """struct iovec."""

    _fields_ = (("base", c_void_p), ("length", c_size_t))


def main() -> None:
    """Take the turns of the schedule."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True, help="in a turn")
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--slot-s", type=float, required=True, help="from one turn's begin to the next")
    parser.add_argument("--jitter", type=float, default=0.1, help="of the slot, by which turns begin earlier or later")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--willneed", action="store_true", help="advise MADV_WILLNEED on the server when a turn begins")
    args = parser.parse_args()

    drawn = key_sequence(args.keys, args.requests * args.turns, SKEW, args.seed).reshape(args.turns, args.requests)
    stock = values(64, args.seed)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(args.socket)
        say({"pid": os.getpid()})
        chance = np.random.default_rng(args.seed)
        begin_s = awaited_start_s()
        slot_s, jitter = float(args.slot_s), float(args.jitter)
        for turn in range(args.turns):
            due_s = begin_s + (turn + chance.uniform(-jitter, jitter)) * slot_s
            keys = drawn[turn].tolist()
            time.sleep(max(0.0, due_s - time.monotonic()))
            start_s, faults, cpu_s = time.monotonic(), *used_by(args.server_pid)
            if args.willneed:
                advise_willneed(args.server_pid)
            ask(server, keys, stock)
            end_s, faults_after, cpu_after_s = time.monotonic(), *used_by(args.server_pid)
            say(
                {
                    "turn": turn,
                    "period": turn,
                    "set": SERVER_SET,
                    "start_s": start_s,
                    "end_s": end_s,
                    "cpu_s": cpu_after_s - cpu_s,
                    "major_faults": faults_after - faults,
                }
            )


def ask(server: socket.socket, keys: list[int], stock: list[bytes]) -> None:
    """Send the requests one after the other, each when the answer before it is in."""
    for number, key_number in enumerate(keys):
        key = b"key:%d" % key_number
        if number % 10:
            message, wanted = encode_get(key), VALUE_BYTES + 9
        else:
            message, wanted = encode_set(key, stock[number & 63]), 5
        server.sendall(message)
        while wanted > 0:
            part = len(server.recv(4096))
            if not part:
                raise SystemExit("the server closed the connection")
            wanted -= part


def used_by(pid: int) -> tuple[int, float]:
    """Return a process's major faults and its processor time in seconds (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[9]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def advise_willneed(pid: int) -> None:
    """Ask the kernel to read all of a process's private anonymous memory ahead. Raises OSError."""
    libc = CDLL(None, use_errno=True)
    libc.syscall.restype = c_long
    handle = os.pidfd_open(pid)
    try:
        for row in map(str.split, Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()):
            if not row[1].startswith("rw-p") or (len(row) > 5 and row[5] != "[heap]"):
                continue
            start, end = (int(word, 16) for word in row[0].split("-"))
            vector = Iovec(start, end - start)
            done = libc.syscall(SYS_PROCESS_MADVISE, handle, (Iovec * 1)(vector), c_ulong(1), MADV_WILLNEED, c_ulong(0))
            if done < 0:
                raise OSError(get_errno(), f"process_madvise of {row[0]}")
    finally:
        os.close(handle)


if __name__ == "__main__":
    main()
