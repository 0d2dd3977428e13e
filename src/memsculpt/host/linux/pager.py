# SPDX-License-Identifier: Apache-2.0
"""Move pages of other processes: out by process_madvise(2), back and mapped by process_vm_readv(2)."""

import ctypes
import errno
import os
import time

import numpy as np
import numpy.typing as npt

from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished
from memsculpt.host.protocol import Moved

PAGE = 4096
SYS_PROCESS_MADVISE = 440
MADV_PAGEOUT = 21
CALL_BYTES = 256 << 10  # what one call asks for at most: the kernel does not let others in before it returns
READ_PAGES = 1024  # IOV_MAX
PRESENT, SWAPPED = np.uint64(1 << 63), np.uint64(1 << 62)

Addresses = npt.NDArray[np.int64]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class LinuxPager:
    def __init__(self) -> None:
        self._sent: dict[Instance, Addresses] = {}

    def page_out(self, process: Instance, size_bytes: int) -> Moved:
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with _open(process) as (pidfd, pagemap):
            resident = _pages(process.pid, pagemap, PRESENT)
            wanted = min(size_bytes // PAGE, resident.size)
            sent = self._sent.get(process)
            chosen = resident
            if sent is not None and wanted < resident.size:
                again = resident[np.isin(resident, sent, assume_unique=True)]
                rest = resident[~np.isin(resident, sent, assume_unique=True)]
                chosen = np.concatenate((rest, again))
            chosen = np.sort(chosen[chosen.size - wanted :])
            _advise(pidfd, process, chosen)
            gone = _pages(process.pid, pagemap, SWAPPED)
        moved = int(np.isin(chosen, gone, assume_unique=True).sum())
        self._sent[process] = gone
        if len(self._sent) > 256:
            self._sent = {one: pages for one, pages in self._sent.items() if os.path.exists(f"/proc/{one.pid}")}
        return Moved(
            asked_bytes=size_bytes,
            moved_bytes=moved * PAGE,
            duration_s=time.monotonic() - begin_s,
            cpu_s=time.thread_time() - begin_cpu_s,
        )

    def page_in(self, process: Instance, size_bytes: int) -> Moved:
        begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
        with _open(process) as (_, pagemap):
            out = _pages(process.pid, pagemap, SWAPPED)
            chosen = out[: size_bytes // PAGE]
            touched = _touch(process, chosen)
        return Moved(
            asked_bytes=size_bytes,
            moved_bytes=touched * PAGE,
            duration_s=time.monotonic() - begin_s,
            cpu_s=time.thread_time() - begin_cpu_s,
        )


class _open:
    def __init__(self, process: Instance) -> None:
        self.process = process

    def __enter__(self) -> tuple[int, int]:
        pid = self.process.pid
        try:
            self.pidfd = os.pidfd_open(pid)
            with open(f"/proc/{pid}/stat", "rb") as stat:
                start = int(stat.read().rsplit(b")", 1)[1].split()[19])
            if start != self.process.start_ticks:
                os.close(self.pidfd)
                raise Vanished(place=f"process {pid}")
            self.pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        except OSError as error:
            raise translate(error, f"process {pid}") from error
        return self.pidfd, self.pagemap

    def __exit__(self, *_: object) -> None:
        os.close(self.pidfd)
        os.close(self.pagemap)


def _pages(pid: int, pagemap: int, flag: np.uint64) -> Addresses:
    parts = []
    try:
        for start, end in private_ranges(pid):
            for at in range(start, end, 64 << 20):
                upto = min(end, at + (64 << 20))
                entries = np.frombuffer(os.pread(pagemap, (upto - at) // PAGE * 8, at // PAGE * 8), dtype=np.uint64)
                parts.append(np.flatnonzero(entries & flag) * PAGE + at)
    except OSError as error:
        raise translate(error, f"process {pid}") from error
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def private_ranges(pid: int) -> list[tuple[int, int]]:
    ranges = []
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            words = line.split(None, 5)
            name = words[5].strip() if len(words) > 5 else b""
            if words[1] != b"rw-p" or (name and name != b"[heap]" and not name.startswith(b"[anon")):
                continue
            start, _, end = words[0].partition(b"-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def _runs(pages: Addresses) -> list[tuple[int, int]]:
    if pages.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(pages) != PAGE)
    starts = pages[np.concatenate(([0], breaks + 1))]
    ends = pages[np.concatenate((breaks, [pages.size - 1]))] + PAGE
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _advise(pidfd: int, process: Instance, pages: Addresses) -> None:
    pending: list[tuple[int, int]] = []
    size = 0

    def flush() -> None:
        nonlocal pending, size
        if not pending:
            return
        vector = (_Iovec * len(pending))(*[_Iovec(at, n) for at, n in pending])
        done = _libc.syscall(SYS_PROCESS_MADVISE, pidfd, vector, ctypes.c_ulong(len(pending)), MADV_PAGEOUT, 0)
        pending, size = [], 0
        if done < 0:
            number = ctypes.get_errno()
            if number not in (errno.ENOMEM, errno.EINVAL, errno.EINTR, errno.EAGAIN):
                raise translate(OSError(number, os.strerror(number)), f"process {process.pid}")

    for start, end in _runs(pages):
        at = start
        while at < end:
            n = min(end - at, CALL_BYTES - size)
            pending.append((at, n))
            size += n
            at += n
            if size >= CALL_BYTES or len(pending) == READ_PAGES:
                flush()
    flush()


def _touch(process: Instance, pages: Addresses) -> int:
    buffer = (ctypes.c_char * READ_PAGES)()
    done = 0
    for at in range(0, pages.size, READ_PAGES):
        part = pages[at : at + READ_PAGES]
        remote = np.empty((part.size, 2), dtype=np.uint64)
        remote[:, 0] = part
        remote[:, 1] = 1
        local = _Iovec(ctypes.addressof(buffer), part.size)
        n = _libc.process_vm_readv(
            process.pid,
            ctypes.byref(local),
            ctypes.c_ulong(1),
            remote.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_ulong(part.size),
            ctypes.c_ulong(0),
        )
        if n < 0:
            number = ctypes.get_errno()
            if number == errno.EFAULT:
                continue
            raise translate(OSError(number, os.strerror(number)), f"process {process.pid}")
        done += n
    return done


def translate(error: OSError, place: str) -> MemsculptError:
    if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
        return Vanished(place=place)
    if error.errno in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
        return Transient(place=place, problem=str(error.strerror), retry_in_s=1.0)
    return Unavailable(place=place, problem=str(error.strerror), fix="run as root")
