# SPDX-License-Identifier: Apache-2.0
"""Memory that is neither private nor a file's: what is asked of huge TLB pages and of a device's memory is refused."""

from __future__ import annotations

import json

import pytest

from memsculpt_bench.guests.guest import Guest

MIB = 1 << 20
# Maps both, fills the first, and says after a line of input whether it still holds what was written.
HOLDER = """
import ctypes, glob, mmap, os, sys
start_of = lambda memory: ctypes.addressof(ctypes.c_char.from_buffer(memory))
reserved = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)  # MAP_HUGETLB
content = os.urandom(4 << 20)
reserved[:] = content
def registers_of(paths):  # of the first that has memory: ports cannot be mapped; never touched, for reading has effects
    for path in paths:
        try:
            with open(path, "r+b") as file:
                return mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_SHARED)
        except (OSError, ValueError):  # ports, or less than a page
            continue
registers = registers_of(sorted(glob.glob("/sys/bus/pci/devices/*/resource[0-9]")))
print(start_of(reserved), start_of(registers), flush=True)
for line in sys.stdin:
    print(reserved[:] == content, flush=True)
"""
SCULPT = """
import json, subprocess, sys
from memsculpt.domain.settings import Settings
from memsculpt.host.linux import LinuxHost
from memsculpt.host.sources import find_process
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
reserved, device = map(int, child.stdout.readline().split())
host, process = LinuxHost(Settings()), find_process(child.pid)
ranges = sorted([(reserved, reserved + (4 << 20)), (device, device + 4096)])
told = {}
for name in ("page_out_ranges", "bring_in_ranges", "collapse", "split"):
    done = getattr(host, name)(process, ranges)
    told[name] = [done.moved_bytes, dict(done.problems)]
child.stdin.write("check\\n")
child.stdin.flush()
told["is_right"] = child.stdout.readline().strip()
child.kill()
print(json.dumps(told))
"""


@pytest.fixture
def reserved_pages(guest_612: Guest):
    """Two huge pages of the guest are set aside; nobody's afterwards."""
    guest_612.check("echo 2 > /proc/sys/vm/nr_hugepages && [ $(cat /proc/sys/vm/nr_hugepages) = 2 ]")
    yield
    guest_612.check("echo 0 > /proc/sys/vm/nr_hugepages")


@pytest.mark.usefixtures("reserved_pages")
def test_huge_tlb_and_device_memory_are_left(guest_612: Guest):
    """Told by cause, whatever is asked for; neither is moved, and what was written stands."""
    told = json.loads(guest_612.python(SCULPT, HOLDER).splitlines()[-1])
    assert told.pop("is_right") == "True"
    assert set(told) == {"page_out_ranges", "bring_in_ranges", "collapse", "split"}
    for moved_bytes, left in told.values():
        assert moved_bytes == 0
        assert left == {"huge TLB memory": 4 * MIB, "a device's": 4096}
