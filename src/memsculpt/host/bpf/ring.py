# SPDX-License-Identifier: Apache-2.0
"""A ring buffer of the kernel's (Documentation/bpf/ringbuf.rst), read as records of one kind."""

import mmap
import select
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.host.bpf.program import Map

# A record begins with its length and two flags.
HEADER_BYTES = 8
BUSY, DISCARDED = 1 << 31, 1 << 30


class Ring:
    """Both shared mappings of a ring; close it before the program."""

    def __init__(self, ring: Map, record: "np.dtype[Any]") -> None:
        """Share the memory. Raises OSError."""
        self._number, self._size = ring.number, ring.max_entries
        self._stride = HEADER_BYTES + record.itemsize
        self._poller: select.epoll | None = None
        self._row = np.dtype([("header", "<u8"), ("record", record)])
        self._consumer = mmap.mmap(ring.number, mmap.PAGESIZE)
        try:
            # The data lie twice behind one another, so that no record is cut at the end.
            self._producer = mmap.mmap(
                ring.number, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
            )
        except OSError:
            self._consumer.close()
            raise

    def fill_ratio(self) -> float:
        """Return how full the ring is."""
        head = struct.unpack_from("<Q", self._producer, 0)[0]
        return (head - struct.unpack_from("<Q", self._consumer, 0)[0]) / self._size

    def drain(self) -> npt.NDArray[Any]:
        """Return the records since the last call, and make room."""
        head = struct.unpack_from("<Q", self._producer, 0)[0]
        tail = struct.unpack_from("<Q", self._consumer, 0)[0]
        count = (head - tail) // self._stride
        at = mmap.PAGESIZE + tail % self._size
        content = self._producer[at : at + count * self._stride]
        rows = np.frombuffer(content, self._row)
        flags = rows["header"].astype(np.uint32)
        busy = np.flatnonzero(flags & BUSY)
        if len(busy):
            rows, flags = rows[: busy[0]], flags[: busy[0]]
        struct.pack_into("<Q", self._consumer, 0, tail + len(rows) * self._stride)
        return rows["record"][flags & DISCARDED == 0].copy()

    def wait(self, stop: int) -> bool:
        """Sleep until the program wakes its reader (True), or `stop`, an eventfd, is written to (False).

        Edge-triggered: a ring that merely holds something wakes nobody.
        """
        if self._poller is None:
            self._poller = select.epoll()
            self._poller.register(stop, select.EPOLLIN)
            self._poller.register(self._number, select.EPOLLIN | select.EPOLLET)
        while True:
            found = [descriptor for descriptor, _ in self._poller.poll()]
            if stop in found:
                return False
            if found:
                return True

    def close(self) -> None:
        """Give the shared memory back; a second call does nothing."""
        self._consumer.close()
        self._producer.close()
        if self._poller is not None:
            self._poller.close()
            self._poller = None
