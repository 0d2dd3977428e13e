# SPDX-License-Identifier: Apache-2.0
"""Loads one compiled object by libbpf 1.x and hands over what it made: the whole life of a process of its own.

To relocate a program libbpf reads the kernel's types (BTF) twice over, 11 MiB for a moment; in here they are not the
agent's. So this file runs by itself (program.py starts it) and imports nothing of ours, which would bring numpy along.

What is asked: argv[1] is the object, argv[2] the sizes of maps by name, argv[3] the pid of who asks. The answer is one
message on the socket that is stdin: JSON, and with it a descriptor for each program and each map. libbpf says why a
program was refused on a channel of its own, not in errno: what it says is in the answer. Its functions:
libbpf.readthedocs.io.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections import deque
from typing import Any

SONAME = "libbpf.so.1"
LINES_KEPT = 12
# The verifier's log comes as one line, and says at its end what it refuses.
LINE_BYTES = 1 << 20
SAID_MOST = 16 << 10
WARN = 0  # enum libbpf_print_level
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

_Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
    "bpf_object__load": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_object__find_map_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_object__next_program": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_object__next_map": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_program__name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "bpf_program__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "bpf_map__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__key_size": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__value_size": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__max_entries": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__set_max_entries": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32]),
}


class _Library:
    """The library, and what it said last."""

    def __init__(self) -> None:
        self.calls = ctypes.CDLL(SONAME, use_errno=True)
        self._libc = ctypes.CDLL(None)
        self.said: deque[str] = deque(maxlen=LINES_KEPT)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, arguments
        self._keep = _Print(self._hear)  # ctypes keeps no reference of its own
        self.calls.libbpf_set_print.restype = ctypes.c_void_p
        self.calls.libbpf_set_print(self._keep)

    def _hear(self, level: int, form: bytes, arguments: int) -> int:
        if level == WARN:
            line = ctypes.create_string_buffer(LINE_BYTES)
            self._libc.vsnprintf(line, ctypes.c_size_t(LINE_BYTES), form, ctypes.c_void_p(arguments))
            self.said.extend(line.value.decode("utf-8", "replace").splitlines())
        return 0

    def load(self, path: str, sizes: dict[str, int]) -> tuple[dict[str, Any], list[int]]:
        """Return the answer and its descriptors, programs first. They live as long as this process."""
        loaded = self.calls.bpf_object__open_file(os.fsencode(path), None)
        if not loaded:
            return self._failed("opened", ctypes.get_errno()), []
        for name, size in sizes.items():
            found = self.calls.bpf_object__find_map_by_name(loaded, name.encode("ascii"))
            failed = self.calls.bpf_map__set_max_entries(found, size) if found else -errno.ENOENT
            if failed:
                return self._failed("loaded", -failed, f"map {name}: {os.strerror(-failed)}"), []
        failed = self.calls.bpf_object__load(loaded)
        if failed:
            return self._failed("loaded", -failed), []
        programs: dict[str, int] = {}
        at = self.calls.bpf_object__next_program(loaded, None)
        while at:
            programs[self.calls.bpf_program__name(at).decode("ascii")] = self.calls.bpf_program__fd(at)
            at = self.calls.bpf_object__next_program(loaded, at)
        maps: dict[str, tuple[int, int, int]] = {}
        descriptors = list(programs.values())
        at = self.calls.bpf_object__next_map(loaded, None)
        while at:
            maps[self.calls.bpf_map__name(at).decode("ascii")] = (
                self.calls.bpf_map__key_size(at),
                self.calls.bpf_map__value_size(at),
                self.calls.bpf_map__max_entries(at),
            )
            descriptors.append(self.calls.bpf_map__fd(at))
            at = self.calls.bpf_object__next_map(loaded, at)
        return {"programs": list(programs), "maps": maps}, descriptors

    def _failed(self, what: str, number: int, words: str = "") -> dict[str, Any]:
        said = words or "; ".join(self.said) or os.strerror(number)
        return {"failed": what, "errno": number, "words": said[-SAID_MOST:]}


def main() -> None:
    """Load, answer, and end; the kernel keeps what somebody else holds by then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    path, sizes, asking_pid = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    if os.getppid() != asking_pid:
        return  # it was gone before we could tie ourselves to it
    try:
        answer, descriptors = _Library().load(path, sizes)
    except OSError as error:  # of dlopen(3), which sets no errno
        answer, descriptors = {"failed": "found", "errno": 0, "words": str(error)}, []
    with socket.socket(fileno=0) as asked:
        socket.send_fds(asked, [json.dumps(answer).encode()], descriptors)


if __name__ == "__main__":
    main()
