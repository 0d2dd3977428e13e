# SPDX-License-Identifier: Apache-2.0
"""Which mappings may be sculpted, and what runs of pages come to within ranges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import runs
from memsculpt.host.linux.maps import parse_mappings
from memsculpt.host.linux.sculpt_call import why_not

MAPS = {
    "7f0000000000-7f0000200000 rw-p 00000000 00:00 0": "",
    "7f0000000000-7f0000200000 rw-p 00000000 00:00 0  [heap]": "",
    "7f0000000000-7f0000200000 rw-p 00000000 00:00 0  [anon:arena]": "",
    "7f0000000000-7f0000200000 ---p 00000000 00:00 0": "not writable",
    "7f0000000000-7f0000200000 r--p 00000000 00:00 0": "not writable",
    "7f0000000000-7f0000200000 rw-p 00000000 00:00 0  [stack]": "a stack, or the kernel's",
    "7f0000000000-7f0000200000 rw-s 00000000 00:01 42  /dev/zero (deleted)": "shared memory",
    "7f0000000000-7f0000200000 rw-p 00000000 08:01 42  /usr/lib/libc.so.6": "a file's",
    "7f0000000000-7f0000200000 rw-p 00000000 00:10 42  /anon_hugepage (deleted)": "huge TLB memory",
    "7f0000000000-7f0000200000 rw-p 00000000 00:05 42  /dev/mem": "a device's",
    "7f0000000000-7f0000200000 rw-s 00000000 00:14 42  /sys/devices/pci0000:00/0000:00:02.0/resource0": "a device's",
    "7f0000000000-7f0000200000 rw-s 00000000 00:1a 42  /dev/shm/ring": "shared memory",
}


@pytest.mark.parametrize("line", MAPS)
def test_only_private_writable_anonymous_memory_is_sculpted(line: str):
    (mapping,) = parse_mappings(line.encode())
    assert why_not(mapping) == MAPS[line]


def sets():
    return st.sets(st.integers(0, 60), max_size=12).map(
        lambda edges: np.array(sorted(edges)[: len(edges) // 2 * 2], np.int64).reshape(-1, 2)
    )


@given(sets(), sets())
def test_runs_are_measured_within_ranges(one, other):
    pages = {page for start, end in one.tolist() for page in range(start, end)}
    expected = [len(pages & set(range(start, end))) for start, end in other.tolist()]
    assert runs.measure(one, other).tolist() == expected
