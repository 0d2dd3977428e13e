# SPDX-License-Identifier: Apache-2.0
"""DAMON as a source of touched pages: stretches of addresses that the kernel chose, with sampled counts of accesses.

Documentation/admin-guide/mm/damon/usage.rst and mm/damon/design.rst. A kernel thread (kdamond) cuts the address space
of one process into at most REGIONS_MOST stretches, looks at one page of each every SAMPLE_US, and after every
AGGREGATE_US (an *aggregation*) splits and joins stretches so that all pages of one are accessed about as often. What is
told of a stretch is therefore a sample: `touched` is all that is in memory of a stretch in which an access was seen.

How it is asked: a scheme whose action is `stat` (nothing is done) matches every stretch; `update_schemes_tried_regions`
waits for the end of an aggregation, and writes them out. That moment begins an interval: so a clear is a look. What lay
between two looks is told by the stretch's *age*, the aggregations for which its accesses have stayed as they are.

What is made in the kernel outlives a process that is killed. So one of our kdamonds carries the pid of its owner in
fields that mean nothing where no watermark is asked for, and the next memsculpt takes it down when that owner is dead.
"""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.pages import PAGE_BYTES, REGION_PAGES, Cleared, Extents, Grain, PageBits, Touches
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable, Vanished
from memsculpt.host import blocks
from memsculpt.host.linux import clear_accessed, pagemap, runs
from memsculpt.host.linux.kdamond import (
    AGGREGATE_US,
    PLACE,
    Kdamond,
    Stretches,
    lacks_virtual_addresses,
    mark_in,
    read,
    remove_all,
    unavailable,
    write,
)
from memsculpt.host.linux.opened import OpenedProcess, find_instance

# Processes at a time. The folders must all be made before the first kdamond runs.
SLOTS = 16
# An age is a mean over stretches that were joined, and its first aggregation is the one in which the accesses ended.
AGE_SLACK = 2


class DamonSource:
    """Opens processes, each with a kdamond of its own; until then it only reads. Fulfils host.protocol.PageSource."""

    name = "damon"

    def __init__(self, sys: str = "/sys", proc: str = "/proc") -> None:
        """Look whether DAMON is there and free. Raises Unavailable."""
        self._folder, self._proc = Path(sys, "kernel/mm/damon/admin/kdamonds"), proc
        self._is_taken = False
        self._used: set[int] = set()
        self._check()

    def open(self, process: Instance) -> "DamonReader":
        """Open a process; see the protocol. Raises Unavailable also where DAMON was taken by others meanwhile."""
        opened = OpenedProcess(process, self._proc)
        try:
            self._take()
            slot = self._free_slot()
            with _told(opened):
                monitor = Kdamond(self._folder / str(slot))
                monitor.start(process.pid, _own_mark(self._proc))
        except BaseException:
            opened.close()
            if not self._used:
                self._give_back()
            raise
        self._used.add(slot)
        return DamonReader(monitor, opened, lambda: self._used.discard(slot))

    def close(self) -> None:
        """Stop every kdamond of ours and remove them all; a second call does nothing."""
        self._used.clear()
        self._give_back()

    def remove_abandoned(self) -> bool:
        """Take down what a dead memsculpt left; tell whether there was any. Raises Unavailable, OSError."""
        is_abandoned = self._check()
        if is_abandoned:
            remove_all(self._folder)
        return is_abandoned

    def _free_slot(self) -> int:
        for number in range(SLOTS):
            if number not in self._used:
                return number
        raise Unavailable(
            place=PLACE, problem=f"looks at {SLOTS} processes already", fix="none needed: another source serves"
        )

    def _take(self) -> None:
        if self._is_taken:
            return
        try:
            self.remove_abandoned()
            write(self._folder / "nr_kdamonds", SLOTS)
            self._is_taken = True
            Kdamond(self._folder / "0").mark(_own_mark(self._proc))
        except OSError as error:
            self._give_back()
            raise unavailable(error) from error

    def _give_back(self) -> None:
        if self._is_taken:
            self._is_taken = False
            with suppress(OSError):  # somebody took it from us: then nothing of ours is left
                if read(self._folder / "nr_kdamonds") == str(SLOTS) and mark_in(self._folder) == _own_mark(self._proc):
                    remove_all(self._folder)

    def _check(self) -> bool:
        """Tell whether a dead memsculpt left its kdamonds here. Raises Unavailable; only reads."""
        count_file = self._folder / "nr_kdamonds"
        try:
            count = read(count_file)
        except OSError as error:
            raise unavailable(error) from error
        if not os.access(count_file, os.W_OK):
            raise Unavailable(place=PLACE, problem="may not be set up by this user", fix="run as root")
        if count == "0":
            return False
        owner = mark_in(self._folder)
        if owner is None:
            problem = f"is in use by somebody else ({count} kdamonds)"
            if lacks_virtual_addresses(self._folder):
                problem += ", and cannot watch virtual addresses on this kernel (CONFIG_DAMON_VADDR)"
            raise Unavailable(place=PLACE, problem=problem, fix="none needed: another source serves")
        with suppress(Vanished):
            if find_instance(owner.pid, self._proc) == owner:
                raise Unavailable(
                    place=PLACE,
                    problem=f"is in use by another memsculpt, process {owner.pid}",
                    fix="none needed: another source serves",
                )
        return True


