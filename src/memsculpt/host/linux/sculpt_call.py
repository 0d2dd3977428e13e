# SPDX-License-Identifier: Apache-2.0
"""One call of the sculptor under way: what of its ranges may be moved, where its pages are, what was left and why.

Private, writable, anonymous memory may be moved, and the guest RAM of virtual machines, which may be shared memory.
Of private memory the page tables tell where a page is; of shared memory its file does (shared_memory.py).
"""

import errno
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np

from memsculpt.domain import pages
from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.workload import Instance
from memsculpt.host.linux import madvise, pagemap, procfs, runs, shared_memory
from memsculpt.host.linux.opened import OpenedProcess
from memsculpt.host.linux.pagemap import EXCLUSIVE, PRESENT, SWAPPED
from memsculpt.host.linux.shared_memory import SharedMemory
from memsculpt.host.protocol import Ranges, Sculpted

PROC = "/proc"
TRIES = 3  # of what the kernel could not do just now
AGAIN = frozenset({errno.EAGAIN, errno.EINTR, errno.EBUSY})
# The causes of the kernel's refusals of one range; every other error ends the whole call.
CAUSES = {
    errno.EAGAIN: "busy: pinned, or being moved by the kernel",
    errno.EBUSY: "busy: pinned, or being moved by the kernel",
    errno.EINTR: "interrupted",
    errno.ENOMEM: "no contiguous memory is free, or it was unmapped, or its cgroup is at the limit",
    errno.EINVAL: "huge pages are switched off for it, or a forked process shares it",
    errno.EFAULT: "unmapped meanwhile",
}
# Devices are mapped by their files, and by sysfs where they lie on a bus; some of /dev is plain memory.
DEVICES, NO_DEVICES = ("/dev/", "/sys/"), ("/dev/zero", "/dev/shm/", "/dev/hugepages/")  # noqa: S108  nothing is made
OFF_BORDER = "shared memory off the borders of 2 MiB of its file: no huge page fits"


class Call:
    """One call under way: the process held open, what of the ranges may be moved, and why the rest may not.

    `guest` is where the process has a guest's RAM: shared memory may be moved there, and nowhere else.
    """

    def __init__(self, process: Instance, ranges: Ranges, guest: Ranges = ()) -> None:
        self.place = f"process {process.pid}"
        self.wanted = np.array(ranges, np.int64).reshape(-1, 2)
        self.shared = runs.NONE  # what of `allowed` is shared memory
        self._process, self._guest = process, guest
        self._files: list[SharedMemory] = []
        self._problems: Counter[str] = Counter()
        self._longest_call_s = 0.0

    def __enter__(self) -> Self:
        self._begin_s, self._begin_cpu_s = time.monotonic(), time.thread_time()
        self.opened = OpenedProcess(self._process, PROC)
        try:
            with self._translated():
                self._open_guest()
                self.allowed, problems, self.borders = permitted(self.opened, self.wanted, self._files)
        except BaseException:
            self._close()
            raise
        self._problems.update(problems)
        if self._files:
            areas = [(one.mapping.start, one.mapping.end) for one in self._files]
            self.shared = runs.intersection(self.allowed, _as_runs(areas))
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        try:
            if isinstance(problem, OSError):
                raise self.opened.translated(problem) from problem
        finally:
            self._close()

    def listed(self, some: Int64) -> list[tuple[int, int]]:
        """Return runs as the page map's readers take them."""
        return [(start, end) for start, end in some.tolist()]

    def read(self, some: Int64, flags: int) -> Int64:
        """Return where in `some` pages are PRESENT, SWAPPED or MOVABLE (pagemap.py). Raises OSError.

        Of shared memory what is in memory counts as present, mapped or not; as movable, unless others map it as well.
        """
        if not self._files:
            return self._tables(some, flags)
        found = [self._tables(runs.difference(some, self._areas()), flags)]
        for file in self._files:
            inside = runs.intersection(some, _as_runs([(file.mapping.start, file.mapping.end)]))
            mapped = self._tables(inside, PRESENT)
            resident, swapped = file.unmapped(inside, mapped)
            if flags & SWAPPED:
                found.append(swapped)
            else:
                ours = self._tables(inside, flags) if flags & EXCLUSIVE else mapped
                found.append(runs.union(ours, resident))
        whole = np.concatenate(found)
        return runs.joined([whole[np.argsort(whole[:, 0], kind="stable")]])

    def on_borders(self, regions: Int64) -> Int64:
        """Return the regions of 2 MiB that may become huge pages; the others are noted. Raises OSError."""
        is_off = np.zeros(len(regions), np.bool_)
        for file in self._files:
            if (file.mapping.start - file.mapping.offset) % REGION_BYTES:
                is_off |= (regions[:, 0] >= file.mapping.start) & (regions[:, 0] < file.mapping.end)
        self.leave(OFF_BORDER, int(is_off.sum()) * REGION_BYTES)
        return regions[~is_off]

    def leave(self, cause: str, size_bytes: int) -> None:
        """Note what was left as it is."""
        if size_bytes > 0:
            self._problems[cause] += size_bytes

    def advise(self, chosen: Int64, advice: int, most: int) -> None:
        """Advise range after range, at most `most` a call; note those that the kernel refuses. Raises OSError."""
        waiting = [(start, end - start) for start, end in chosen.tolist()]
        at, tries = 0, 0
        while at < len(waiting):
            try:
                with self.timed():
                    advised = madvise.advise(self.opened.pidfd, waiting[at : at + most], advice)
            except OSError as error:
                if error.errno not in CAUSES:
                    raise
                tries += 1
                if error.errno not in AGAIN or tries == TRIES:
                    self.leave(CAUSES[error.errno], REGION_BYTES)
                    at, tries = at + 1, 0
                continue
            tries = 0
            while at < len(waiting) and advised >= waiting[at][1]:
                advised -= waiting[at][1]
                at += 1

    @contextmanager
    def timed(self) -> Generator[None]:
        """Note how long a call of the kernel takes: so long the process may wait."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self._longest_call_s = max(self._longest_call_s, time.monotonic() - begin_s)

    def done(self, moved: Int64, grown_bytes: int = 0) -> Sculpted:
        """Return what came of it. Raises Vanished where the process ended meanwhile."""
        self.opened.check_alive()
        return Sculpted(
            asked_bytes=runs.size_of(self.wanted),
            moved_bytes=runs.size_of(moved),
            done_bytes=runs.measure(moved, self.wanted),
            duration_s=time.monotonic() - self._begin_s,
            cpu_s=time.thread_time() - self._begin_cpu_s,
            longest_call_s=self._longest_call_s,
            grown_bytes=grown_bytes,
            problems=dict(self._problems),
        )

    def _open_guest(self) -> None:
        """Open what is shared of the guest's RAM; what cannot be opened stays as it is."""
        if not len(self.wanted) or not self._guest:
            return
        asked = runs.intersection(self.wanted, _as_runs(self._guest))
        mappings = self.opened.mappings()
        self._files = shared_memory.open_within(self.opened.folder, mappings, self.listed(asked))

    def _areas(self) -> Int64:
        return runs.joined([_as_runs([(one.mapping.start, one.mapping.end) for one in self._files])])

    def _tables(self, some: Int64, flags: int) -> Int64:
        """Return where in `some` the page map has the flags. Raises OSError."""
        # A read of what lies between is cheaper than many reads.
        wide = runs.joined([some], pagemap.GAP_BYTES)
        return runs.intersection(some, pagemap.read_runs(self.opened.pagemap, self.listed(wide), flags))

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self.opened.close()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self.opened.translated(error) from error


