# SPDX-License-Identifier: Apache-2.0
"""Pressure stall information: totals to read, triggers that wake (Documentation/accounting/psi.rst)."""

import os
from dataclasses import dataclass

from memsculpt.host.linux import procfs

# Wake when somebody stalled for 150 ms within a second: below that the regular tick is soon enough.
TRIGGER = b"some 150000 1000000\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Stall totals in seconds since the cgroup (or the machine) began."""

    some_s: float
    full_s: float


def parse_pressure(content: bytes) -> Pressure | None:
    """Return the totals, or None for what is no pressure file."""
    totals: dict[bytes, float] = {}
    for line in content.splitlines():
        head, _, total = line.rpartition(b"total=")
        if total.isdigit():
            totals[head.split(b" ", 1)[0]] = int(total) / 1e6
    if b"some" not in totals:
        return None
    return Pressure(some_s=totals[b"some"], full_s=totals.get(b"full", 0.0))


def read_pressure(path: str) -> Pressure | None:
    """Return the totals of a cgroup or the machine; None where there are none."""
    try:
        return parse_pressure(procfs.read_file(path))
    except OSError:  # no PSI in this kernel, PSI switched off (EOPNOTSUPP), or the cgroup is gone
        return None


def open_trigger(path: str) -> int | None:
    """Return a descriptor that polls POLLPRI under pressure, or None where triggers cannot be had."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.write(descriptor, TRIGGER)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
