# SPDX-License-Identifier: Apache-2.0
"""Chosen ranges of another process, moved to a slow memory node and back. By move_pages(2).

What a page keeps there: it stays mapped and is read in place, at the node's own speed, without a fault. Which pages
lie there is told by their frames (pagemap.py, numa.py) and not by the call's status query: on Linux 6.1 that was seen
to answer -ENOENT for every page of a process right after a migration, while /proc/PID/numa_maps had them all.

- MPOL_MF_MOVE moves what this process alone maps, and never what others share with it.
- One page of a huge page moves all of it: a huge page is moved whole or left.
- The kernel allocates on the wanted node alone (__GFP_THISNODE, mm/migrate.c) and would reclaim there to get it. So
  there must be room beyond a reserve before anything is asked for.
"""

import ctypes
import errno
import os
import platform
from collections import Counter
from collections.abc import Sequence

import numpy as np

from memsculpt.domain.arrays import Bool, Int64
from memsculpt.domain.pages import REGION_BYTES, REGION_PAGES
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.linux import numa, pagemap, procfs, runs
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.numa import Node
from memsculpt.host.linux.pagemap import MOVABLE, PAGE, PRESENT
from memsculpt.host.linux.sculpt_call import PROC, Call
from memsculpt.host.linux.sculptor import SHARED_BY_FORK, ZEROS, whole_regions
from memsculpt.host.protocol import Ranges, Sculpted

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h, and the tables of powerpc and s390.
SYS_MOVE_PAGES = {"x86_64": 279, "aarch64": 239, "riscv64": 239, "ppc64le": 301, "s390x": 310}
MPOL_MF_MOVE = 1 << 1
UNTOLD = 1 << 30  # no node, and no error: the kernel said nothing of the page
# Between two calls it is checked that the process still is the one that was opened, and others get their turn.
CALL_PAGES = 1024
HUGE_A_CALL = CALL_PAGES // REGION_PAGES
TRIES = 2  # of what the kernel could not do just now
NODES_FIX = (
    "none needed: what is cold goes to the swap; CXL or persistent memory becomes a node by "
    "`daxctl reconfigure-device --mode=system-ram`"
)

THERE = "lies on the slow node already"
HUGE_PART = "part of a huge page, which moves as a whole or not at all"
NO_ROOM = "no room on the node beyond its reserve"
FORBIDDEN = "its cpuset does not allow the node"
FRAMES_MIXED = "the frames of the slow node lie among those of others: which pages lie there cannot be told"
# Of one page, by the errno of its status; move_pages(2). Every other one ends the whole call.
CAUSES = {
    errno.ENOENT: "unmapped or swapped meanwhile",
    errno.EFAULT: "the page of zeros, or unmapped meanwhile",
    errno.EACCES: SHARED_BY_FORK,
    errno.EBUSY: "busy: pinned, or being written",
    errno.EIO: "busy: pinned, or being written",
    errno.EINVAL: "memory of a device",
    errno.EPERM: "locked",
    errno.ENOMEM: NO_ROOM,
}
BUSY = CAUSES[errno.EBUSY]
# Of a whole call: what cannot be done for this process, whoever asks.
CALL_CAUSES = {errno.EACCES: FORBIDDEN, errno.ENODEV: "the node has gone offline", errno.ENOMEM: NO_ROOM}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def probe() -> tuple[tuple[int, ...], str]:
    """Return the slow nodes of this machine, and why they cannot be used, "" where they can; changes nothing."""
    try:
        nodes, _ = _nodes_and_frames()
        move(os.getpid(), np.empty(0, np.int64), 0)
    except Unavailable as error:
        return (), error.problem
    except OSError as error:
        return (), f"move_pages(2): {error.strerror}"
    found = tuple(one.number for one in numa.slow_nodes(nodes))
    if os.geteuid() != 0:
        return found, "this user may not see frames, nor move other users' pages"
    return found, ""


