# SPDX-License-Identifier: Apache-2.0
"""The memory controller of cgroup v1. Source: Documentation/admin-guide/cgroup-v1/memory.rst."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Refused, Unavailable
from memsculpt.host.linux import errnos, files
from memsculpt.host.linux.controller import MemoryStat, decode, encode
from memsculpt.host.protocol import LimitValue

LIMIT_FILES = {
    LimitKind.GUARANTEE: b"memory.soft_limit_in_bytes",
    LimitKind.LIMIT: b"memory.limit_in_bytes",
    LimitKind.HARD: b"memory.limit_in_bytes",
}
OWNER_MARK = b"trusted.memsculpt"  # an attribute of the directory: it outlives the agent, and ends with the cgroup

_ENDLESS_BYTES = 1 << 60  # v1 writes "no limit" as LONG_MAX rounded down to a page; no machine has so much
_MOVE_ANON_AND_FILE = b"3"


class Cgroup1:
    """One mounted v1 memory hierarchy."""

    version = 1

    def __init__(self, root: bytes = b"/sys/fs/cgroup/memory") -> None:
        self.root = root
        self._made: set[CgroupPath] = set()  # in this life, where the file system takes no attributes

    def folder(self, cgroup: CgroupPath) -> bytes:
        path = encode(cgroup)
        if path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path:
            raise Refused(
                place=_place(cgroup),
                problem="is no path below the memory controller's root",
                fix="write it as /proc/PID/cgroup does, without the leading slash",
            )
        return self.root + b"/" + path if path else self.root

    def stat(self, cgroup: CgroupPath) -> MemoryStat:
        folder = self.folder(cgroup)
        with errnos.at(_place(cgroup)):
            used = files.read(folder + b"/memory.usage_in_bytes")
            stat = files.read(folder + b"/memory.stat")
            oom = files.read(folder + b"/memory.oom_control")
            hits = files.read(folder + b"/memory.failcnt")
        return parse_stat(
            place=_place(cgroup), used=used, stat=files.fields(stat), oom=files.fields(oom), hits=hits
        )

    def read_limit(self, cgroup: CgroupPath, kind: LimitKind) -> LimitValue:
        with errnos.at(_place(cgroup)):
            text = files.read(self.folder(cgroup) + b"/" + LIMIT_FILES[kind])
        return parse_limit(text, _place(cgroup))

    def write_limit(self, cgroup: CgroupPath, kind: LimitKind, size_bytes: int) -> LimitValue:
        return self.restore_limit(cgroup, kind, "-1" if size_bytes >= UNLIMITED_BYTES else str(size_bytes))

    def restore_limit(self, cgroup: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """Put `text` back; Refused for what the kernel answers with EINVAL (no number, the root, above memsw)."""
        try:
            files.write(self.folder(cgroup) + b"/" + LIMIT_FILES[kind], os.fsencode(text))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise Refused(
                    place=_place(cgroup),
                    problem=f"the kernel refuses {text!r} as {kind.value} (EINVAL)",
                    fix="write whole bytes, not above memory.memsw.limit_in_bytes, and not for the root",
                ) from error
            raise errnos.translate(error, _place(cgroup)) from error
        return self.read_limit(cgroup, kind)

    def reclaim(self, cgroup: CgroupPath, size_bytes: int) -> int:
        """Step the limit below use for a moment; the kernel reclaims before the write returns.

        v1 has no memory.reclaim. The old text goes back even when the step is refused half way (EBUSY).
        """
        folder, place = self.folder(cgroup), _place(cgroup)
        file = folder + b"/memory.limit_in_bytes"
        with errnos.at(place):
            before_text = files.read(file).strip()
            before_bytes = _number(files.read(folder + b"/memory.usage_in_bytes"), place)
            try:
                files.write(file, b"%d" % max(0, min(before_bytes - size_bytes, int(before_text))))
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.EINTR}:  # these two: part of it left, which is measured
                    raise
            finally:
                files.write(file, before_text)
            after_bytes = _number(files.read(folder + b"/memory.usage_in_bytes"), place)
        return max(0, before_bytes - after_bytes)

    def create(self, cgroup: CgroupPath) -> None:
        """Make the cgroup and what is missing above it, each marked as ours; whatever exists stays as it is."""
        if "memsculpt" not in cgroup:
            raise Refused(place=_place(cgroup), problem="its name does not carry memsculpt", fix="name it so")
        parts = cgroup.split("/")
        with errnos.at(_place(cgroup)):
            for depth in range(1, len(parts) + 1):
                self._make(CgroupPath("/".join(parts[:depth])))

    def _make(self, cgroup: CgroupPath) -> None:
        folder = self.folder(cgroup)
        try:
            os.mkdir(folder)
        except FileExistsError:
            return
        try:
            os.setxattr(folder, OWNER_MARK, b"1")
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EPERM}:  # no attributes here: remembered in this life only
                raise
            self._made.add(cgroup)

    def remove(self, cgroup: CgroupPath) -> None:
        folder = self.folder(cgroup)
        with errnos.at(_place(cgroup)):
            os.stat(folder)
            if not self.is_own(cgroup):
                raise Refused(place=_place(cgroup), problem="was not made by memsculpt", fix="leave it alone")
            os.rmdir(folder)
        self._made.discard(cgroup)

    def is_own(self, cgroup: CgroupPath) -> bool:
        with suppress(OSError):  # ENODATA: no mark; EOPNOTSUPP: no marks here; ENOENT: nothing here. All: not ours
            return os.getxattr(self.folder(cgroup), OWNER_MARK) == b"1"
        return cgroup in self._made and os.path.isdir(self.folder(cgroup))

    def pids(self, cgroup: CgroupPath) -> Sequence[int]:
        with errnos.at(_place(cgroup)):
            text = files.read(self.folder(cgroup) + b"/cgroup.procs")
        return [int(word) for word in text.split() if word.isdigit()]

    def move(self, pid: int, cgroup: CgroupPath) -> bool:
        """Move a process, with its charges where the kernel still can.

        memory.move_charge_at_immigrate answers EINVAL since Linux 6.13 (and is absent without an MMU).
        """
        folder = self.folder(cgroup)
        flag = folder + b"/memory.move_charge_at_immigrate"
        before = _try_flag(flag)
        try:
            with errnos.at(f"process {pid} to {_place(cgroup)}"):
                files.write(folder + b"/cgroup.procs", b"%d" % pid)
        finally:
            if before is not None:
                with errnos.at(_place(cgroup)):
                    files.write(flag, before)
        return before is not None

    def cgroup_in(self, lines: bytes) -> CgroupPath:
        for line in lines.split(b"\n"):
            _, _, rest = line.partition(b":")
            controllers, colon, path = rest.partition(b":")
            if colon and b"memory" in controllers.split(b","):
                return decode(path)
        return CgroupPath("")


def parse_limit(text: bytes, place: str) -> LimitValue:
    """Return a limit file's content: the text without its newline, and its bytes."""
    size_bytes = _number(text, place)
    return LimitValue(
        text=os.fsdecode(text.rstrip(b"\n")),
        size_bytes=UNLIMITED_BYTES if size_bytes >= _ENDLESS_BYTES else size_bytes,
    )


