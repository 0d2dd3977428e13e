# SPDX-License-Identifier: Apache-2.0
"""All processes at one moment, cheaply: what changes fast is read each time, the rest now and then.

Each look costs one pread per process on a descriptor that stays open (`stat`); members of partitions are read in
full each time, others every `detail_interval_s`, staggered. A descriptor of a process that is gone answers ESRCH,
also when its pid has been given away again.
"""

import os
import resource
from collections.abc import Mapping, Set
from dataclasses import dataclass

from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Vanished
from memsculpt.host.linux import files, procfs
from memsculpt.host.linux.controller import Controller

OPEN_MAX_COUNT = 1024  # descriptors kept; further processes are opened and closed at each look
THREAD_MAX_COUNT = 64  # above it, a member's processor time is read in clock ticks

_STAT_BYTES = 4096
_PHASES = 16  # into how many groups the first detailed readings of others are spread
_NS = 1e-9


@dataclass(slots=True)
class Detail:
    """What is known of one process from its slower files, and when they are due again."""

    due_s: float
    memory: procfs.Memory | None  # None: denied
    io: tuple[int, int] | None  # read, written bytes; None: denied
    exe: str  # "" when denied or a process without a file
    cgroup: CgroupPath
    unified: bytes  # its path in the unified hierarchy
    denied_count: int


@dataclass(slots=True)
class Process:
    """One process at this look."""

    pid: int
    stat: procfs.Stat
    cpu_s: float
    detail: Detail


@dataclass(frozen=True, slots=True)
class Look:
    """All of them, ordered by pid; kernel threads are left out."""

    processes: tuple[Process, ...]
    vanished_count: int
    unreadable_count: int


@dataclass(slots=True)
class _Runtime:
    """A member's processor time, exact to the nanosecond while its threads live."""

    by_thread_ns: dict[bytes, int]
    total_s: float