def move(pid: int, pages: Int64, node: int) -> Int64:
    """Move the page at each address to a node; return each one's node, or minus its errno, or UNTOLD.

    Raises OSError where the whole call was refused. At most CALL_PAGES at once: nobody checks the pid meanwhile.
    """
    number = SYS_MOVE_PAGES.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of move_pages(2) on {platform.machine()} is not known")
    addresses = np.ascontiguousarray(pages, np.uint64)
    nodes = np.full(len(addresses), node, np.int32)
    statuses = np.full(len(addresses), UNTOLD, np.int32)
    done = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(pid),
        ctypes.c_ulong(len(addresses)),
        ctypes.c_void_p(addresses.ctypes.data),
        ctypes.c_void_p(nodes.ctypes.data),
        ctypes.c_void_p(statuses.ctypes.data),
        ctypes.c_int(MPOL_MF_MOVE),
    )
    if done < 0:
        refusal = ctypes.get_errno()
        raise OSError(refusal, os.strerror(refusal))
    return statuses.astype(np.int64)


class LinuxSlowNode:
    """Fulfils host.protocol.SlowNode; holds nothing between calls."""

    def slow_room_bytes(self) -> int:
        """Return how much may still go to slow nodes; see the protocol."""
        return sum(one.room_bytes for one in numa.slow_nodes(_nodes()))

    def to_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move the ranges' pages to a slow node; see the protocol."""
        nodes, frames = _nodes_and_frames()
        with Call(process, ranges) as call:
            there = _lying(call, call.allowed, frames)
            movable = call.read(call.allowed, MOVABLE)
            zeros = pagemap.read_zero_runs(call.opened.pagemap, call.listed(call.allowed))
            present = call.read(call.allowed, PRESENT)
            call.leave(THERE, runs.size_of(there))
            call.leave(ZEROS, runs.size_of(zeros))
            stays = runs.difference(runs.difference(present, movable), runs.union(zeros, there))
            call.leave(SHARED_BY_FORK, runs.size_of(stays))
            wanted = runs.difference(movable, there)
            return call.done(_to_nodes(call, wanted, numa.slow_nodes(nodes), frames, are_slow=True))

    def from_slow_node(self, process: Instance, ranges: Ranges) -> Sculpted:
        """Move what of the ranges lies on slow nodes back; see the protocol."""
        nodes, frames = _nodes_and_frames()
        with Call(process, ranges) as call:
            there = _lying(call, call.allowed, frames)
            slow = numa.slow_nodes(nodes)
            near = sorted(numa.fast_nodes(nodes), key=lambda one: (numa.distance_to(one, slow), -one.room_bytes))
            return call.done(_to_nodes(call, there, near, frames, are_slow=False))

    def slow_runs(self, process: Instance, ranges: Ranges) -> Int64:
        """Return which pages lie on slow nodes; see the protocol."""
        _, frames = _nodes_and_frames()
        with Call(process, ranges) as call:
            found = _lying(call, call.allowed, frames)
            call.opened.check_alive()
            return found


def _nodes() -> tuple[Node, ...]:
    try:
        return numa.read_nodes()
    except OSError as error:
        raise translate(error, "memory nodes") from error


def _nodes_and_frames() -> tuple[tuple[Node, ...], Int64]:
    """Return the nodes, and which frames slow ones hold. Raises Unavailable where there are none, or cannot be told."""
    nodes = _nodes()
    problem = numa.why_none(nodes)
    frames: Int64 | None = runs.NONE
    if not problem:
        try:
            spans = numa.parse_spans(procfs.read_file(f"{PROC}/zoneinfo"))
        except OSError as error:
            raise translate(error, f"{PROC}/zoneinfo") from error
        frames = numa.spans_of(numa.slow_nodes(nodes), numa.fast_nodes(nodes), spans)
        problem = "" if frames is not None else FRAMES_MIXED
    if frames is None or problem:
        raise Unavailable(place="slow memory node", problem=problem, fix=NODES_FIX)
    return nodes, frames