def sweep(sys: str = "/sys", proc: str = "/proc") -> bool:
    """Take down kdamonds that a dead memsculpt left; tell whether there were any. Raises OSError.

    Writes nothing where there are none, or they are somebody else's.
    """
    try:
        return DamonSource(sys, proc).remove_abandoned()
    except Unavailable:
        return False


class DamonReader:
    """Tells of stretches of one process. Fulfils host.protocol.PageReader."""

    source, grain = "damon", Grain.REGION

    def __init__(self, monitor: "Kdamond", opened: OpenedProcess, release: Callable[[], object]) -> None:
        self._monitor, self._opened, self._release = monitor, opened, release
        self._seen: Int64 = runs.NONE  # stretches in which an access was seen since the last clear
        self._cleared_at = 0  # the aggregation at whose end the interval began
        self._parts: list[tuple[int, int, int]] = []  # (start, end, the same) of parts that were cleared alone since

    def look(self, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Note in which stretches accesses were seen; waits for the end of an aggregation."""
        with _told(self._opened):
            self._note(self._monitor.stretches())

    def survey(self) -> Extents:
        """Return where the process has memory; see the protocol."""
        with _told(self._opened):
            return pagemap.read_extents(self._opened.pagemap, self._opened.mappings())

    def read(self, ranges: Sequence[tuple[int, int]] | None = None) -> Touches:
        """Return what was touched since the last clear, or since it was opened; see the protocol."""
        with _told(self._opened):
            if ranges is None:
                self._note(self._monitor.stretches())
            else:
                self._noted()
            return self._touches(ranges)

    def clear(self, ranges: Sequence[tuple[int, int]] | None = None) -> Cleared:
        """Begin a new interval at the end of an aggregation. The process never waits; see the protocol."""
        begin_s = time.perf_counter()
        with _told(self._opened):
            found = self._monitor.stretches()
            self._note(found)
            self._begin(ranges, found.aggregation)
            cleared_bytes = self._opened.resident_bytes()
        return Cleared(
            method="damon",
            cleared_bytes=cleared_bytes,
            longest_hold_s=0.0,
            duration_s=time.perf_counter() - begin_s,
            note="DAMON samples: a stretch counts as touched whole when one page of it was seen accessed",
        )

    def turn(self, start: int, end: int, pause: Callable[[float], None]) -> Touches:
        """Read the range and begin its new interval; see the protocol. There is nothing that would need a pause."""
        with _told(self._opened):
            found = self._noted()
            touches = self._touches([(start, end)])
            self._begin([(start, end)], found.aggregation)
            return touches

    def close(self) -> None:
        """Stop the kdamond and release every descriptor; a second call does nothing."""
        self._monitor.stop()
        self._opened.close()
        self._release()

    def _begin(self, ranges: Sequence[tuple[int, int]] | None, aggregation: int) -> None:
        if ranges is None:
            self._seen, self._cleared_at, self._parts = runs.NONE, aggregation, []
            return
        ordered = sorted(ranges)
        self._seen = runs.difference(self._seen, np.array(ordered, np.int64).reshape(-1, 2))
        kept = [one for one in self._parts if not any(start <= one[0] and one[1] <= end for start, end in ordered)]
        self._parts = [*kept, *((start, end, aggregation) for start, end in ordered)]

    def _noted(self) -> Stretches:
        """Return what is noted already where that is new enough: many parts in a row are to cost one wait."""
        found = self._monitor.latest
        if found is None or time.monotonic() - self._monitor.latest_at_s > AGGREGATE_US / 1e6:
            found = self._monitor.stretches()
            self._note(found)
        return found

    def _note(self, found: Stretches) -> None:
        since = np.full(len(found.starts), self._cleared_at, np.int64)
        for start, end, aggregation in self._parts:
            since[(found.starts >= start) & (found.ends <= end)] = aggregation
        accessed = accessed_since(found, since)
        more = runs.joined([np.stack((found.starts[accessed], found.ends[accessed]), axis=1)])
        self._seen = runs.union(self._seen, more)

    def _touches(self, ranges: Sequence[tuple[int, int]] | None) -> Touches:
        mappings = self._opened.mappings()
        wanted = clear_accessed.ranges_within(mappings, ranges)
        addresses, entries = pagemap.read_tables(self._opened.pagemap, wanted)
        present = np.packbits((entries & np.uint64(pagemap.PRESENT)) != 0, axis=1, bitorder="little")
        nothing = np.zeros_like(present)
        bits = PageBits(
            addresses=addresses,
            is_huge=np.zeros(len(addresses), np.bool_),
            present=present,
            accessed=present & np.packbits(_inside(addresses, self._seen), axis=1, bitorder="little"),
            dirty=nothing,
            swapped=np.packbits((entries & np.uint64(pagemap.SWAPPED)) != 0, axis=1, bitorder="little"),
        )
        touches = blocks.touches_from(bits, mappings)
        return replace(touches, grain=Grain.REGION, touched_pages=None, has_dirty=False)


def accessed_since(found: Stretches, since: Int64) -> Bool:
    """Return which stretches were accessed after the aggregation `since`, one for each stretch. Pure.

    Accesses in the last aggregation are counted; earlier ones show as an age that does not reach back to then.
    """
    return (found.accesses > 0) | (found.ages < found.aggregation - since - AGE_SLACK)


def _inside(addresses: Int64, stretches: Int64) -> Bool:
    """Return which pages of the regions lie in ascending stretches, shape (n_regions, 512)."""
    if not len(stretches):
        return np.zeros((len(addresses), REGION_PAGES), np.bool_)
    pages = addresses[:, np.newaxis] + np.arange(REGION_PAGES, dtype=np.int64) * PAGE_BYTES
    place = np.searchsorted(stretches[:, 0], pages, side="right") - 1
    inside: Bool = (place >= 0) & (pages < stretches[place, 1])
    return inside


def _own_mark(proc: str) -> Instance:
    return find_instance(os.getpid(), proc)


@contextmanager
def _told(opened: OpenedProcess) -> Generator[None]:
    """Say what an error of DAMON's files means: most often that the process has ended, and its kdamond with it."""
    try:
        yield
    except OSError as error:
        opened.check_alive()
        raise unavailable(error) from error
