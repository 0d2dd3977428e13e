# SPDX-License-Identifier: Apache-2.0
"""Memory nodes read from trees as kernels write them: which are slow, how much is free, which frames they hold."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import numa
from memsculpt.host.linux.slow_node import BUSY, CAUSES, NO_ROOM, UNTOLD, read_statuses

MIB = 1 << 20
ZONEINFO = b"""\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3840
        boost    0
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 469, 469, 469, 469)
      nr_free_pages 3840
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     100000
        spanned  126976
        present  126940
        managed  120000
  node_unreclaimable:  0
  start_pfn:           4096
Node 0, zone   Normal
  pages free     0
        spanned  0
        present  0
        managed  0
Node 1, zone    DMA32
  pages free     60000
        spanned  65496
        present  65496
        managed  62000
  start_pfn:           131072
"""


def write_nodes(sys: Path, cpus: Mapping[int, str], tiers: Mapping[int, str] | None = None) -> str:
    """Make nodes of 256 MiB, half of it free, each with these processors; a node of the kernel's tiers: its nodes."""
    folder = sys / "devices/system/node"
    for number, cpulist in cpus.items():
        node = folder / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{cpulist}\n")
        (node / "distance").write_text(" ".join("10" if other == number else str(20 + number) for other in cpus) + "\n")
        (node / "meminfo").write_text(
            f"Node {number} MemTotal:       262144 kB\nNode {number} MemFree:        131072 kB\n"
            f"Node {number} Inactive(file):   4096 kB\nNode {number} HugePages_Total:     0\n"
        )
    listed = ",".join(map(str, cpus))
    (folder / "online").write_text(f"{listed}\n")
    (folder / "has_memory").write_text(f"{listed}\n")
    for tier, nodes in (tiers or {}).items():
        (sys / f"devices/virtual/memory_tiering/memory_tier{tier}").mkdir(parents=True)
        (sys / f"devices/virtual/memory_tiering/memory_tier{tier}/nodelist").write_text(f"{nodes}\n")
    return str(sys)


@given(st.lists(st.integers(0, 70), unique=True).map(sorted))
def test_lists_of_numbers_are_read_as_the_kernel_prints_them(numbers: list[int]):
    text, at = [], 0
    while at < len(numbers):
        last = at
        while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
            last += 1
        text.append(str(numbers[at]) if last == at else f"{numbers[at]}-{numbers[last]}")
        at = last + 1
    assert numa.parse_list((",".join(text) + "\n").encode()) == tuple(numbers)


def test_a_node_without_processors_is_slow(tmp_path: Path):
    nodes = numa.read_nodes(write_nodes(tmp_path, {0: "0-3", 1: "", 2: ""}))
    assert [one.number for one in numa.fast_nodes(nodes)] == [0]
    assert [one.number for one in numa.slow_nodes(nodes)] == [1, 2]  # the nearest first
    assert numa.why_none(nodes) == ""
    assert nodes[1].distances == {0: 21, 1: 10, 2: 21}
    assert (nodes[1].total_bytes, nodes[1].free_bytes, nodes[1].inactive_file_bytes) == (256 * MIB, 128 * MIB, 4 * MIB)
    assert nodes[1].room_bytes == 112 * MIB


@pytest.mark.parametrize(
    ("cpus", "tiers", "why"),
    [
        ({0: "0-3"}, None, numa.ONE_NODE),
        ({0: "0-3", 1: "4-7"}, None, numa.ALL_HAVE_CPUS),
        ({0: "0-3", 1: ""}, {2: "1", 4: "0"}, numa.ALL_FASTER),
        ({0: "0-3", 1: ""}, {4: "0-1"}, ""),
        ({0: "0-3", 1: ""}, {4: "0", 135: "1"}, ""),
    ],
)
def test_why_there_is_none(tmp_path: Path, cpus: dict[int, str], tiers: dict[int, str] | None, why: str):
    """High-bandwidth memory has no processors either, and is in a faster tier."""
    nodes = numa.read_nodes(write_nodes(tmp_path, cpus, tiers))
    assert numa.why_none(nodes) == why
    assert bool(numa.slow_nodes(nodes)) is (why == "")


def test_a_kernel_without_nodes_has_none(tmp_path: Path):
    assert numa.read_nodes(str(tmp_path)) == ()
    assert numa.why_none(()) == numa.ONE_NODE


def test_frames_by_node():
    spans = numa.parse_spans(ZONEINFO)
    assert {node: some.tolist() for node, some in spans.items()} == {
        0: [[1, 131072]],
        1: [[131072, 196568]],
    }


def test_frames_that_are_mixed_are_not_guessed(tmp_path: Path):
    nodes = numa.read_nodes(write_nodes(tmp_path, {0: "0", 1: ""}))
    near, far = numa.fast_nodes(nodes), numa.slow_nodes(nodes)
    apart = {0: np.array([[0, 100]]), 1: np.array([[100, 200]])}
    mixed = {0: np.array([[0, 300]]), 1: np.array([[100, 200]])}
    found = numa.spans_of(far, near, apart)
    assert found is not None
    assert found.tolist() == [[100, 200]]
    assert numa.spans_of(far, near, mixed) is None


def test_every_status_has_a_cause():
    """The node's number is success; what is busy or was not told is tried again, and is no cause yet."""
    statuses = np.array([1, 0, -16, -5, UNTOLD, -12, -2, -2, -99])
    causes, is_busy = read_statuses(statuses)
    assert is_busy.tolist() == [False, False, True, True, True, False, False, False, False]
    assert causes == {NO_ROOM: 1, CAUSES[2]: 2, "Cannot assign requested address": 1}
    assert CAUSES[16] == BUSY
