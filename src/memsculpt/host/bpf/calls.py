# SPDX-License-Identifier: Apache-2.0
"""bpf(2), as far as we use it once a program is loaded: values of maps, iterators, raw tracepoints.

Layouts and numbers: include/uapi/linux/bpf.h, union bpf_attr and enum bpf_cmd.
"""

import ctypes
import os
import platform
import struct
from typing import Any

SYS_BPF = 321 if platform.machine() == "x86_64" else 280  # asm-generic/unistd.h, which all later architectures share
MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, RAW_TRACEPOINT_OPEN, LINK_CREATE, ITER_CREATE = 1, 2, 3, 17, 28, 33
TRACE_ITER = 28  # enum bpf_attach_type
ANY = 0  # a value is written whether the key is there or not

_libc = ctypes.CDLL(None, use_errno=True)


def lookup(map_number: int, key: bytes, value_bytes: int) -> bytes:
    """Return the value of the key. Raises OSError (ENOENT where there is none)."""
    value = ctypes.create_string_buffer(value_bytes)
    _element(MAP_LOOKUP, map_number, key, value)
    return value.raw


def update(map_number: int, key: bytes, value: bytes) -> None:
    """Write the value of the key. Raises OSError (E2BIG where the map is full)."""
    _element(MAP_UPDATE, map_number, key, ctypes.create_string_buffer(value, len(value)))


def delete(map_number: int, key: bytes) -> None:
    """Forget the key. Raises OSError (ENOENT where there is none)."""
    _element(MAP_DELETE, map_number, key, None)


def link_iterator(program: int, pid: int | None) -> int:
    """Return the link of an iterator over tasks, of one process where `pid` is given. Raises OSError."""
    # union bpf_iter_link_info: thread, process, pidfd
    target = ctypes.create_string_buffer(struct.pack("<IIII", 0, pid or 0, 0, 0), 16)
    place, size_bytes = (0, 0) if pid is None else (ctypes.addressof(target), 16)
    return _call(LINK_CREATE, struct.pack("<iIIIQI", program, 0, TRACE_ITER, 0, place, size_bytes))


def create_iterator(link: int) -> int:
    """Return a descriptor whose reading runs the iterator once. Raises OSError."""
    return _call(ITER_CREATE, struct.pack("<iI", link, 0))


def open_raw_tracepoint(name: str, program: int) -> int:
    """Return a descriptor, until whose close the program runs at the tracepoint. Raises OSError."""
    words = ctypes.create_string_buffer(name.encode("ascii"))
    return _call(RAW_TRACEPOINT_OPEN, struct.pack("<Qi", ctypes.addressof(words), program))


def _element(command: int, map_number: int, key: bytes, value: "ctypes.Array[Any] | None") -> None:
    asked = ctypes.create_string_buffer(key, len(key))
    place = 0 if value is None else ctypes.addressof(value)
    _call(command, struct.pack("<ixxxxQQQ", map_number, ctypes.addressof(asked), place, ANY))


def _call(command: int, attributes: bytes) -> int:
    # The kernel wants the reserved rest of a field to be zero, and takes what is not sent for zero.
    result = _libc.syscall(
        ctypes.c_long(SYS_BPF),
        ctypes.c_int(command),
        ctypes.create_string_buffer(attributes, len(attributes)),
        ctypes.c_uint(len(attributes)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
