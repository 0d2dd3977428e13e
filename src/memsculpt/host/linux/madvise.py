# SPDX-License-Identifier: Apache-2.0
"""The calls that reach into another process: pidfd, process_madvise, process_vm_readv. Nothing is decided here."""

import ctypes
import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Vanished
from memsculpt.host.linux import errnos, files, procfs

SYS_PROCESS_MADVISE = 440  # x86-64 and the generic table alike; since Linux 5.10
MADV_PAGEOUT = 21
IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.process_vm_readv.restype = ctypes.c_ssize_t

_Ranges = np.dtype([("base", np.uint64), ("length", np.uint64)])  # struct iovec on 64-bit machines


@contextmanager
def opened(process: Instance, proc: bytes = b"/proc") -> Generator[int, None, None]:
    """Yield a pidfd of exactly this instance; raises Vanished when the pid is somebody else's by now.

    The pidfd comes before the check: from then on it can mean nobody else.
    """
    place = f"process {process.pid}"
    with errnos.at(place):
        pidfd = os.pidfd_open(process.pid)
    try:
        with errnos.at(place):
            stat = procfs.parse_stat(files.read(b"%s/%d/stat" % (proc, process.pid)))
        if stat.start_ticks != process.start_ticks:
            raise Vanished(place=place)
        yield pidfd
    finally:
        os.close(pidfd)


def page_out(pidfd: int, starts: Int64, lengths_bytes: Int64) -> int:
    """Ask the kernel to send ranges out (at most IOV_MAX of them); return how many bytes it went through.

    Fewer than asked: it stopped at a range that it may not send out. Raises OSError; EINVAL when the very first
    range is such a one (locked, huge TLB pages, device memory). Source: process_madvise(2).
    """
    ranges = _ranges(starts, lengths_bytes)
    done: int = _libc.syscall(
        ctypes.c_long(SYS_PROCESS_MADVISE),
        ctypes.c_int(pidfd),
        ctypes.c_void_p(ranges.ctypes.data),
        ctypes.c_size_t(starts.size),
        ctypes.c_int(MADV_PAGEOUT),
        ctypes.c_uint(0),
    )
    return _checked(done)


def touch(pid: int, addresses: Int64) -> int:
    """Read one byte at each address (at most IOV_MAX): the kernel faults each page in and maps it.

    Returns how many were read before the first that is not mapped any more; raises OSError (EFAULT when that is
    the first, ESRCH, EPERM). Source: process_vm_readv(2).
    """
    buffer = np.empty(addresses.size, dtype=np.uint8)
    local = _ranges(np.array([buffer.ctypes.data], dtype=np.int64), np.array([buffer.size], dtype=np.int64))
    remote = _ranges(addresses, np.ones(addresses.size, dtype=np.int64))
    done: int = _libc.process_vm_readv(
        ctypes.c_int(pid),
        ctypes.c_void_p(local.ctypes.data),
        ctypes.c_ulong(1),
        ctypes.c_void_p(remote.ctypes.data),
        ctypes.c_ulong(addresses.size),
        ctypes.c_ulong(0),
    )
    return _checked(done)


def _ranges(starts: Int64, lengths_bytes: Int64) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    ranges = np.empty(starts.size, dtype=_Ranges)
    ranges["base"] = starts
    ranges["length"] = lengths_bytes
    return ranges


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return result