def _lying(call: Call, some: Int64, frames: Int64) -> Int64:
    """Return which pages of runs lie in the frames. Raises OSError."""
    # A read of what lies between is cheaper than many reads.
    wide = runs.joined([some], pagemap.GAP_BYTES)
    return runs.intersection(some, pagemap.read_runs_in_frames(call.opened.pagemap, call.listed(wide), frames))


def _to_nodes(call: Call, wanted: Int64, nodes: Sequence[Node], frames: Int64, *, are_slow: bool) -> Int64:
    """Move runs to the nodes, the first that has room first; return what of them lies there then, by its frames."""
    huge = pagemap.read_huge_runs(call.opened.pagemap, call.listed(wanted))
    whole = whole_regions(runs.intersection(wanted, huge))
    small = runs.difference(wanted, huge)
    call.leave(HUGE_PART, runs.size_of(wanted) - runs.size_of(whole) - runs.size_of(small))
    tried, told = runs.NONE, Counter[str]()
    for node in nodes:
        whole_part = runs.first(whole, node.room_bytes // REGION_BYTES * REGION_BYTES)
        small_part = runs.first(small, (node.room_bytes - runs.size_of(whole_part)) // PAGE * PAGE)
        told += _move(call, runs.pages_of(whole_part, REGION_BYTES), node.number, REGION_BYTES)
        told += _move(call, runs.pages_of(small_part, PAGE), node.number, PAGE)
        whole, small = runs.difference(whole, whole_part), runs.difference(small, small_part)
        tried = runs.union(tried, runs.union(whole_part, small_part))
    call.leave(NO_ROOM, runs.size_of(whole) + runs.size_of(small))
    lying = _lying(call, tried, frames)
    moved = lying if are_slow else runs.intersection(runs.difference(tried, lying), call.read(tried, PRESENT))
    # The page tables tell how much stayed; the statuses only why.
    stayed_bytes = runs.size_of(tried) - runs.size_of(moved)
    for cause, size_bytes in sorted(told.items()):
        call.leave(cause, min(size_bytes, stayed_bytes))
        stayed_bytes -= min(size_bytes, stayed_bytes)
    call.leave(BUSY, stayed_bytes)
    return moved


def _move(call: Call, pages: Int64, node: int, page_bytes: int) -> Counter[str]:
    """Move the pages at these addresses; return the causes of what stayed, in bytes. Raises OSError, Vanished."""
    most = CALL_PAGES if page_bytes == PAGE else HUGE_A_CALL
    told = Counter[str]()
    left = pages
    for _ in range(TRIES):
        again: list[Int64] = []
        for at in range(0, len(left), most):
            part = left[at : at + most]
            call.opened.check_alive()
            try:
                with call.timed():
                    statuses = move(call.opened.process.pid, part, node)
            except OSError as error:
                if error.errno not in CALL_CAUSES:
                    raise
                told[CALL_CAUSES[error.errno]] += (len(left) - at + sum(map(len, again))) * page_bytes
                return told
            causes, is_busy = read_statuses(statuses)
            told.update({cause: count * page_bytes for cause, count in causes.items()})
            again.append(part[is_busy])
        left = np.concatenate([left[:0], *again])
    told[BUSY] += len(left) * page_bytes
    return told


def read_statuses(statuses: Int64) -> tuple[Counter[str], Bool]:
    """Return why pages stayed, with how many for each cause, and which ones are to be tried again.

    A page of which nothing is told was given up when another one of its batch failed.
    """
    is_busy = np.isin(statuses, (-errno.EBUSY, -errno.EIO, -errno.EAGAIN, UNTOLD))
    causes = Counter[str]()
    numbers, counts = np.unique(-statuses[(statuses < 0) & ~is_busy], return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        causes[CAUSES.get(number, os.strerror(number))] += count
    return causes, is_busy
