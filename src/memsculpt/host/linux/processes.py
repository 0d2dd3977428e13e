# SPDX-License-Identifier: Apache-2.0
"""Read all processes once per tick, cheaply: every one a little, those in partitions in full.

`stat` is read of each process in every tick, over descriptors that are kept open (a read costs half of what
opening costs; a dead process answers ESRCH, so a kept one cannot show another). What is dearer (`status`,
`io`, names) is read of partition members in every tick in which they have run or their `stat` has changed, of
all every `detail_interval_s`, spread over the ticks by pid.
"""

import os
import resource
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.host.linux import procfs
from memsculpt.host.linux.procfs import MemoryKinds, Stat

KEPT_OPEN_MOST = 1024
CGROUPS_KEPT_MOST = 1024
THREADS_MOST = 64  # above it, a member's processor time is known to 10 ms only


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What is read less often; `io` None: denied or not known."""

    read_at_s: float
    kinds: MemoryKinds | None
    io: tuple[int, int] | None
    exe: str  # "" when it could not be read
    user: int
    memory_cgroup: str
    unified_cgroup: str


class Reading(NamedTuple):
    """One process in one tick."""

    instance: Instance
    stat: Stat
    cpu_s: float
    detail: Detail


@dataclass(slots=True)
class _Run:
    """How long a member's threads have run."""

    by_thread_s: dict[str, float] = field(default_factory=dict[str, float])
    total_s: float = 0.0


class _KeptFiles:
    """Files of /proc/PID that are read again and again."""

    def __init__(self, proc: str, name: str, most: int) -> None:
        self._proc, self._name, self._most = proc, name, most
        self._open: dict[int, int] = {}

    def read(self, pid: int) -> bytes:
        """Read the file from its start. Raises OSError, ProcessLookupError for a process that has ended."""
        descriptor = self._open.get(pid)
        if descriptor is not None:
            try:
                return os.pread(descriptor, 1024, 0)
            except ProcessLookupError:  # that process is gone; the pid may be another's by now
                os.close(self._open.pop(pid))
        descriptor = os.open(f"{self._proc}/{pid}/{self._name.format(pid=pid)}", os.O_RDONLY | os.O_CLOEXEC)
        if len(self._open) < self._most:
            self._open[pid] = descriptor
            return os.pread(descriptor, 1024, 0)
        try:
            return os.pread(descriptor, 1024, 0)
        finally:
            os.close(descriptor)

    def keep_only(self, pids: Container[int]) -> None:
        """Release the descriptors of all others."""
        for pid in [pid for pid in self._open if pid not in pids]:
            os.close(self._open.pop(pid))


