# SPDX-License-Identifier: Apache-2.0
"""All processes once per tick from the kernel's own list (bpf/tasks.py), processor time to the nanosecond.

The faster twin of processes.py, which reads /proc and is what remains where BPF is not to be had. Names (program, user,
cgroup paths) still come from /proc: of a process that is new, has called exec or was moved at once; of all others the
program every `detail_interval_s`, spread over the ticks by pid, and the rest, which a record would show, seldom.

A kernel may hide processes from BPF that /proc shows (measured: a sandbox hides its supervisor, process 1, and the
threads of it). What /proc lists and the kernel's list lacks is looked for as often, and read from /proc.
"""

import mmap
from collections.abc import Mapping
from typing import NamedTuple

from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.host.bpf.tasks import Records, TaskReader
from memsculpt.host.linux.processes import Detail, ProcessReader, Reading
from memsculpt.host.linux.procfs import KERNEL_THREAD, NS_PER_S, MemoryKinds, Stat

PAGE = mmap.PAGESIZE
# Of the detail interval: so seldom is read what the record tells of, too (user, cgroups: their paths may be renamed).
REST_RATIO = 6.0
# Where in a record stands what tells that the names may have changed: the start; cgroups and ids with the user; comm.
NAMING = (slice(0, 8), slice(80, 108), slice(112, 128))


class _Kept(NamedTuple):
    """What is kept of a process from tick to tick."""

    raw: bytes  # its record
    name: bytes  # of that what names it
    reading: Reading  # what it meant
    named_at_s: float  # when its program was looked at


class TaskProcesses:
    """Reads all processes at once; remembers names between ticks. The interface is ProcessReader's."""

    def __init__(self, tasks: TaskReader, ticks_per_s: int, names: ProcessReader) -> None:
        self._tasks, self._names = tasks, names
        self._ns_per_tick = NS_PER_S // ticks_per_s
        self._before: dict[int, _Kept] = {}  # by pid
        self._hidden: list[int] = []
        self._compared_at_s = float("-inf")
        self.vanished_count = self.unreadable_count = 0

    def read_all(self, now_s: float, members: Mapping[int, CgroupPath], detail_interval_s: float) -> list[Reading]:
        """Return every process that is no kernel thread, by pid. Raises OSError."""
        self.vanished_count = self._names.unreadable_count = 0
        records, threads = self._tasks.read()
        hidden = self._read_hidden(records, now_s, members, detail_interval_s)
        wanted = (records["flags"] & KERNEL_THREAD) == 0
        records, threads = records[wanted], threads[wanted]
        content, size = records.tobytes(), records.dtype.itemsize
        readings: list[Reading] = []
        seen: dict[int, _Kept] = {}
        for row, (pid, count) in enumerate(zip(records["pid"].tolist(), threads.tolist(), strict=True)):
            raw = content[row * size : (row + 1) * size]
            before = self._before.get(pid)
            if before is not None and now_s - before.named_at_s >= detail_interval_s * (0.75 + (pid % 8) / 16):
                before = self._named_again(before, now_s, detail_interval_s)
            if before is not None and before.raw == raw:
                kept = before
            else:
                name = b"".join(raw[part] for part in NAMING)
                is_named = before is not None and before.name == name
                reading = self._read(records, row, count, before.reading.detail if before and is_named else None, now_s)
                if reading is None:
                    continue
                kept = _Kept(raw, name, reading, before.named_at_s if before and is_named else now_s)
            seen[pid] = kept
            readings.append(kept.reading)
        self._before = seen
        self.unreadable_count = self._names.unreadable_count
        return sorted(readings + hidden, key=lambda one: one.instance.pid) if hidden else readings

    def close(self) -> None:
        """Unload the program and release every descriptor."""
        self._tasks.close()
        self._names.close()

    def _named_again(self, before: "_Kept", now_s: float, detail_interval_s: float) -> "_Kept | None":
        """Look whether a process still runs what it ran; None where its names are to be read anew."""
        detail = before.reading.detail
        if now_s - detail.read_at_s >= REST_RATIO * detail_interval_s:
            return None
        try:
            program = self._names.read_program(before.reading.instance.pid)
        except OSError:  # gone, most likely: reading it anew tells
            return None
        return before._replace(named_at_s=now_s) if program == detail.exe else None

    def _read_hidden(
        self, records: Records, now_s: float, members: Mapping[int, CgroupPath], detail_interval_s: float
    ) -> list[Reading]:
        listed: set[int] = set(records["pid"].tolist())
        if now_s - self._compared_at_s >= detail_interval_s:
            self._compared_at_s = now_s
            self._hidden = self._names.pids()  # after the list: a process in between is in the next one
        self._hidden = [pid for pid in self._hidden if pid not in listed]
        return self._names.read_some(self._hidden, now_s, members, detail_interval_s) if self._hidden else []

    def _read(self, records: Records, row: int, count: int, detail: Detail | None, now_s: float) -> Reading | None:
        one = records[row]
        pid = int(one["pid"])
        if detail is None:
            try:
                detail = self._names.read_names(pid, now_s)
            except (FileNotFoundError, ProcessLookupError):
                self.vanished_count += 1
                return None
            except PermissionError:
                self._names.unreadable_count += 1
                return None
        kinds = MemoryKinds(
            anon_bytes=int(one["anon_pages"]) * PAGE,
            file_bytes=int(one["file_pages"]) * PAGE,
            shmem_bytes=int(one["shmem_pages"]) * PAGE,
            swapped_bytes=int(one["swapped_pages"]) * PAGE,
        )
        stat = Stat(
            start_ticks=int(one["start_boottime_ns"]) // self._ns_per_tick,
            is_kernel_thread=False,
            minor_faults=int(one["minor_faults"]),
            major_faults=int(one["major_faults"]),
            cpu_s=int(one["cpu_ns"]) / NS_PER_S,
            resident_pages=(kinds.anon_bytes + kinds.file_bytes + kinds.shmem_bytes) // PAGE,
            thread_count=count,
        )
        return Reading(
            instance=Instance(pid=pid, start_ticks=stat.start_ticks),
            stat=stat,
            cpu_s=stat.cpu_s,
            detail=Detail(
                read_at_s=detail.read_at_s,
                kinds=kinds,
                io=(int(one["read_bytes"]), int(one["written_bytes"])),
                exe=detail.exe,
                user=detail.user,
                memory_cgroup=detail.memory_cgroup,
                unified_cgroup=detail.unified_cgroup,
            ),
        )
