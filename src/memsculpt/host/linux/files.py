# SPDX-License-Identifier: Apache-2.0
"""Kernel files, read and written whole in one call each, because that is how the kernel means them."""

import os

CHUNK_BYTES = 1 << 16


def read(path: bytes) -> bytes:
    """Return the whole file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, CHUNK_BYTES)
        if len(data) < 4096:  # a kernel file that ends below one page is given in one read
            return data
        parts = [data]
        while data := os.read(fd, CHUNK_BYTES):
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def write(path: bytes, text: bytes) -> None:
    """Write `text` in one call: the kernel takes each write as one command. Raises OSError.

    Never through a buffered file: its close would lose the error.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def fields(text: bytes) -> dict[bytes, int]:
    """Return the `name number` lines of a file (memory.stat, memory.oom_control, memory.events); others are skipped."""
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        name, _, number = line.partition(b" ")
        if number.isdigit():
            found[name] = int(number)
    return found