def parse_stat(*, place: str, used: bytes, stat: dict[bytes, int], oom: dict[bytes, int], hits: bytes) -> MemoryStat:
    """Return what the four files of one cgroup say; hierarchical (`total_`) values, counters default to 0."""
    try:
        rss, cache = stat[b"total_rss"], stat[b"total_cache"]
    except KeyError as error:
        raise Unavailable(
            place=f"{place}, memory.stat",
            problem=f"has no {os.fsdecode(error.args[0])}",
            fix="memory.use_hierarchy must be 1 (it always is since Linux 5.11)",
        ) from error
    used_bytes = _number(used, place)
    shmem_bytes = min(cache, stat.get(b"total_shmem", 0))
    file_bytes = cache - shmem_bytes
    busy_bytes = sum(stat.get(name, 0) for name in (b"total_mapped_file", b"total_dirty", b"total_writeback"))
    return MemoryStat(
        used_bytes=used_bytes,
        anon_bytes=rss,
        file_bytes=file_bytes,
        shmem_bytes=shmem_bytes,
        swapped_bytes=stat.get(b"total_swap", 0),
        reclaimable_bytes=max(0, file_bytes - busy_bytes),
        unevictable_bytes=stat.get(b"total_unevictable", 0),
        kernel_bytes=max(0, used_bytes - rss - cache),
        minor_faults_count=stat.get(b"total_pgfault", 0),
        major_faults_count=stat.get(b"total_pgmajfault", 0),
        refaults_count=stat.get(b"total_workingset_refault_anon", 0),
        has_refaults=b"total_workingset_refault_anon" in stat,
        oom_kills_count=oom.get(b"oom_kill", 0),
        limit_hits_count=_number(hits, place),
    )


def _number(text: bytes, place: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Unavailable(
            place=place, problem=f"{text[:40]!r} is no number", fix="report it with the kernel's release"
        ) from error


def _try_flag(flag: bytes) -> bytes | None:
    """Ask for charges to move along; return the flag's former text, or None where the kernel does not."""
    try:
        before = files.read(flag).strip()
        files.write(flag, _MOVE_ANON_AND_FILE)
    except OSError:  # EINVAL, ENOENT, EACCES: it does not, and the answer of `move` says so
        return None
    return before


def _place(cgroup: CgroupPath) -> str:
    return f"cgroup {cgroup!r}"


FILES = {kind: name.decode() for kind, name in LIMIT_FILES.items()}


def value(text: str) -> LimitValue:
    return parse_limit(text.encode(), "")
