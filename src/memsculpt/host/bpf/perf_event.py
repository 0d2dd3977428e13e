# SPDX-License-Identifier: Apache-2.0
"""Software events of the kernel's, one a processor, for programs to run at: perf_event_open(2)."""

import ctypes
import errno
import os
import struct
from pathlib import Path

from memsculpt.errors import Unavailable
from memsculpt.host.bpf.program import Program

SYS_PERF_EVENT_OPEN = 298
PERF_TYPE_SOFTWARE = 1
PAGE_FAULTS, PAGE_FAULTS_MINOR = 2, 5  # PERF_COUNT_SW_...; what is read from swap or disk is major
PERF_ATTR_BYTES = 128
PERF_FLAG_FD_CLOEXEC = 8


def attach(program: Program, name: str, event: int) -> tuple[int, ...]:
    """Run the program of this name at every `event`; return the descriptors, which are closed with the program.

    Raises Unavailable.
    """
    opened: list[int] = []
    for cpu in sorted(online()):
        descriptor = _open(cpu, event)
        try:
            program.attach_perf_event(name, descriptor)
        except Unavailable:
            os.close(descriptor)
            raise
        opened.append(descriptor)
    return tuple(opened)


def count(descriptors: tuple[int, ...]) -> int:
    """Return how often the event came so far. Raises OSError."""
    return sum(int(struct.unpack("<Q", os.read(descriptor, 8))[0]) for descriptor in descriptors)


def online() -> set[int]:
    """Return the numbers of the processors that are online."""
    content = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    found: set[int] = set()
    for part in content.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


def _open(cpu: int, event: int) -> int:
    attributes = bytearray(PERF_ATTR_BYTES)
    # type, size, config, sample_period: every event; the program itself counts out which are recorded
    struct.pack_into("<IIQQ", attributes, 0, PERF_TYPE_SOFTWARE, PERF_ATTR_BYTES, event, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(
        SYS_PERF_EVENT_OPEN,
        (ctypes.c_char * PERF_ATTR_BYTES).from_buffer(attributes),
        ctypes.c_int(-1),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(PERF_FLAG_FD_CLOEXEC),
    )
    if found < 0:
        number = ctypes.get_errno()
        fix = "run as root" if number in {errno.EPERM, errno.EACCES} else "CONFIG_PERF_EVENTS"
        raise Unavailable(place="perf event of page faults", problem=os.strerror(number), fix=fix)
    return int(found)