def why_not(mapping: pages.Mapping) -> str:
    """Return why a mapping is not sculpted, "" where it is: private, writable, anonymous memory."""
    if mapping.is_sculptable:
        return ""
    if mapping.is_file and mapping.name.startswith("/anon_hugepage"):
        return "huge TLB memory"
    if mapping.name.startswith(DEVICES) and not mapping.name.startswith(NO_DEVICES):
        return "a device's"
    if mapping.is_shared:
        return "shared memory"
    if mapping.is_file:
        return "a file's"
    return "a stack, or the kernel's" if mapping.is_writable else "not writable"


def permitted(
    opened: OpenedProcess, wanted: Int64, files: Sequence[SharedMemory] = ()
) -> tuple[Int64, Mapping[str, int], list[int]]:
    """Return what of `wanted` may be moved, cut where mappings meet, the rest by cause, the cuts. Raises OSError.

    `files` are the shared mappings that may be moved: a guest's RAM.
    """
    told = {(one.mapping.start, one.mapping.end): one.problem for one in files}
    by_cause: dict[str, list[tuple[int, int]]] = {"": []}
    for one in opened.mappings():
        cause = told.get((one.start, one.end)) if one.is_shared else None
        by_cause.setdefault(why_not(one) if cause is None else cause, []).append((one.start, one.end))
    found = {cause: runs.intersection(wanted, runs.joined([_as_runs(some)])) for cause, some in by_cause.items()}
    allowed = found.pop("")
    problems = {cause: runs.size_of(some) for cause, some in found.items() if len(some)}
    unmapped = runs.size_of(wanted) - runs.size_of(allowed) - sum(problems.values())
    if unmapped > 0:
        problems["not mapped"] = unmapped
    if procfs.parse_locked_bytes(opened.read("status")) > 0:
        locked = runs.intersection(allowed, pagemap.parse_locked(opened.read("smaps")))
        allowed = runs.difference(allowed, locked)
        if len(locked):
            problems["locked"] = runs.size_of(locked)
    borders = [start for start, _ in by_cause[""]]
    return runs.split(allowed, borders), problems, borders


def _as_runs(ranges: Sequence[tuple[int, int]]) -> Int64:
    return np.array(ranges, np.int64).reshape(-1, 2)
