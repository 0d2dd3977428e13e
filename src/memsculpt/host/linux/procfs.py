# SPDX-License-Identifier: Apache-2.0
"""/proc/PID: stat, status, io, cgroup, schedstat, exe. Parsers are pure and take bytes; names may hold anything.

A comm may contain spaces, parentheses and newlines, so the fields of `stat` are counted from the *last*
parenthesis (proc_pid_stat(5)). Cgroup and exe names are bytes; they are carried as surrogates (os.fsdecode)
and go back to the kernel unchanged.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h
KIB = 1024
NS_PER_S = 1_000_000_000


class Stat(NamedTuple):
    """What /proc/PID/stat tells; times in seconds. A tuple, because hundreds are made in every tick."""

    start_ticks: int
    is_kernel_thread: bool
    minor_faults: int
    major_faults: int
    cpu_s: float
    resident_pages: int
    thread_count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKinds:
    """Resident memory by kind, and what is swapped, from /proc/PID/status."""

    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swapped_bytes: int


def parse_stat(content: bytes, ticks_per_s: int) -> Stat | None:
    """Return the fields, or None for what is no line of `stat` (a torn or empty read)."""
    fields = content[content.rfind(b")") + 1 :].split()
    if len(fields) < 22:
        return None
    try:
        # fields[0] is field 3 of proc_pid_stat(5)
        return Stat(
            start_ticks=int(fields[19]),
            is_kernel_thread=bool(int(fields[6]) & KERNEL_THREAD),
            minor_faults=int(fields[7]),
            major_faults=int(fields[9]),
            cpu_s=(int(fields[11]) + int(fields[12])) / ticks_per_s,
            resident_pages=int(fields[21]),
            thread_count=int(fields[17]),
        )
    except ValueError:
        return None


def parse_status(content: bytes) -> MemoryKinds | None:
    """Return the memory kinds; None for a process without memory of its own (zombie, kernel thread)."""
    found: dict[bytes, int] = {}
    for line in content.splitlines():
        if line.startswith((b"RssAnon:", b"RssFile:", b"RssShmem:", b"VmSwap:")):
            name, _, rest = line.partition(b":")
            words = rest.split()
            if len(words) == 2 and words[0].isdigit():
                found[name] = int(words[0]) * KIB
    if b"RssAnon" not in found:
        return None
    return MemoryKinds(
        anon_bytes=found[b"RssAnon"],
        file_bytes=found.get(b"RssFile", 0),
        shmem_bytes=found.get(b"RssShmem", 0),
        swapped_bytes=found.get(b"VmSwap", 0),
    )


def parse_locked_bytes(content: bytes) -> int:
    """Return VmLck of /proc/PID/status: how much may not leave; 0 for a process without memory."""
    for line in content.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == b"VmLck:" and words[1].isdigit():
            return int(words[1]) * KIB
    return 0


def parse_io(content: bytes) -> tuple[int, int] | None:
    """Return the bytes read from and written to storage (not the cache), or None."""
    found: dict[bytes, int] = {}
    for line in content.splitlines():
        name, _, value = line.partition(b":")
        if value.strip().isdigit():
            found[name] = int(value)
    if b"read_bytes" not in found or b"write_bytes" not in found:
        return None
    return found[b"read_bytes"], found[b"write_bytes"]


def parse_schedstat(content: bytes) -> float | None:
    """Return the processor time in seconds, exact to the nanosecond, or None."""
    words = content.split(None, 1)
    return int(words[0]) / NS_PER_S if words and words[0].isdigit() else None


def parse_cgroup(content: bytes) -> tuple[str | None, str | None]:
    """Return the process's path in the v1 memory hierarchy and in the unified one, without leading slash."""
    memory: str | None = None
    unified: str | None = None
    # A name may hold a newline: what does not look like the start of an entry belongs to the one before.
    entries: list[bytes] = []
    for line in content.removesuffix(b"\n").split(b"\n"):
        head = line.split(b":", 2)
        if len(head) == 3 and head[0].isdigit() and head[2].startswith(b"/"):
            entries.append(line)
        elif entries:
            entries[-1] += b"\n" + line
    for entry in entries:
        _, controllers, path = entry.split(b":", 2)
        name = os.fsdecode(path.removesuffix(b" (deleted)")).lstrip("/")
        if controllers == b"":
            unified = name
        elif b"memory" in controllers.split(b","):
            memory = name
    return memory, unified


def read_file(path: str, size: int = 1 << 16, *, dir_fd: int | None = None) -> bytes:
    """Return a file of /proc or a cgroup whole; `dir_fd` is the folder of a relative path. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        content = os.read(descriptor, size)
        if len(content) < size and not content.endswith(b"\n"):
            return content
        parts = [content]
        while parts[-1]:
            parts.append(os.read(descriptor, size))
        return b"".join(parts)
    finally:
        os.close(descriptor)
