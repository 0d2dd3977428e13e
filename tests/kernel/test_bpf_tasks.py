# SPDX-License-Identifier: Apache-2.0
"""The list of all processes from the kernel, held against /proc, its slow twin."""

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from memsculpt.errors import Unavailable
from memsculpt.host.bpf.tasks import RECORD, TaskReader
from memsculpt.host.linux.processes import ProcessReader
from memsculpt.host.linux.procfs import KERNEL_THREAD
from memsculpt.host.linux.task_processes import TaskProcesses
from tests.kernel.conftest import MIB

BATCH_BYTES = 64 * 4096 * (os.cpu_count() or 1)  # counts that wait on other processors (percpu_counter)
pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("task_list")]


@pytest.fixture
def tasks():
    reader = TaskReader()
    yield reader
    reader.close()


@pytest.fixture
def readers():
    """The fast one and its twin."""
    fast = TaskProcesses(TaskReader(), os.sysconf("SC_CLK_TCK"), ProcessReader())
    slow = ProcessReader()
    yield fast, slow
    fast.close()
    slow.close()


def test_the_record_is_what_the_program_writes():
    """Names, types and order of numpy's dtype are those of the header that the program is compiled with."""
    header = (Path(__file__).parents[2] / "native" / "bpf" / "records.h").read_text()
    (body,) = re.findall(r"struct task_record \{(.*?)\n\};", header, re.DOTALL)
    fields = re.findall(r"^\t(__[us]\d+|char) (\w+)(\[\d+\])?;", body, re.MULTILINE)
    kinds = {"__u64": "<u8", "__s64": "<i8", "__u32": "<u4", "char": "S"}

    assert np.dtype([(name, kinds[kind] + count.strip("[]")) for kind, name, count in fields]) == RECORD
    assert RECORD.itemsize == 128


def test_both_readers_see_the_same_processes(readers, start_holder):
    """Identity, names and cgroups exactly; what moves is bracketed between two readings of /proc."""
    holder = start_holder()
    fast, slow = readers
    before = {one.instance: one for one in slow.read_all(1.0, {}, 1.0)}
    found = {one.instance: one for one in fast.read_all(1.0, {}, 1.0)}
    after = {one.instance: one for one in slow.read_all(9.0, {}, 1.0)}
    stayed = before.keys() & after.keys()

    assert stayed <= found.keys()
    assert holder.instance in stayed
    for instance in stayed:
        low, one, high = before[instance], found[instance], after[instance]
        assert (one.detail.exe, one.detail.user) == (low.detail.exe, low.detail.user)
        assert (one.detail.memory_cgroup, one.detail.unified_cgroup) == (
            low.detail.memory_cgroup,
            low.detail.unified_cgroup,
        )
        assert low.stat.minor_faults <= one.stat.minor_faults <= high.stat.minor_faults
        assert low.stat.major_faults <= one.stat.major_faults <= high.stat.major_faults
        assert low.stat.cpu_s - 0.02 <= one.cpu_s <= high.stat.cpu_s + 0.03  # /proc counts in ticks of 10 ms
        if None not in (low.detail.io, high.detail.io):  # a sandbox's supervisor shows them to nobody
            assert low.detail.io[0] <= one.detail.io[0] <= high.detail.io[0]
        assert low.stat.thread_count == one.stat.thread_count or low.stat.thread_count != high.stat.thread_count


def test_memory_by_kind_is_as_in_status(readers, start_holder):
    """To the batches in which processors count."""
    holder = start_holder(64 * MIB)
    fast, slow = readers
    (one,) = (each for each in fast.read_all(1.0, {}, 1.0) if each.instance == holder.instance)
    (twin,) = (each for each in slow.read_all(1.0, {}, 1.0) if each.instance == holder.instance)

    assert one.detail.kinds.anon_bytes >= 64 * MIB - BATCH_BYTES
    for name in ("anon_bytes", "file_bytes", "shmem_bytes", "swapped_bytes"):
        assert getattr(one.detail.kinds, name) == pytest.approx(getattr(twin.detail.kinds, name), abs=BATCH_BYTES)


def test_threads_add_up_also_those_that_have_ended(tasks):
    """A process's time and faults are its threads' sums, and never fall when one ends."""

    def own():
        records, counts = tasks.read()
        (row,) = (records["pid"] == os.getpid()).nonzero()[0]
        return int(records["cpu_ns"][row]), int(records["minor_faults"][row]), int(counts[row])

    may_end = threading.Event()

    def work():
        held = bytearray(8 * MIB)
        end_s = time.thread_time() + 0.05
        while time.thread_time() < end_s:
            held[0] += held[0] < 200
        may_end.wait()

    before = own()
    thread = threading.Thread(target=work)
    thread.start()
    while own()[0] - before[0] < 50_000_000:
        time.sleep(0.005)
    during = own()
    may_end.set()
    thread.join()
    deadline_s = time.monotonic() + 10.0
    while (after := own())[2] > before[2]:  # the kernel's thread ends a moment after Python's
        assert time.monotonic() < deadline_s
        time.sleep(0.005)

    assert during[2] == before[2] + 1
    assert during[1] - before[1] >= 8 * MIB // 4096 // 512  # huge pages may take them in one fault
    assert after[0] >= during[0]
    assert after[1] >= during[1]


def test_kernel_threads_are_told_apart(tasks):
    """kthreadd is one, we are none."""
    records, _ = tasks.read()
    flags = dict(zip(records["pid"].tolist(), records["flags"].tolist(), strict=True))

    assert flags[2] & KERNEL_THREAD
    assert not flags[os.getpid()] & KERNEL_THREAD


def test_nothing_is_left_in_the_kernel():
    """Hundreds of loads and reads, while processes come and go: no descriptor, and the program is gone at the end."""
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        reader = TaskReader()
        for _ in range(10):
            subprocess.run(["/bin/true"], check=True)
            reader.read()
        reader.close()
        reader.close()
    names = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, check=True).stdout
    mine = [one for one in json.loads(names) if any(pid["pid"] == os.getpid() for pid in one.get("pids", ()))]

    assert len(os.listdir("/proc/self/fd")) == opened
    assert mine == []


def test_a_program_that_is_not_there_or_is_none_says_so(tmp_path):
    """Not compiled: how to; no object file: libbpf's own words; and nothing stays open."""
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="was not compiled"):
        TaskReader(tmp_path)
    Path(tmp_path, "tasks.bpf.o").write_bytes(b"no object")
    with pytest.raises(Unavailable, match="cannot be opened"):
        TaskReader(tmp_path)

    assert len(os.listdir("/proc/self/fd")) == opened
