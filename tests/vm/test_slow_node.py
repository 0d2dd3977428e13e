# SPDX-License-Identifier: Apache-2.0
"""A memory node without processors: ranges of a process move there and back, on real kernels with two nodes.

What the host says is compared with /proc/PID/numa_maps, which counts in a way of its own, and contents with what the
process wrote.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from memsculpt_bench.guests.guest import Guest

PAGE, MIB, REGION = 4096, 1 << 20, 2 << 20
FOLDER = "/tmp/slow"
SLOWLY_S = 240.0  # emulated, on a machine that others use
# Fills memory, says where it is, and at each SIGUSR1 whether it still holds what was written.
HOLDER = """
import ctypes, mmap, os, pathlib, signal, sys
size, kind, told = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
room = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
room.madvise(mmap.MADV_HUGEPAGE if kind == "huge" else mmap.MADV_NOHUGEPAGE)
held = ctypes.addressof(ctypes.c_char.from_buffer(room))
skip = -held % (2 << 20)
noise = os.urandom(4088)
pages = [(skip + 4096 * page, page.to_bytes(8, "little") + noise) for page in range(size // 4096)]
for at, content in pages:
    room[at : at + 4096] = content
checks = 0
def check(*_):
    global checks
    checks += 1
    wrong = sum(room[at : at + 4096] != content for at, content in pages)
    told.write_text(f"{held + skip} {checks} {wrong}\\n")
signal.signal(signal.SIGUSR1, check)
if kind == "forked" and os.fork() == 0:
    while True: signal.pause()
told.write_text(f"{held + skip} 0 0\\n")
while True: signal.pause()
"""
# The host, asked line by line: NUMBER NAME PID START END [START END ...], or NUMBER room.
HOST = """
import json, os, traceback
from memsculpt.host.linux.opened import find_instance
from memsculpt.host.linux.sculptor import LinuxSculptor
from memsculpt.host.linux.slow_node import LinuxSlowNode
class Host(LinuxSculptor, LinuxSlowNode):
    _guests = {}
host = Host()
def answer(name, pid=0, *edges):
    if name == "room":
        return host.slow_room_bytes()
    done = getattr(host, name)(find_instance(pid), list(zip(edges[::2], edges[1::2])))
    if name == "slow_runs":
        return done.tolist()
    return {"moved": done.moved_bytes, "by_range": done.done_bytes.tolist(), "left": done.problems}
while True:
    with open("/tmp/slow/ask") as asked:
        for line in asked:
            number, name, *rest = line.split()
            try:
                told = answer(name, *map(int, rest))
            except Exception:
                told = traceback.format_exc()
            with open(f"/tmp/slow/answer-{number}.new", "w") as file:
                json.dump(told, file)
            os.rename(f"/tmp/slow/answer-{number}.new", f"/tmp/slow/answer-{number}")
"""
_numbers = itertools.count()


def ask(guest: Guest, *words: object) -> Any:
    """Have the host in the guest do something, and return what it says."""
    number = next(_numbers)
    guest.check(shlex.join(["echo", str(number), *map(str, words)]) + f" > {FOLDER}/ask", timeout_s=SLOWLY_S)
    guest.wait_until(f"[ -e {FOLDER}/answer-{number} ]", timeout_s=SLOWLY_S)
    return json.loads(guest.check(f"cat {FOLDER}/answer-{number}"))


@dataclass(frozen=True)
class Holder:
    """A process of the guest with known contents."""

    guest: Guest
    pid: int
    start: int
    size_bytes: int
    told: str

    def call(self, name: str, *parts: tuple[float, float]) -> Any:
        """Have the host do something with parts of the memory, in MiB from its start."""
        return ask(self.guest, name, self.pid, *(self.start + round(each * MIB) for part in parts for each in part))

    def pages_on(self, node: int) -> int:
        """Return how many pages of its memory the kernel counts on a node."""
        found = 0
        for line in self.guest.check(f"cat /proc/{self.pid}/numa_maps").splitlines():
            words = line.split()
            if self.start - REGION < int(words[0], 16) <= self.start:
                found += sum(int(word.split("=")[1]) for word in words if word.startswith(f"N{node}="))
        return found

    def is_unchanged(self) -> bool:
        """Have the process read all of its memory, and tell whether it holds what was written."""
        before = int(self.guest.check(f"cut -d' ' -f2 {self.told}"))
        self.guest.check(f"kill -USR1 {self.pid}")
        self.guest.wait_until(f"[ $(cut -d' ' -f2 {self.told}) -gt {before} ]", timeout_s=SLOWLY_S)
        return self.guest.check(f"cut -d' ' -f3 {self.told}") == "0"


@pytest.fixture
def hold(guest_slow: Guest) -> Iterator[Callable[..., Holder]]:
    """Start a process that holds so many MiB, all of it on the node of the processor; it is gone after the test."""
    guest_slow.check(f"mkdir -p {FOLDER}")
    guest_slow.write_file(f"{FOLDER}/holder.py", HOLDER.encode())
    if guest_slow.sh(f"[ -p {FOLDER}/ask ]").rc:
        guest_slow.write_file(f"{FOLDER}/host.py", HOST.encode())
        guest_slow.check(f"mkfifo {FOLDER}/ask; python3.11 {FOLDER}/host.py >{FOLDER}/host.log 2>&1 &")
    pids: list[int] = []

    def start(mib: int, kind: str = "small", cgroup: str = "") -> Holder:
        told = f"{FOLDER}/told-{len(pids)}"
        enter = f"echo 0 > {cgroup}/cgroup.procs; " if cgroup else ""
        program = shlex.join(["exec", "python3.11", f"{FOLDER}/holder.py", str(mib * MIB), kind, told])
        guest_slow.check(f"rm -f {told}; ({enter}{program}) >{FOLDER}/log 2>&1 & echo $! > {FOLDER}/pid")
        pids.append(int(guest_slow.check(f"cat {FOLDER}/pid")))
        guest_slow.wait_until(f"[ -s {told} ] || {{ cat {FOLDER}/log; false; }}", timeout_s=SLOWLY_S)
        start_at = int(guest_slow.check(f"cut -d' ' -f1 {told}"))
        return Holder(guest_slow, pids[-1], start_at, mib * MIB, told)

    yield start
    for pid in pids:
        guest_slow.check(f"pkill -9 -P {pid}; kill -9 {pid} 2>/dev/null; true")
        guest_slow.wait_until(f"! kill -0 {pid} 2>/dev/null")


def test_doctor_names_the_node(guest_slow: Guest):
    rc, output = guest_slow.memsculpt("doctor", "--json", timeout_s=SLOWLY_S)
    (row,) = [row for row in json.loads(output)["capabilities"] if row["name"] == "slow_node"]
    assert rc == 0
    assert row["available"], row
    assert "node 1" in row["reason"]


def test_ranges_go_there_and_come_back(hold: Callable[..., Holder]):
    """Every page of the ranges and no other, by the kernel's own count; the contents are as written at every step."""
    holder = hold(32)
    assert holder.pages_on(1) == 0
    done = holder.call("to_slow_node", (0, 16), (24, 24.5))
    assert (done["moved"], done["by_range"]) == (16.5 * MIB, [16 * MIB, MIB // 2])
    assert holder.pages_on(1) == 16.5 * MIB // PAGE
    assert holder.is_unchanged()
    assert holder.pages_on(1) == 16.5 * MIB // PAGE  # reading it brings nothing back
    at = holder.start
    assert holder.call("slow_runs", (0, 32)) == [[at, at + 16 * MIB], [at + 24 * MIB, at + 24 * MIB + MIB // 2]]
    again = holder.call("to_slow_node", (0, 16))
    assert (again["moved"], again["left"]) == (0, {"lies on the slow node already": 16 * MIB})

    back = holder.call("from_slow_node", (8, 32))
    assert back["moved"] == 8.5 * MIB
    assert holder.pages_on(1) == 8 * MIB // PAGE
    assert holder.call("from_slow_node", (0, 32))["moved"] == 8 * MIB
    assert holder.pages_on(1) == 0
    assert holder.is_unchanged()


def test_from_there_pages_go_to_the_swap_and_back(hold: Callable[..., Holder]):
    """What is colder still leaves the slow node, too."""
    holder = hold(16)
    holder.call("to_slow_node", (0, 16))
    out = holder.call("page_out_ranges", (0, 8))
    assert out["moved"] == pytest.approx(8 * MIB, abs=0.5 * MIB)
    assert holder.pages_on(1) == pytest.approx(8 * MIB // PAGE, abs=128)
    assert holder.call("bring_in_ranges", (0, 8))["moved"] == out["moved"]
    assert holder.is_unchanged()


def test_a_huge_page_moves_whole_or_not_at_all(hold: Callable[..., Holder]):
    holder = hold(16, "huge")
    huge = f"grep -A25 '^{holder.start:x}' /proc/{holder.pid}/smaps | grep AnonHugePages | tr -dc 0-9"
    whole = f"awk '/AnonHugePages/ {{ sum += $2 }} END {{ print sum }}' /proc/{holder.pid}/smaps"
    before = int(holder.guest.check(whole))
    assert before >= 16 * MIB // 1024, holder.guest.check(huge)
    done = holder.call("to_slow_node", (2, 7))
    assert done["moved"] == 4 * MIB
    assert done["left"] == {"part of a huge page, which moves as a whole or not at all": MIB}
    assert holder.pages_on(1) == 4 * MIB // PAGE
    assert int(holder.guest.check(whole)) == before
    assert holder.is_unchanged()


def test_what_a_forked_process_shares_stays(hold: Callable[..., Holder]):
    holder = hold(4, "forked")
    done = holder.call("to_slow_node", (0, 4))
    assert done["moved"] == 0
    assert sum(done["left"].values()) == 4 * MIB
    assert list(done["left"]) == ["shared with a forked process, or merged with equal pages"]
    assert holder.pages_on(1) == 0


def test_the_node_keeps_its_reserve(hold: Callable[..., Holder]):
    """More than fits is asked for: a sixteenth of the node stays free, and the rest is told."""
    holder = hold(136)
    room = ask(holder.guest, "room")
    assert 64 * MIB < room < 128 * MIB
    done = holder.call("to_slow_node", (0, 136))
    assert done["moved"] == pytest.approx(room, abs=8 * MIB)
    assert done["moved"] + done["left"]["no room on the node beyond its reserve"] == 136 * MIB
    assert ask(holder.guest, "room") < 8 * MIB
    free = holder.guest.check("awk '/MemFree/ { print $4 }' /sys/devices/system/node/node1/meminfo")
    assert int(free) * 1024 > 4 * MIB
    assert holder.is_unchanged()


def test_a_cpuset_that_does_not_allow_the_node_is_kept(hold: Callable[..., Holder], guest_slow: Guest):
    cgroup = "/sys/fs/cgroup/near"
    guest_slow.check(
        f"echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control; mkdir {cgroup}; echo 0 > {cgroup}/cpuset.mems"
    )
    try:
        holder = hold(4, cgroup=cgroup)
        done = holder.call("to_slow_node", (0, 4))
        assert (done["moved"], done["left"]) == (0, {"its cpuset does not allow the node": 4 * MIB})
        assert holder.pages_on(1) == 0
    finally:
        guest_slow.check(f"echo 1 > {cgroup}/cgroup.kill")
        guest_slow.wait_until(f"rmdir {cgroup}")
