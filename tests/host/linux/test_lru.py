# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from memsculpt.host.linux import lru


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("", set()), ("\n", set()), ("3\n", {3}), ("0-2,8", {0, 1, 2, 8}), ("5-,x,7", {5, 7})],
)
def test_lists_of_processors(content, cpus):
    assert lru.parse_cpus(content) == cpus


def test_draining_leaves_the_thread_where_it_may_run():
    before = os.sched_getaffinity(0)
    assert lru.drain_batches() >= 1
    assert os.sched_getaffinity(0) == before


def test_isolated_processors_are_left_alone(tmp_path):
    folder = tmp_path / "devices/system/cpu"
    folder.mkdir(parents=True)
    cpus = sorted(os.sched_getaffinity(0))
    (folder / "isolated").write_text(",".join(str(cpu) for cpu in cpus[1:]) + "\n")
    assert lru.drain_batches(str(tmp_path)) == 1