class ProcessTable:
    """The processes of /proc, with what is kept between two looks."""

    def __init__(self, controller: Controller, *, detail_interval_s: float, proc: bytes = b"/proc") -> None:
        self._controller = controller
        self._interval_s = detail_interval_s
        self._proc = proc
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._open_max = OPEN_MAX_COUNT if soft_limit < 0 else min(OPEN_MAX_COUNT, soft_limit // 2)
        self._fds: dict[int, int] = {}  # by pid
        self._details: dict[tuple[int, int], Detail] = {}
        self._runtimes: dict[tuple[int, int], _Runtime] = {}
        self._kernel_threads: dict[int, float] = {}  # pid -> when it is looked at again

    def look(self, now_s: float, members: Set[int]) -> Look:
        """Read all processes; `members` are those of partitions. Who goes away meanwhile is counted and dropped."""
        found: list[Process] = []
        vanished_count = unreadable_count = 0
        pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        for pid in sorted(pids):
            if self._kernel_threads.get(pid, 0.0) > now_s and pid not in members:
                continue
            try:
                process = self._process(pid, now_s, is_member=pid in members)
            except (FileNotFoundError, ProcessLookupError, Vanished):
                vanished_count += 1
                continue
            except PermissionError:  # hidepid: not even its stat; nothing is known of it
                unreadable_count += 1
                continue
            if process is not None:
                unreadable_count += process.detail.denied_count
                found.append(process)
        self._forget(set(pids), {(process.pid, process.stat.start_ticks) for process in found})
        return Look(tuple(found), vanished_count, unreadable_count)

    def close(self) -> None:
        """Close what is kept open."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _process(self, pid: int, now_s: float, *, is_member: bool) -> Process | None:
        stat = procfs.parse_stat(self._stat(pid))
        if stat.flags & procfs.PF_KTHREAD:
            self._kernel_threads[pid] = now_s + self._interval_s
            return None
        key = (pid, stat.start_ticks)
        detail = self._details.get(key)
        if detail is None or is_member or detail.due_s <= now_s:
            detail = self._detail(pid, now_s, detail)
            self._details[key] = detail
        ticks_s = stat.cpu_ticks * self._tick_s
        runtime = self._runtimes.get(key)
        if is_member:
            cpu_s = self._exact_cpu_s(key, stat.thread_count, ticks_s)
        else:  # once a member, always at least what was said then
            cpu_s = ticks_s if runtime is None else max(ticks_s, runtime.total_s)
        return Process(pid, stat, cpu_s, detail)

    def _stat(self, pid: int) -> bytes:
        fd = self._fds.get(pid)
        if fd is not None:
            try:
                return os.pread(fd, _STAT_BYTES, 0)
            except ProcessLookupError:  # that one is gone; the pid may already be somebody else's
                os.close(self._fds.pop(pid))
        fd = os.open(b"%s/%d/stat" % (self._proc, pid), os.O_RDONLY | os.O_CLOEXEC)
        if len(self._fds) < self._open_max:
            self._fds[pid] = fd
            return os.pread(fd, _STAT_BYTES, 0)
        try:
            return os.pread(fd, _STAT_BYTES, 0)
        finally:
            os.close(fd)

    def _detail(self, pid: int, now_s: float, before: Detail | None) -> Detail:
        folder = b"%s/%d/" % (self._proc, pid)
        denied_count = 0
        memory = io = None
        exe = ""
        try:
            memory = procfs.parse_status(files.read(folder + b"status"))
        except PermissionError:
            denied_count += 1
        try:
            io = procfs.parse_io(files.read(folder + b"io"))
        except PermissionError:
            denied_count += 1
        if before is not None and before.due_s > now_s:  # a member between two readings of what rarely changes
            return Detail(before.due_s, memory, io, before.exe, before.cgroup, before.unified, denied_count)
        try:
            exe = os.fsdecode(os.readlink(folder + b"exe"))
        except PermissionError:
            denied_count += 1
        except FileNotFoundError:
            os.stat(folder)  # alive: a zombie, or a kernel's helper without a file
        cgroups = files.read(folder + b"cgroup")
        phase = 1.0 if before is not None else (pid % _PHASES + 1) / _PHASES
        return Detail(
            now_s + self._interval_s * phase,
            memory,
            io,
            exe,
            self._controller.cgroup_in(cgroups),
            procfs.parse_unified(cgroups),
            denied_count,
        )

    def _exact_cpu_s(self, key: tuple[int, int], thread_count: int, ticks_s: float) -> float:
        """Return processor time that moves whenever the process ran at all; never falls.

        A thread's own count ends with it, so what each thread ran since the last look is added up; a thread that
        came and went in between shows in the process's clock ticks.
        """
        pid = key[0]
        runtime = self._runtimes.setdefault(key, _Runtime({}, 0.0))
        now_ns: dict[bytes, int] = {}
        if thread_count <= THREAD_MAX_COUNT:
            folder = b"%s/%d/task" % (self._proc, pid)
            threads = [b"%d" % pid] if thread_count == 1 else os.listdir(folder)
            for thread in threads:
                try:
                    now_ns[thread] = procfs.parse_schedstat(files.read(b"%s/%s/schedstat" % (folder, thread)))
                except (FileNotFoundError, ProcessLookupError):
                    continue  # this thread ended, or the kernel has no schedstat: clock ticks remain
        before = runtime.by_thread_ns
        ran_ns = sum(max(0, ns - before.get(thread, 0)) for thread, ns in now_ns.items())
        runtime.total_s = max(runtime.total_s + ran_ns * _NS, ticks_s)
        runtime.by_thread_ns = now_ns
        return runtime.total_s

    def _forget(self, pids: set[int], alive: set[tuple[int, int]]) -> None:
        for pid in self._fds.keys() - pids:
            os.close(self._fds.pop(pid))
        for kept in (self._details, self._runtimes):
            for key in kept.keys() - alive:
                del kept[key]
        for pid in self._kernel_threads.keys() - pids:
            del self._kernel_threads[pid]


def usernames(passwd: bytes) -> Mapping[int, str]:
    """Return names by uid from the text of /etc/passwd; broken lines are skipped."""
    names: dict[int, str] = {}
    for line in passwd.split(b"\n"):
        words = line.split(b":")
        if len(words) > 2 and words[2].isdigit():
            names.setdefault(int(words[2]), os.fsdecode(words[0]))
    return names