class ProcessReader:
    """Reads /proc; remembers descriptors and details between ticks."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        # Half of what this process may open: the agent's own files and sockets need the rest.
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = KEPT_OPEN_MOST if soft_limit < 0 else min(KEPT_OPEN_MOST, soft_limit // 2)
        self._stats = _KeptFiles(proc, "stat", most // 2)
        self._schedstats = _KeptFiles(proc, "task/{pid}/schedstat", most // 2)
        self._details: dict[Instance, Detail] = {}
        self._raw: dict[int, tuple[bytes, Reading]] = {}
        self._runs: dict[Instance, _Run] = {}
        self._kernel_threads: dict[int, float] = {}  # pid -> when it is looked at again; a pid may be reused
        self._members: set[int] = set()
        self._cgroups: dict[bytes, tuple[str | None, str | None]] = {}  # by what a process's file says
        self.vanished_count = 0
        self.unreadable_count = 0

    def read_all(self, now_s: float, members: Mapping[int, CgroupPath], detail_interval_s: float) -> list[Reading]:
        """Return every process that is no kernel thread, by pid.

        `members` are the pids in partition cgroups, each with the cgroup it lives in: read in full.
        """
        return self.read_some(self.pids(), now_s, members, detail_interval_s)

    def pids(self) -> list[int]:
        """Return all processes and kernel threads that /proc lists, ascending."""
        return sorted(int(name) for name in os.listdir(self._proc) if name.isdigit())

    def read_some(
        self, pids: list[int], now_s: float, members: Mapping[int, CgroupPath], detail_interval_s: float
    ) -> list[Reading]:
        """Return those of `pids` that are no kernel threads, and forget all others."""
        self.vanished_count = self.unreadable_count = 0
        readings: list[Reading] = []
        for pid in pids:
            if self._kernel_threads.get(pid, now_s) > now_s and pid not in members:
                continue
            try:
                reading = self._read(pid, now_s, members, detail_interval_s)
            except (FileNotFoundError, ProcessLookupError):
                self.vanished_count += 1
                continue
            except PermissionError:
                self.unreadable_count += 1
                continue
            if reading is not None:
                readings.append(reading)
        self._forget(set(pids), {reading.instance for reading in readings})
        self._members = set(members)
        return readings

    def close(self) -> None:
        """Release every descriptor."""
        self._stats.keep_only(())
        self._schedstats.keep_only(())

    def _read(
        self, pid: int, now_s: float, members: Mapping[int, CgroupPath], detail_interval_s: float
    ) -> Reading | None:
        content = self._stats.read(pid)
        is_due_s = detail_interval_s * (0.75 + (pid % 8) / 16)
        before = self._raw.get(pid)
        # Most processes sleep: their line is the same byte for byte, and so is what it meant.
        if before is not None and before[0] == content and self._sleeps(before[1], members, now_s - is_due_s):
            return before[1]
        stat = procfs.parse_stat(content, self._ticks_per_s)
        if stat is None:
            return None
        if stat.is_kernel_thread:
            self._kernel_threads[pid] = now_s + detail_interval_s
            return None
        instance = Instance(pid=pid, start_ticks=stat.start_ticks)
        is_member = pid in members
        detail = self._details.get(instance)
        if detail is None:
            detail = self.read_detail(pid, now_s)
        elif is_member:
            # What a member is does not change in a second; what it holds does.
            detail = replace(
                detail, read_at_s=now_s, kinds=self._kinds(pid), io=self._io(pid), memory_cgroup=members[pid]
            )
        elif pid in self._members or now_s - detail.read_at_s >= is_due_s:
            # Whoever has just left a partition is placed anew at once.
            detail = self.read_detail(pid, now_s)
        self._details[instance] = detail
        cpu_s = stat.cpu_s
        if is_member:  # 10 ms of `stat` are too coarse to tell whether somebody has run at all
            cpu_s = self._exact_cpu_s(instance, stat)
        elif instance in self._runs:  # was one: what was said then does not fall
            cpu_s = max(cpu_s, self._runs[instance].total_s)
        reading = Reading(instance=instance, stat=stat, cpu_s=cpu_s, detail=detail)
        self._raw[pid] = (content, reading)
        return reading

    def _sleeps(self, before: Reading, members: Mapping[int, CgroupPath], read_since_s: float) -> bool:
        """Tell whether a process whose `stat` is as it was is so in all, too.

        Pages that leave or come back change its resident size in `stat`. A member that ran for less than the
        10 ms of `stat` shows in `schedstat`.
        """
        pid = before.instance.pid
        if before.detail.read_at_s <= read_since_s:
            return False
        if pid not in members:
            return pid not in self._members  # who has just left a partition is placed anew
        if before.stat.thread_count != 1 or members[pid] != before.detail.memory_cgroup:
            return False
        run = self._runs.get(before.instance)
        if run is None or not run.by_thread_s:  # a kernel without schedstat, or not for this user
            return False
        return run.by_thread_s == {str(pid): procfs.parse_schedstat(self._schedstats.read(pid))}

    def _exact_cpu_s(self, instance: Instance, stat: Stat) -> float:
        """Return processor time that moves whenever any thread has run; it never falls.

        schedstat is each thread's own, and ends with it: what each ran since the last look is added up. A thread
        that came and went in between shows in `stat`, to 10 ms.
        """
        run = self._runs.setdefault(instance, _Run())
        now_s: dict[str, float] = {}
        if stat.thread_count <= THREADS_MOST:
            folder = f"{self._proc}/{instance.pid}/task"
            threads = [str(instance.pid)] if stat.thread_count == 1 else os.listdir(folder)
            for thread in threads:
                try:
                    ran_s = procfs.parse_schedstat(self._some(f"{folder}/{thread}/schedstat"))
                except ProcessLookupError:  # this thread has ended
                    continue
                if ran_s is not None:
                    now_s[thread] = ran_s
        since_s = sum(max(0.0, ran_s - run.by_thread_s.get(thread, 0.0)) for thread, ran_s in now_s.items())
        run.total_s = max(run.total_s + since_s, stat.cpu_s)
        run.by_thread_s = now_s
        return run.total_s

    def read_detail(self, pid: int, now_s: float) -> Detail:
        """Read all that is dearer than `stat`. Raises OSError (of two kinds when it is gone)."""
        return replace(self.read_names(pid, now_s), kinds=self._kinds(pid), io=self._io(pid))

    def read_names(self, pid: int, now_s: float) -> Detail:
        """Read what a process is called and where it lives, without what it holds. Raises OSError as `read_detail`."""
        content = self._some(f"{self._proc}/{pid}/cgroup")
        if content not in self._cgroups:
            if len(self._cgroups) >= CGROUPS_KEPT_MOST:
                self._cgroups.clear()
            self._cgroups[content] = procfs.parse_cgroup(content)
        memory, unified = self._cgroups[content]
        return Detail(
            read_at_s=now_s,
            kinds=None,
            io=None,
            exe=self.read_program(pid),
            user=os.stat(f"{self._proc}/{pid}").st_uid,
            memory_cgroup=memory if memory is not None else unified or "",
            unified_cgroup=unified or "",
        )

    def _kinds(self, pid: int) -> MemoryKinds | None:
        return procfs.parse_status(procfs.read_file(f"{self._proc}/{pid}/status"))

    def _io(self, pid: int) -> tuple[int, int] | None:
        return procfs.parse_io(self._some(f"{self._proc}/{pid}/io"))

    def _some(self, path: str) -> bytes:
        """Return a file's content, empty where this user may not read it or the kernel has none."""
        try:
            return procfs.read_file(path)
        except PermissionError:
            self.unreadable_count += 1
            return b""
        except FileNotFoundError:
            return b""

    def read_program(self, pid: int) -> str:
        """Return what a process runs, "" where this user may not know. Raises OSError when it is gone."""
        try:
            return os.readlink(f"{self._proc}/{pid}/exe").removesuffix(" (deleted)")
        except PermissionError:
            self.unreadable_count += 1
            return ""

    def _forget(self, pids: set[int], instances: set[Instance]) -> None:
        self._stats.keep_only(pids)
        self._schedstats.keep_only(pids)
        if len(self._details) > 2 * len(instances) + 64:
            self._details = {one: detail for one, detail in self._details.items() if one in instances}
        self._raw = {pid: kept for pid, kept in self._raw.items() if pid in pids}
        self._runs = {one: run for one, run in self._runs.items() if one in instances}
        self._kernel_threads = {pid: due_s for pid, due_s in self._kernel_threads.items() if pid in pids}
