# SPDX-License-Identifier: Apache-2.0
"""The programs in the kernel, on kernels other than this machine's: 6.1 and 6.12."""

from __future__ import annotations

import json

import pytest

from memsculpt_bench.guests.guest import Guest

PAGES = 16 << 8  # 16 MiB
TASKS = """
import json, os
from memsculpt.host.bpf.tasks import TaskReader
from memsculpt.host.linux.processes import ProcessReader
from memsculpt.host.linux.task_processes import TaskProcesses
held = b"x" * (64 << 20)
fast, slow = TaskProcesses(TaskReader(), os.sysconf("SC_CLK_TCK"), ProcessReader()), ProcessReader()
told = {}
for name, reader in (("before", slow), ("fast", fast), ("slow", slow)):
    rows = {one.instance.pid: one for one in reader.read_all(1.0, {}, 1.0)}
    own = rows[os.getpid()]
    told[name] = {
        "pids": sorted(rows),
        "kinds": [own.detail.kinds.anon_bytes, own.detail.kinds.file_bytes],
        "names": [own.detail.exe, own.detail.user, own.detail.unified_cgroup],
    }
print(json.dumps(told))
"""
FAULTS = """
import json, mmap, os
from memsculpt.host.bpf.faults import UNMAPPED, FaultReader
reader = FaultReader()
problem = reader.watch(os.getpid())
with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
records = reader.drain()
copies = reader.drain_copies()
found = records[records["stack"] > UNMAPPED]
mine = copies[: found["copy"].max()]
print(json.dumps({
    "problem": problem,
    "faults": len(found),
    "copied": int((found["copy"] > 0).sum()),
    "least_bytes": int(mine["bytes"].min()),
    "at_home": int((mine["ip"] < 1 << 47).sum()),
}))
"""


def test_doctor_offers_both_programs(guest_of: Guest):
    rc, output = guest_of.memsculpt("doctor", "--json")
    rows = {row["name"]: row for row in json.loads(output)["capabilities"]}

    assert rc == 0
    assert rows["task_list"]["available"], rows["task_list"]["reason"]
    assert rows["page_walk"]["available"], rows["page_walk"]["reason"]
    assert rows["page_access"]["reason"].startswith("bpf")


@pytest.mark.parametrize(("kind", "pattern"), [("private", "random"), ("shared", "strided"), ("huge", "block")])
def test_the_walker_finds_every_touched_page_and_no_other(guest_of: Guest, kind, pattern):
    """Its emulated processor has a TLB, too, so the flush at the clear is tested as well."""
    told = json.loads(
        guest_of.check(
            f"python3.11 -m memsculpt_bench.guests.inside bpf {kind} {PAGES} {pattern} 0.1 1", timeout_s=120.0
        )
    )

    assert told["recall"] == [1.0]
    assert told["precision"] == [1.0]


def test_the_kernel_s_list_of_processes_is_that_of_proc(guest_of: Guest):
    told = json.loads(guest_of.python(TASKS))

    assert set(told["before"]["pids"]) & set(told["slow"]["pids"]) <= set(told["fast"]["pids"])
    assert told["fast"]["names"] == told["slow"]["names"]
    for fast, slow in zip(told["fast"]["kinds"], told["slow"]["kinds"], strict=True):
        assert fast == pytest.approx(slow, abs=2 << 20)
    assert told["fast"]["kinds"][0] > 64 << 20


def test_faults_are_recorded_with_their_stacks(guest_of: Guest):
    """256 first touches of pages: each has a copy of the stack, and that begins where the program is."""
    told = json.loads(guest_of.python(FAULTS))

    assert told["problem"] == ""
    assert told["faults"] >= 256
    assert told["copied"] == told["faults"]
    assert told["least_bytes"] >= 512
    assert told["at_home"] == told["faults"]
