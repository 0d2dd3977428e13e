# SPDX-License-Identifier: Apache-2.0
"""The machine, real or simulated. All system calls of the project are behind this door."""

import ctypes
import os

from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.protocol import Host

__all__ = ["merge_own_pages", "open_host", "own_instance", "share_one_heap"]

_M_ARENA_MAX = -8  # malloc.h
_PR_SET_MEMORY_MERGE = 67  # include/uapi/linux/prctl.h, since 6.4


def open_host(settings: Settings) -> Host:
    """Return the host that this machine is."""
    from memsculpt.host import doctor, sources
    from memsculpt.host.linux import LinuxHost

    return LinuxHost(settings, lambda below: sources.open_source(below=below).source, doctor.examine)


def own_instance() -> Instance:
    """Return this very process."""
    with open("/proc/self/stat", "rb") as stat:  # noqa: PTH123  /proc is spoken to in file descriptors
        fields = stat.read().rpartition(b")")[2].split()
    return Instance(pid=os.getpid(), start_ticks=int(fields[19]))


def share_one_heap() -> None:
    """Have the threads that are started from now on share one heap, where the C library would give each its own.

    An agent with threads for pages, faults and its API is 5 MiB smaller so. Source: mallopt(3), M_ARENA_MAX.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's; others have no such thing, and one heap
        mallopt(_M_ARENA_MAX, 1)


def merge_own_pages() -> None:
    """Let the kernel merge this process's identical pages (KSM), also after exec; opt-in.

    Raises Unavailable where the kernel has no such call. Source: prctl(2), PR_SET_MEMORY_MERGE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_MEMORY_MERGE, ctypes.c_ulong(1), none, none, none) != 0:
        raise Unavailable(
            place="--share",
            problem=f"pages cannot be merged: {os.strerror(ctypes.get_errno())}",
            fix="a kernel from 6.4 on with CONFIG_KSM, as root; or leave --share out",
        )
