# SPDX-License-Identifier: Apache-2.0
"""The files of /proc, parsed from bytes: pure functions that neither read nor guess.

Names are bytes here (a comm, a path and a cgroup may hold newlines, spaces and bytes that are no UTF-8);
whoever shows them decodes with os.fsdecode. What is malformed raises Unavailable with the file's name.
Source: proc(5), Documentation/filesystems/proc.rst.
"""

from typing import NamedTuple

from memsculpt.domain.observation import HostMemory
from memsculpt.errors import Unavailable

KIB = 1024
PF_KTHREAD = 0x00200000  # include/linux/sched.h: a kernel thread, which has no memory of its own


class Stat(NamedTuple):
    """Of /proc/PID/stat, what is used here. Counters are cumulative, times in clock ticks."""

    comm: bytes
    flags: int
    minor_faults_count: int
    major_faults_count: int
    cpu_ticks: int  # user and system, of all threads, also of those that ended
    thread_count: int
    start_ticks: int
    resident_pages: int


class Memory(NamedTuple):
    """Of /proc/PID/status: kinds of memory and the real user."""

    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swapped_bytes: int
    locked_bytes: int
    uid: int
    has_kinds: bool  # False: Linux before 4.5, all of VmRSS stands in anon_bytes


class Mapping(NamedTuple):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: bytes
    name: bytes


def parse_stat(text: bytes) -> Stat:
    """Parse /proc/PID/stat. The comm may hold `)` and spaces, so the fields begin after the last `)`."""
    close = text.rfind(b")")
    words = text[close + 1 :].split(None, 22)
    try:
        return Stat(
            text[text.index(b"(") + 1 : close],
            int(words[6]),
            int(words[7]),
            int(words[9]),
            int(words[11]) + int(words[12]),
            int(words[17]),
            int(words[19]),
            int(words[21]),
        )
    except (ValueError, IndexError) as error:
        raise _malformed("/proc/PID/stat", text) from error


def parse_status(text: bytes) -> Memory:
    """Parse /proc/PID/status. A kernel thread and a zombie have no memory lines: all 0."""
    kib = {b"RssAnon": 0, b"RssFile": 0, b"RssShmem": 0, b"VmSwap": 0, b"VmLck": 0, b"VmRSS": 0}
    has_kinds = True
    uid = -1
    try:
        for line in text.split(b"\n"):  # the kernel escapes a newline in Name, so each line is one
            name, _, value = line.partition(b":")
            if name in kib:
                kib[name] = int(value.split()[0])
            elif name == b"Uid":
                uid = int(value.split()[0])
    except (ValueError, IndexError) as error:
        raise _malformed("/proc/PID/status", text) from error
    if uid < 0:
        raise _malformed("/proc/PID/status", text)
    if kib[b"VmRSS"] and b"\nRssAnon:" not in text:
        has_kinds = False
        kib[b"RssAnon"] = kib[b"VmRSS"]
    return Memory(
        kib[b"RssAnon"] * KIB,
        kib[b"RssFile"] * KIB,
        kib[b"RssShmem"] * KIB,
        kib[b"VmSwap"] * KIB,
        kib[b"VmLck"] * KIB,
        uid,
        has_kinds,
    )


def parse_io(text: bytes) -> tuple[int, int]:
    """Parse /proc/PID/io: bytes fetched from and sent to storage."""
    found: dict[bytes, int] = {}
    try:
        for line in text.split(b"\n"):
            name, colon, value = line.partition(b":")
            if colon:
                found[name] = int(value)
        return found[b"read_bytes"], found[b"write_bytes"]
    except (ValueError, KeyError) as error:
        raise _malformed("/proc/PID/io", text) from error


def parse_schedstat(text: bytes) -> int:
    """Parse /proc/PID/task/TID/schedstat: nanoseconds that this one thread has run."""
    try:
        return int(text.split(None, 1)[0])
    except (ValueError, IndexError) as error:
        raise _malformed("/proc/PID/task/TID/schedstat", text) from error


def parse_unified(text: bytes) -> bytes:
    """Return the cgroup v2 path (`0::/path`) in /proc/PID/cgroup, without slashes around it; b"" is the root."""
    for line in text.split(b"\n"):
        if line.startswith(b"0::"):
            return line[3:].strip(b"/")
    return b""


def parse_pressure(text: bytes) -> tuple[float, float]:
    """Parse a memory.pressure file: total stall of `some` and of `full` in seconds.

    Linux before 5.13 has no `full` line in cpu.pressure, but always one for memory.
    """
    totals: dict[bytes, float] = {}
    try:
        for line in text.splitlines():
            kind, _, rest = line.partition(b" ")
            totals[kind] = int(rest.rpartition(b"total=")[2]) / 1e6
        return totals[b"some"], totals[b"full"]
    except (ValueError, KeyError) as error:
        raise _malformed("memory.pressure", text) from error


def parse_meminfo(text: bytes, *, stall_s: tuple[float, float] | None, page_bytes: int) -> HostMemory:
    """Parse /proc/meminfo; `stall_s` is the machine's pressure, None without PSI."""
    found: dict[bytes, int] = {}
    try:
        for line in text.splitlines():
            name, _, value = line.partition(b":")
            if value.endswith(b"kB"):
                found[name] = int(value.split()[0]) * KIB
        return HostMemory(
            total_bytes=found[b"MemTotal"],
            available_bytes=min(found[b"MemTotal"], found[b"MemAvailable"]),
            free_bytes=found[b"MemFree"],
            swap_total_bytes=found[b"SwapTotal"],
            swap_free_bytes=found[b"SwapFree"],
            some_stall_s=None if stall_s is None else stall_s[0],
            full_stall_s=None if stall_s is None else stall_s[1],
            page_bytes=page_bytes,
        )
    except (ValueError, KeyError, IndexError) as error:
        raise _malformed("/proc/meminfo", text) from error


def parse_maps(text: bytes) -> list[Mapping]:
    """Parse /proc/PID/maps. The kernel escapes a newline in a name, so each line is one mapping."""
    found: list[Mapping] = []
    try:
        for line in text.split(b"\n"):
            if not line:
                continue
            words = line.split(None, 5)
            start, _, end = words[0].partition(b"-")
            found.append(Mapping(int(start, 16), int(end, 16), words[1], words[5] if len(words) > 5 else b""))
    except (ValueError, IndexError) as error:
        raise _malformed("/proc/PID/maps", text) from error
    return found


def _malformed(place: str, text: bytes) -> Unavailable:
    return Unavailable(
        place=place,
        problem=f"is not of the form that memsculpt knows: {text[:80]!r}",
        fix="report it with the kernel's release (uname -r)",
    )
