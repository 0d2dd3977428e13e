# SPDX-License-Identifier: Apache-2.0
"""Chosen ranges of another process: gathered in huge pages, split again, sent out, brought back. By process_madvise(2).

What works from outside, found by trying (docs/methods/sculpting.md has the figures):

- MADV_COLLAPSE gathers a region of 2 MiB whatever /sys/kernel/mm/transparent_hugepage says. It brings its swapped pages
  back and fills what was never touched with zeros, so holes are counted first. EINVAL where the process has switched
  huge pages off (prctl, MADV_NOHUGEPAGE), ENOMEM where no contiguous memory is to be had or the cgroup is full.
- MADV_COLD of one page of a huge page splits it (mm/madvise.c splits what is advised in part only); of a whole one it
  does not. That one page also goes to the inactive list, which is all the harm. MADV_PAGEOUT of a part splits as well,
  and without any swap it even splits a whole huge page and sends nothing, which is why it is not called then.
- Nothing gives the zeros back that a collapse filled: MADV_DONTNEED is for one's own memory. A page-out does, in
  effect: a page of zeros takes no room in zram.
"""

import errno
import math
import time
import zlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np

from memsculpt.domain import pages
from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.pool import Tier
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient
from memsculpt.host.linux import madvise, meminfo, pagemap, procfs, runs, transfer
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.opened import OpenedProcess
from memsculpt.host.linux.pagemap import MOVABLE, PAGE, PRESENT, SWAPPED
from memsculpt.host.linux.pager import send_and_settle
from memsculpt.host.protocol import Frames, Ranges, Sculpted

PROC = "/proc"
# The kernel lets others in between two regions (2 to 5 ms each); a call ends so that whoever stops us need not wait.
COLLAPSES_A_CALL = 4
SPLITS_A_CALL = 64
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
SHARED_BY_FORK = "shared with a forked process, or pages of zeros"
STAYED = "in use, pinned or without room in the swap"


