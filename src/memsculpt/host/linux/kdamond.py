# SPDX-License-Identifier: Apache-2.0
"""A kdamond's folder in sysfs: set up for one process, asked what it found, marked as ours, and taken down.

Documentation/admin-guide/mm/damon/usage.rst; what it is used for stands in damon.py.
"""

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable

PLACE = "DAMON"
SAMPLE_US, AGGREGATE_US = 5_000, 100_000
UPDATE_US = 1_000_000  # how often new mappings are found
# At first the address space is cut into the least number: with the kernel's default of 10 it took three intervals of
# 3 s to find four stretches of 8 MiB of 128, with 100 one, for twice the kernel's time (bench sense, in a guest).
REGIONS_LEAST, REGIONS_MOST = 100, 1000
ANY_SIZE, ANY_COUNT = (1 << 64) - 1, (1 << 32) - 1
# "memsculp": in `watermarks/interval_us` of a kdamond that is ours, beside `high` (pid) and `mid` (start of the owner).
MARK = 0x6D656D7363756C70


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stretches:
    """What DAMON tells at the end of an aggregation; columns ascending by address, shape (n_stretches,)."""

    starts: Int64
    ends: Int64
    accesses: Int64  # samples in which the page looked at had been accessed, of AGGREGATE_US / SAMPLE_US
    ages: Int64  # aggregations since that changed
    aggregation: int  # how many have ended since the kdamond runs


class Kdamond:
    """One of them; the kernel makes its folder, and runs its thread from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = folder / "contexts/0"
        self._scheme = self._context / "schemes/0"
        self._is_on = False
        self._tried_bytes = 0
        self._aggregation = 0
        self.latest: Stretches | None = None
        self.latest_at_s = 0.0

    def mark(self, owner: Instance) -> None:
        """Make the context and its scheme, and write into it whose they are. Raises OSError."""
        write(self._folder / "contexts/nr_contexts", 1)
        write(self._context / "schemes/nr_schemes", 1)
        write(self._scheme / "watermarks/high", owner.pid)
        write(self._scheme / "watermarks/mid", owner.start_ticks)
        write(self._scheme / "watermarks/interval_us", MARK)

    def start(self, pid: int, owner: Instance) -> None:
        """Watch a process from now on. Raises OSError, Unavailable."""
        self.mark(owner)
        if "vaddr" not in read(self._context / "avail_operations").split():
            raise Unavailable(
                place=PLACE,
                problem="cannot watch virtual addresses on this kernel",
                fix="CONFIG_DAMON_VADDR; another source serves",
            )
        if not (self._scheme / "tried_regions").is_dir():
            raise Unavailable(
                place=PLACE, problem="does not tell its regions on this kernel", fix="kernel 6.2; another source serves"
            )
        attributes = self._context / "monitoring_attrs"
        write(self._context / "operations", "vaddr")
        write(attributes / "intervals/sample_us", SAMPLE_US)
        write(attributes / "intervals/aggr_us", AGGREGATE_US)
        write(attributes / "intervals/update_us", UPDATE_US)
        write(attributes / "nr_regions/max", REGIONS_MOST)
        write(attributes / "nr_regions/min", REGIONS_LEAST)
        write(self._context / "targets/nr_targets", 1)
        write(self._context / "targets/0/pid_target", pid)
        write(self._scheme / "action", "stat")
        for name, most in (("sz", ANY_SIZE), ("nr_accesses", ANY_COUNT), ("age", ANY_COUNT)):
            write(self._scheme / "access_pattern" / name / "min", 0)
            write(self._scheme / "access_pattern" / name / "max", most)
        try:
            write(self._folder / "state", "on")
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Unavailable(
                    place=PLACE,
                    problem="is kept by a module of the kernel for itself (damon_reclaim or damon_lru_sort)",
                    fix="none needed: another source serves",
                ) from error
            raise
        self._is_on = True

    def stretches(self) -> Stretches:
        """Wait for the end of an aggregation and return what it came to. Raises OSError."""
        write(self._folder / "state", "update_schemes_tried_regions")
        folder = self._scheme / "tried_regions"
        names = [name for name in os.listdir(folder) if name.isdigit()]
        rows = [
            [_number(f"{folder}/{name}/{file}") for file in ("start", "end", "nr_accesses", "age")] for name in names
        ]
        columns = np.array(rows, np.int64).reshape(-1, 4)
        columns = columns[np.argsort(columns[:, 0], kind="stable")]
        # How many aggregations there were is not told; how much memory was tried, over all of them, is.
        write(self._folder / "state", "update_schemes_stats")
        tried_bytes = int(read(self._scheme / "stats/sz_tried"))
        watched_bytes = int((columns[:, 1] - columns[:, 0]).sum())
        if watched_bytes:
            self._aggregation += round((tried_bytes - self._tried_bytes) / watched_bytes)
        self._tried_bytes = tried_bytes
        self.latest_at_s = time.monotonic()
        self.latest = Stretches(
            starts=columns[:, 0],
            ends=columns[:, 1],
            accesses=columns[:, 2],
            ages=columns[:, 3],
            aggregation=self._aggregation,
        )
        return self.latest

    def stop(self) -> None:
        """End the kernel's thread; one that has ended with its process is no error."""
        if self._is_on:
            self._is_on = False
            with suppress(OSError):
                write(self._folder / "state", "off")


def mark_in(folder: Path) -> Instance | None:
    """Return whose the kdamonds are, None where they are not a memsculpt's."""
    marks = folder / "0/contexts/0/schemes/0/watermarks"
    try:
        if int(read(marks / "interval_us")) != MARK:
            return None
        return Instance(pid=int(read(marks / "high")), start_ticks=int(read(marks / "mid")))
    except (OSError, ValueError):
        return None


def lacks_virtual_addresses(folder: Path) -> bool:
    """Tell whether somebody's monitor shows that this kernel cannot watch a process."""
    try:
        return "vaddr" not in read(folder / "0/contexts/0/avail_operations").split()
    except OSError:
        return False


def remove_all(folder: Path) -> None:
    """Stop what runs and remove everything. Raises OSError."""
    for one in folder.glob("[0-9]*/state"):
        if read(one) == "on":
            with suppress(OSError):  # it ended with its process just now
                write(one, "off")
    write(folder / "nr_kdamonds", 0)


def read(path: Path) -> str:
    """Return what a file says. Raises OSError."""
    return path.read_text().strip()


def _number(path: str) -> int:
    """Read one of some thousand files, at a third of what _read takes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, 32))
    finally:
        os.close(descriptor)


def write(path: Path, value: object) -> None:
    """Write a value as text. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)


def unavailable(error: OSError) -> Unavailable:
    """Return what an error of DAMON's files means."""
    if error.errno == errno.ENOENT:
        problem, fix = (
            "is not in this kernel, or cannot be set up by sysfs",
            "CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS",
        )
    elif isinstance(error, PermissionError):
        problem, fix = "may not be set up by this user", "run as root"
    else:
        problem, fix = error.strerror or str(error), "none needed: another source serves"
    return Unavailable(place=PLACE, problem=problem, fix=fix)
