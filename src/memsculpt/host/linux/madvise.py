# SPDX-License-Identifier: Apache-2.0
"""process_madvise(2) and process_vm_readv(2): advice on, and reads from, another process's memory."""

import ctypes
import os

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64

SYS_PROCESS_MADVISE = 440
MADV_WILLNEED = 3
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_COLLAPSE = 25
RANGES_MOST = 1024  # UIO_MAXIOV

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def advise(pidfd: int, ranges: list[tuple[int, int]], advice: int) -> int:
    """Give advice on (address, length) ranges, at most RANGES_MOST; return the bytes advised. Raises OSError."""
    vector = (Iovec * len(ranges))(*(Iovec(at, length) for at, length in ranges))
    done = _libc.syscall(SYS_PROCESS_MADVISE, pidfd, vector, ctypes.c_ulong(len(ranges)), advice, ctypes.c_ulong(0))
    if done < 0:
        raise _last_error()
    return int(done)


def touch(pid: int, pages: Int64) -> int:
    """Read one byte of each page, at most RANGES_MOST, which faults it in for its owner; return how many were read.

    The call stops at the first page that cannot be read. Raises OSError when not even the first one can.
    """
    target = (ctypes.c_char * len(pages))()
    remote = np.empty((len(pages), 2), dtype=np.uint64)
    remote[:, 0] = pages
    remote[:, 1] = 1
    return _read(pid, Iovec(ctypes.addressof(target), len(pages)), remote)


def copy_page(pid: int, address: int, size_bytes: int) -> bytes:
    """Return what lies at an address; less where it is not all there. Raises OSError."""
    target = ctypes.create_string_buffer(size_bytes)
    remote = np.array([(address, size_bytes)], dtype=np.uint64)
    done = _read(pid, Iovec(ctypes.addressof(target), size_bytes), remote)
    return target.raw[:done]


def copy_pages(pid: int, addresses: Int64, words: npt.NDArray[np.uint64]) -> int:
    """Copy a page from each address, at most RANGES_MOST, into the rows of `words`; return how many were copied whole.

    Neighbours are read as one stretch, which costs half. Stops at the first page that cannot be read. Raises OSError
    when not even the first one can.
    """
    page_bytes = words.shape[1] * 8
    firsts = np.flatnonzero(np.diff(addresses, prepend=-1) != page_bytes)
    remote = np.empty((len(firsts), 2), dtype=np.uint64)
    remote[:, 0] = addresses[firsts]
    remote[:, 1] = np.diff(np.append(firsts, len(addresses))) * page_bytes
    return _read(pid, Iovec(words.ctypes.data, words.nbytes), remote) // page_bytes


def _read(pid: int, local: Iovec, remote: npt.NDArray[np.uint64]) -> int:
    """Read ranges (address, length) of another process into one of ours; return the bytes read. Raises OSError."""
    done = _libc.process_vm_readv(
        pid,
        ctypes.byref(local),
        ctypes.c_ulong(1),
        remote.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_ulong(len(remote)),
        ctypes.c_ulong(0),
    )
    if done < 0:
        raise _last_error()
    return int(done)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