class LinuxSculptor:
    """Fulfils host.protocol.Sculptor; holds nothing between calls."""

    def collapse(self, process: Instance, ranges: Ranges, holes_most_bytes: int = 0) -> Sculpted:
        """Gather whole regions in huge pages; see the protocol."""
        with _Call(process, ranges) as call:
            allowed = _whole_regions(call.allowed)
            call.leave("no whole region of 2 MiB in one mapping", runs.size_of(call.allowed) - runs.size_of(allowed))
            huge = pagemap.read_huge_runs(call.opened.pagemap, call.listed(allowed))
            regions = _regions_of(allowed)
            is_huge = runs.measure(huge, regions) == REGION_BYTES
            held = call.read(allowed, PRESENT), call.read(allowed, SWAPPED)
            holes = REGION_BYTES - runs.measure(runs.union(*held), regions)
            is_sparse = ~is_huge & (holes > holes_most_bytes)
            call.leave("is huge already", int(is_huge.sum()) * REGION_BYTES)
            call.leave("sparse: it would be filled with zeros", int(is_sparse.sum()) * REGION_BYTES)
            chosen = regions[~is_huge & ~is_sparse]
            call.advise(chosen, madvise.MADV_COLLAPSE, COLLAPSES_A_CALL)
            after = runs.difference(pagemap.read_huge_runs(call.opened.pagemap, call.listed(chosen)), huge)
            became = runs.measure(after, chosen) == REGION_BYTES
            return call.done(after, grown_bytes=int(holes[~is_huge & ~is_sparse][became].sum()))

    def split(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Make huge pages small again; see the protocol."""
        with _Call(process, ranges) as call:
            allowed = _whole_regions(call.allowed)
            huge = pagemap.read_huge_runs(call.opened.pagemap, call.listed(allowed))
            call.leave("not a huge page", runs.size_of(call.allowed) - runs.size_of(huge))
            first = _regions_of(_whole_regions(huge))
            first[:, 1] = first[:, 0] + PAGE
            call.advise(first, madvise.MADV_COLD, SPLITS_A_CALL)
            left = pagemap.read_huge_runs(call.opened.pagemap, call.listed(huge))
            return call.done(runs.difference(huge, left))

    def page_out_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Send resident pages out; see the protocol."""
        with _Call(process, ranges) as call:
            room_bytes = meminfo.read_host_memory(PROC).swap_free_bytes
            if room_bytes < PAGE and len(call.wanted):
                raise Transient(place=call.place, problem="the swap is full, or there is none", retry_in_s=10.0)
            movable = call.read(call.allowed, MOVABLE)
            call.leave(SHARED_BY_FORK, runs.size_of(call.read(call.allowed, PRESENT)) - runs.size_of(movable))
            chosen = runs.first(movable, room_bytes)
            call.leave("no room in the swap", runs.size_of(movable) - runs.size_of(chosen))
            parts = runs.split(chosen, call.borders)
            send_and_settle(process.pid, call.opened.pidfd, call.opened.pagemap, parts, PROC)
            moved = runs.intersection(chosen, call.read(chosen, SWAPPED))
            call.leave(STAYED, runs.size_of(chosen) - runs.size_of(moved))
            return call.done(moved)

    def bring_in_ranges(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Bring swapped pages back and map them; see the protocol."""
        with _Call(process, ranges) as call:
            chosen = call.read(call.allowed, SWAPPED)
            transfer.bring(process.pid, call.opened.pidfd, chosen, PROC)
            moved = runs.intersection(chosen, call.read(chosen, PRESENT))
            call.leave("did not come: unmapped, or no room in its cgroup", runs.size_of(chosen) - runs.size_of(moved))
            return call.done(moved)

    def frames(self, process: Instance, ranges: Ranges) -> Frames:
        """Return what lies behind ranges; see the protocol."""
        with _Call(process, ranges) as call:
            wanted, opened = call.wanted, call.opened
            found = Frames(
                resident_bytes=runs.measure(call.read(wanted, PRESENT), wanted),
                swapped_bytes=runs.measure(call.read(wanted, SWAPPED), wanted),
                huge_bytes=runs.measure(pagemap.read_huge_runs(opened.pagemap, call.listed(wanted)), wanted),
                longest_run_bytes=pagemap.longest_frames(opened.pagemap, call.listed(wanted)),
            )
            opened.check_alive()
            return found

    def swap_tier(self) -> Tier:
        """Return where pages go; see the protocol."""
        try:
            return Tier.COMPRESSED if transfer.is_prompt(PROC) else Tier.DISK
        except OSError as error:
            raise translate(error, f"{PROC}/swaps") from error

    def packed_ratio(self, process: Instance, addresses: Int64) -> Float64:
        """Return how well pages compress; see the protocol. By zlib at its fastest, which packs a little tighter."""
        found = np.full(len(addresses), math.nan)
        with _Call(process, ()) as call:
            for row, address in enumerate(addresses.tolist()):
                if not len(pagemap.read_entries(call.opened.pagemap, [(address, address + PAGE)], PRESENT)):
                    continue
                try:
                    content = madvise.copy_page(process.pid, address, PAGE)
                except OSError as error:
                    if error.errno != errno.EFAULT:
                        raise
                    continue
                found[row] = min(1.0, len(zlib.compress(content, 1)) / PAGE)
        return found


class _Call:
    """One call under way: the process held open, what of the ranges may be moved, and why the rest may not."""

    def __init__(self, process: Instance, ranges: Ranges) -> None:
        self.place = f"process {process.pid}"
        self.wanted = np.array(ranges, np.int64).reshape(-1, 2)
        self._process = process
        self._problems: Counter[str] = Counter()
        self._longest_call_s = 0.0

    def __enter__(self) -> Self:
        self._begin_s, self._begin_cpu_s = time.monotonic(), time.thread_time()
        self.opened = OpenedProcess(self._process, PROC)
        try:
            with self._translated():
                self.allowed, problems, self.borders = _permitted(self.opened, self.wanted)
        except BaseException:
            self.opened.close()
            raise
        self._problems.update(problems)
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        try:
            if isinstance(problem, OSError):
                raise self.opened.translated(problem) from problem
        finally:
            self.opened.close()

    def listed(self, some: Int64) -> list[tuple[int, int]]:
        """Return runs as the page map's readers take them."""
        return [(start, end) for start, end in some.tolist()]

    def read(self, some: Int64, flags: int) -> Int64:
        """Return where in `some` the page map has the flags. Raises OSError."""
        # A read of what lies between is cheaper than many reads.
        wide = runs.joined([some], pagemap.GAP_BYTES)
        return runs.intersection(some, pagemap.read_runs(self.opened.pagemap, self.listed(wide), flags))

    def leave(self, cause: str, size_bytes: int) -> None:
        """Note what was left as it is."""
        if size_bytes > 0:
            self._problems[cause] += size_bytes

    def advise(self, chosen: Int64, advice: int, most: int) -> None:
        """Advise range after range, at most `most` a call; note those that the kernel refuses. Raises OSError."""
        waiting = [(start, end - start) for start, end in chosen.tolist()]
        at, tries = 0, 0
        while at < len(waiting):
            begin_s = time.monotonic()
            try:
                advised = madvise.advise(self.opened.pidfd, waiting[at : at + most], advice)
            except OSError as error:
                if error.errno not in CAUSES:
                    raise
                tries += 1
                if error.errno not in AGAIN or tries == TRIES:
                    self.leave(CAUSES[error.errno], REGION_BYTES)
                    at, tries = at + 1, 0
                continue
            finally:
                self._longest_call_s = max(self._longest_call_s, time.monotonic() - begin_s)
            tries = 0
            while at < len(waiting) and advised >= waiting[at][1]:
                advised -= waiting[at][1]
                at += 1

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
    if mapping.is_shared:
        return "shared memory"
    if mapping.is_file:
        return "a device's" if mapping.name.startswith("/dev/") else "a file's"
    return "a stack, or the kernel's" if mapping.is_writable else "not writable"


def _permitted(opened: OpenedProcess, wanted: Int64) -> tuple[Int64, Mapping[str, int], list[int]]:
    """Return what of `wanted` may be moved, cut where mappings meet, the rest by cause, the cuts. Raises OSError."""
    by_cause: dict[str, list[tuple[int, int]]] = {"": []}
    for one in opened.mappings():
        by_cause.setdefault(why_not(one), []).append((one.start, one.end))
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


def _whole_regions(some: Int64) -> Int64:
    """Return what of each run is whole regions of 2 MiB."""
    found = np.stack((-(-some[:, 0] // REGION_BYTES), some[:, 1] // REGION_BYTES), axis=1) * REGION_BYTES
    return found[found[:, 1] > found[:, 0]]


def _regions_of(some: Int64) -> Int64:
    """Return whole regions one by one, shape (n, 2)."""
    starts = runs.pages_of(some, REGION_BYTES)
    return np.stack((starts, starts + REGION_BYTES), axis=1)
