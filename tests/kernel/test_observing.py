# SPDX-License-Identifier: Apache-2.0
"""Looking at real processes that fork, hide behind names, run in threads and change places."""

import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath, Match
from memsculpt_bench.lab import poll
from tests.kernel.conftest import CGROUPS, remove

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/vm looks at cgroup v2"),
]

WORKER = """
import sys, threading, time
begin, done = threading.Semaphore(0), threading.Semaphore(0)
def work():
    while True:
        begin.acquire()
        until = time.thread_time() + 0.002
        while time.thread_time() < until: pass
        done.release()
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    begin.release(); done.acquire()
    print("worked", flush=True)
"""
FORKER = """
import os, sys
print("ready", flush=True)
while True:
    if os.fork() == 0:
        os._exit(0)
    os.wait()
"""
SLEEPER = "import sys\nprint('ready', flush=True)\nsys.stdin.read()\n"


def adopting(folder: Path, name: str = "own") -> PartitionSettings:
    return PartitionSettings(name=name, match=Match(cgroup=os.fsdecode(os.fsencode(folder.name))))


def cpu_s(seen, pid) -> float:
    return float(seen.processes.cpu_s[seen.processes.pids.tolist().index(pid)])


def workload_of(seen, pid) -> str:
    return seen.workloads.ids[seen.processes.workload_index[seen.processes.pids.tolist().index(pid)]]


def test_a_thread_that_works_for_two_milliseconds_is_seen(host, start, own_folder):
    """Processor time of any thread counts, also below a clock tick: who has worked is not cold."""
    worker = start(WORKER, own_folder)
    host.watch([adopting(own_folder)])
    before = [cpu_s(host.observe(), worker.pid)]
    for _ in range(10):
        assert worker.ask("work") == "worked"
        before.append(cpu_s(host.observe(), worker.pid))

    assert min(later - earlier for earlier, later in pairwise(before)) >= 0.002


def test_threads_that_sleep_use_nothing(host, start, own_folder):
    """Between two looks at a sleeping process of two threads its processor time stands still, to the nanosecond."""
    worker = start(WORKER, own_folder)
    host.watch([adopting(own_folder)])
    worker.ask("work")
    time.sleep(0.05)
    first = cpu_s(host.observe(), worker.pid)
    time.sleep(0.1)

    assert cpu_s(host.observe(), worker.pid) == first


def test_a_storm_of_forks_is_survived(host, start, own_folder):
    """Thousands of short lives while we look: nothing raises, rows stay joined, counters of the cgroup never fall."""
    forker = start(FORKER, own_folder)
    host.watch([adopting(own_folder)])
    last_s = 0.0
    until_s = time.monotonic() + 1.0
    looks = 0
    while time.monotonic() < until_s:
        seen = host.observe()
        row = seen.workloads.ids.index(own_folder.name)
        assert workload_of(seen, forker.pid) == own_folder.name
        assert seen.workloads.cpu_s[row] >= last_s
        last_s = seen.workloads.cpu_s[row]
        looks += 1

    assert looks >= 3


def test_names_that_were_made_to_hurt(host, tmp_path):
    """A program, and so its comm, with a newline, a bracket and a byte that is no UTF-8 is seen in one piece."""
    program = os.fsencode(tmp_path) + b"/a\n) S 1 \xff"
    shutil.copy("/bin/sleep", program)
    child = subprocess.Popen([program, b"60"])
    try:
        comm = Path(f"/proc/{child.pid}/comm")
        poll(lambda: comm.read_bytes() == b"a\n) S 1 \xff\n", what="the child's new name")
        rule = Match(exe=os.fsdecode(program))
        host.watch([PartitionSettings(name="hostile", match=rule)])
        seen = host.observe()
        row = seen.workloads.ids.index("exe:" + os.fsdecode(program))

        assert workload_of(seen, child.pid) == "exe:" + os.fsdecode(program)
        assert seen.workloads.partitions[row] == "hostile"
        assert seen.workloads.process_count[row] == 1
    finally:
        child.kill()
        child.wait()


def test_a_cgroup_whose_name_is_no_utf8(host, start, own_cgroup_name):
    """Its bytes go out and come back unchanged: it is adopted, limited, and found as the place of its process."""
    folder = CGROUPS / os.fsdecode(os.fsencode(own_cgroup_name) + b"-\xff x")
    folder.mkdir()
    try:
        child = start(SLEEPER, folder)
        host.watch([adopting(folder)])
        path = CgroupPath(folder.name)
        held = host.write_limit(path, LimitKind.LIMIT, 64 << 20)

        assert workload_of(host.observe(), child.pid) == path
        assert host.cgroup_of(child.instance()) == path
        assert (folder / "memory.limit_in_bytes").read_bytes() == held.text.encode() + b"\n"
        child.end()
    finally:
        remove(folder)


def test_who_leaves_a_partition_is_placed_anew_at_once(host, start, own_folder):
    """Although others are read in full only once a minute here."""
    child = start(SLEEPER, own_folder)
    host.watch([adopting(own_folder)])
    assert workload_of(host.observe(), child.pid) == own_folder.name
    (CGROUPS / "cgroup.procs").write_text(str(child.pid))

    assert workload_of(host.observe(), child.pid) != own_folder.name


def test_children_of_an_adopted_cgroup_are_one_with_it(host, start, own_folder):
    """Whoever lives below belongs to the whole, and the cgroup's own account holds all of it."""
    below = own_folder / "below" / "deeper"
    below.mkdir(parents=True)
    try:
        child = start(SLEEPER, below)
        host.watch([adopting(own_folder)])
        seen = host.observe()
        row = seen.workloads.ids.index(own_folder.name)

        assert workload_of(seen, child.pid) == own_folder.name
        assert seen.workloads.anon_bytes[row] > 0
        child.end()
    finally:
        remove(below)
        remove(below.parent)


def test_the_agent_keeps_room_for_its_own_files(start):
    """With few files allowed, looking at more processes than that still works."""
    code = (
        "import resource, os, subprocess\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "import sys; sys.path[:0] = %r\n"
        "from memsculpt.domain.settings import Settings\n"
        "from memsculpt.host.linux import LinuxHost\n"
        "sleepers = [subprocess.Popen(['sleep', '20']) for _ in range(80)]\n"
        "try:\n"
        "    host = LinuxHost(Settings())\n"
        "    host.observe()\n"
        "    found = set(host.observe().processes.pids.tolist())\n"
        "    print(len(found & {one.pid for one in sleepers}), len(os.listdir('/proc/self/fd')) < 64, flush=True)\n"
        "finally:\n"
        "    [one.kill() for one in sleepers]; [one.wait() for one in sleepers]\n"
    )
    assert start(code % [path for path in sys.path if path]).first == "80 True"
