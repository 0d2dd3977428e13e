# SPDX-License-Identifier: Apache-2.0
"""Memory nodes: which have processors, which are slow, how much is free there, and which frames they hold.

A slow node is one that has memory and no processors: memory behind CXL, persistent memory, an expander. Where the
kernel sorts nodes into tiers, one that it holds for faster than those with processors is none (high-bandwidth memory
has no processors either).

Source: Documentation/ABI/stable/sysfs-devices-node, Documentation/ABI/testing/sysfs-kernel-mm-memory-tiers (Linux 6.1),
proc_zoneinfo(5).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import HostMemory
from memsculpt.host.linux import procfs, runs
from memsculpt.host.linux.meminfo import parse_meminfo

SYS = "/sys"
# Below the kernel's own watermarks it would begin to reclaim on the node; a migration must never be the cause.
RESERVE_RATIO = 1 / 16
LOOKED_FOR_EVERY_S = 60.0
ZONE = re.compile(rb"^Node (\d+), zone ")
NUMBERS = re.compile(rb"^(\d+)(?:-(\d+))?$")
ONE_NODE = "this machine has one memory node: there is no slower one"
ALL_HAVE_CPUS = "every memory node of this machine has processors: none is a slow one (CXL, persistent memory)"
ALL_FASTER = "the memory nodes without processors are faster than those with (high-bandwidth memory)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that has memory."""

    number: int
    has_cpus: bool
    tier: int | None  # as the kernel sorts them, lower is faster; None where it does not
    distances: Mapping[int, int]  # by number of the other node; 10 is its own
    total_bytes: int
    free_bytes: int
    inactive_file_bytes: int = 0  # page cache that was not used of late

    @property
    def room_bytes(self) -> int:
        """Return how much may still be moved there."""
        return max(0, self.free_bytes - int(RESERVE_RATIO * self.total_bytes))


def parse_list(content: bytes) -> tuple[int, ...]:
    """Return the numbers of a list as the kernel prints it ("0-1,3"); of an empty one none."""
    found: list[int] = []
    for part in content.split(b","):
        if numbers := NUMBERS.match(part.strip()):
            found.extend(range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1))
    return tuple(found)


def parse_spans(content: bytes) -> Mapping[int, Int64]:
    """Return by node which frames its zones span, as ascending runs of frame numbers; content of /proc/zoneinfo.

    A zone without pages tells no first frame. A span may have holes, and those may be another node's.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    node, spanned = -1, 0
    for line in content.splitlines():
        if head := ZONE.match(line):
            node, spanned = int(head[1]), 0
            continue
        words = line.split()
        if len(words) == 2 and words[0] == b"spanned":
            spanned = int(words[1])
        elif len(words) == 2 and words[0] == b"start_pfn:" and spanned:
            found.setdefault(node, []).append((int(words[1]), int(words[1]) + spanned))
    return {node: runs.joined([np.array(sorted(some), np.int64)]) for node, some in found.items()}


def read_nodes(sys: str = SYS) -> tuple[Node, ...]:
    """Return every node that has memory, by number; none where the kernel knows no nodes. Raises OSError."""
    folder = f"{sys}/devices/system/node"
    try:
        online = parse_list(procfs.read_file(f"{folder}/online"))
        with_memory = parse_list(procfs.read_file(f"{folder}/has_memory"))
    except FileNotFoundError:  # a kernel without CONFIG_NUMA
        return ()
    tiers = _read_tiers(sys)
    found: list[Node] = []
    for number in with_memory:
        place = f"{folder}/node{number}"
        try:
            distances = [int(word) for word in procfs.read_file(f"{place}/distance").split()]
            # Its lines are those of /proc/meminfo behind "Node N ".
            sizes = parse_meminfo(procfs.read_file(f"{place}/meminfo").replace(b"Node %d " % number, b""))
            has_cpus = bool(parse_list(procfs.read_file(f"{place}/cpulist")))
        except FileNotFoundError:  # taken offline meanwhile
            continue
        found.append(
            Node(
                number=number,
                has_cpus=has_cpus,
                tier=tiers.get(number),
                distances=dict(zip(online, distances, strict=False)),
                total_bytes=sizes.get("MemTotal", 0),
                free_bytes=sizes.get("MemFree", 0),
                inactive_file_bytes=sizes.get("Inactive(file)", 0),
            )
        )
    return tuple(found)


def fast_nodes(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes that programs run on."""
    return tuple(one for one in nodes if one.has_cpus)


def slow_nodes(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the slow nodes, the nearest to any processor first."""
    near = fast_nodes(nodes)
    tiers = [one.tier for one in near if one.tier is not None]
    found = [
        one
        for one in nodes
        if not one.has_cpus and near and not (one.tier is not None and tiers and one.tier < min(tiers))
    ]
    return tuple(sorted(found, key=lambda one: (distance_to(one, near), one.number)))


def distance_to(node: Node, others: Sequence[Node]) -> int:
    """Return how far the nearest of the others is."""
    return min((node.distances.get(one.number, 1 << 16) for one in others), default=1 << 16)


def why_none(nodes: Sequence[Node]) -> str:
    """Return why there is no slow node, "" where there is one."""
    if slow_nodes(nodes):
        return ""
    if len(nodes) < 2:
        return ONE_NODE
    return ALL_HAVE_CPUS if all(one.has_cpus for one in nodes) else ALL_FASTER


def spans_of(some: Sequence[Node], others: Sequence[Node], spans: Mapping[int, Int64]) -> Int64 | None:
    """Return the frames of `some` nodes; None where those of `others` lie among them, so that they cannot be told."""
    mine, theirs = (_joined(spans, nodes) for nodes in (some, others))
    return None if len(runs.intersection(mine, theirs)) else mine


class SlowNodeReader:
    """Tells a planner of a slow node; where there is none it looks for one only now and then."""

    def __init__(self, sys: str = SYS) -> None:
        self._sys, self._looks_at_s = sys, float("-inf")

    def told_of(self, memory: HostMemory, now_s: float) -> HostMemory:
        """Return the totals with what is known of a slow node. Raises OSError."""
        if now_s < self._looks_at_s:
            return memory
        nodes = read_nodes(self._sys)
        slow = slow_nodes(nodes)
        if not slow:
            self._looks_at_s = now_s + LOOKED_FOR_EVERY_S
            return memory
        near = fast_nodes(nodes)
        return replace(
            memory,
            slow_room_bytes=sum(one.room_bytes for one in slow),
            fast_total_bytes=sum(one.total_bytes for one in near),
            fast_spare_bytes=sum(one.free_bytes + one.inactive_file_bytes for one in near),
        )


def _joined(spans: Mapping[int, Int64], nodes: Sequence[Node]) -> Int64:
    found = runs.NONE
    for one in nodes:
        found = runs.union(found, spans.get(one.number, runs.NONE))
    return found


def _read_tiers(sys: str) -> Mapping[int, int]:
    """Return the tier of each node, by number; none on kernels that know no tiers."""
    folder = f"{sys}/devices/virtual/memory_tiering"
    found: dict[int, int] = {}
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # before Linux 6.1
        return found
    for name in names:
        _, is_tier, rank = name.partition("memory_tier")
        if is_tier and rank.isdigit():
            nodes = parse_list(procfs.read_file(f"{folder}/{name}/nodelist"))
            found.update(dict.fromkeys(nodes, int(rank)))
    return found
