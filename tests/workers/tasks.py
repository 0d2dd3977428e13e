# SPDX-License-Identifier: Apache-2.0
"""What the tests have workers do: functions of a module, because a worker finds them by their names."""

import os
import signal
import sys
from pathlib import Path

from memsculpt.errors import Refused, Vanished


def double(value, *, plus=0):
    return 2 * value + plus


def same(value):
    return value


def conditions():
    oom = int(Path("/proc/self/oom_score_adj").read_text())
    return {"pid": os.getpid(), "nice": os.nice(0), "oom": oom, "session": os.getsid(0)}


def chatter():
    print("this is no result")
    os.write(1, b"neither is this")
    return "the result"


def refuse():
    raise Refused(place="here", problem="is not wanted", fix="want it")


def vanish():
    raise Vanished(place="process 7")


def break_down():
    raise LookupError("a bug")


def crash():
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path):
    Path(path).write_text(f"{os.getpid()}\n")
    while True:
        signal.pause()


def eat(size_bytes):
    return len(bytearray(size_bytes))


def flood(size_bytes):
    return b"x" * size_bytes


def print_for_ever():
    while True:
        os.write(2, b"x" * 65536)


def leave():
    os._exit(0)
