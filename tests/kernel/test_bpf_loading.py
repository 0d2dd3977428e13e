# SPDX-License-Identifier: Apache-2.0
"""The process that loads a program: what it spares its caller, and what is left when it fails."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memsculpt.errors import Unavailable
from memsculpt.host.bpf.program import PROGRAMS, Program
from memsculpt.host.bpf.tasks import TaskReader

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("task_list")]

PEAK = """
import re
from pathlib import Path
from memsculpt.host.bpf.program import PROGRAMS, Program
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
with Program(PROGRAMS / "tasks.bpf.o"):
    print(peak_kib() - before)
"""


def children_of(pid):
    found = []
    for one in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = one.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(one.parent.name))
    return found


def descriptors():
    """What is open, but for the listing itself."""
    return sorted(one for one in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{one}"))


def loader_of(pid):
    """The loading process of this one, as soon as it is there."""
    deadline_s = time.monotonic() + 10.0
    while True:
        for one in children_of(pid):
            if b"libbpf.py" in Path(f"/proc/{one}/cmdline").read_bytes():
                return one
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def endless(tmp_path):
    """An object that nobody ever writes: who opens it waits."""
    path = tmp_path / "endless.bpf.o"
    os.mkfifo(path)
    return path


def test_the_kernel_s_types_are_not_read_in_the_caller():
    """They are 5.5 MiB here, and libbpf holds them twice for a moment."""
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)

    assert int(done.stdout) < 2 << 10


def test_no_process_and_no_descriptor_is_left():
    opened, children = descriptors(), children_of(os.getpid())
    for _ in range(3):
        TaskReader().close()

    assert descriptors() == opened
    assert children_of(os.getpid()) == children


def test_what_is_handed_over_is_not_inherited():
    """A process that we start later must not keep a program in the kernel."""
    with Program(PROGRAMS / "pagewalk.bpf.o") as program:
        program.iterator("walk_pages")
        ours = [int(one) for one in descriptors() if "bpf" in os.readlink(f"/proc/self/fd/{one}")]

        assert len(ours) == 5  # program, three maps, link
        assert not any(os.get_inheritable(one) for one in ours)


def test_a_map_of_a_closed_program_says_so():
    program = Program(PROGRAMS / "faults.bpf.o", {"faults": 4096, "stacks": 1})
    watched = program.map("watched")
    state = program.map("state")
    program.close()
    program.close()

    with pytest.raises(OSError, match="watched: Bad file descriptor"):
        watched.get(bytes(4))
    with pytest.raises(OSError, match="Bad file"):
        state.memory()


def test_a_map_that_the_object_does_not_have_is_named():
    opened = descriptors()
    with pytest.raises(Unavailable, match=r"cannot be loaded: map none: No such file"):
        Program(PROGRAMS / "tasks.bpf.o", {"none": 1})

    assert descriptors() == opened


def test_too_few_descriptors_are_an_error_and_none_is_lost():
    """At each number of free ones: it works, or it says so and gives back what it had got."""
    opened = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = [number for number in range(256) if str(number) not in opened]
    told = set()
    try:
        for free in range(24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (unused[free], hard))
            try:
                Program(PROGRAMS / "faults.bpf.o", {"faults": 4096, "stacks": 1}).close()
                told.add("")
            except Unavailable as error:
                told.add(error.problem)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert descriptors() == opened
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert told == {
        "",
        "cannot be loaded: Too many open files",
        "cannot be loaded: no descriptors are left to take it over",
    }


def test_a_loader_that_is_killed_is_told(endless):
    opened = descriptors()
    killer = threading.Thread(target=lambda: os.kill(loader_of(os.getpid()), signal.SIGKILL))
    killer.start()
    with pytest.raises(Unavailable, match="cannot be loaded: the process that loads it ended with signal 9"):
        Program(endless)
    killer.join()

    assert descriptors() == opened


def test_a_loader_that_breaks_tells_its_last_words():
    opened = descriptors()
    with pytest.raises(Unavailable, match="ended with exit code 1: UnicodeEncodeError"):
        Program(PROGRAMS / "tasks.bpf.o", {"täsks": 1})

    assert descriptors() == opened


def test_a_library_that_cannot_be_loaded_is_told_with_what_to_install(tmp_path, monkeypatch):
    Path(tmp_path, "libbpf.so.1").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    with pytest.raises(Unavailable, match=r"libbpf\.so\.1: is not installed") as raised:
        TaskReader()
    assert "apt install libbpf1" in raised.value.fix


def test_a_loader_does_not_outlive_who_asked(endless):
    asks = f"from pathlib import Path; from memsculpt.host.bpf.program import Program; Program(Path({str(endless)!r}))"
    asker = subprocess.Popen([sys.executable, "-c", asks])
    try:
        loader = loader_of(asker.pid)
    finally:
        asker.kill()
        asker.wait()
    deadline_s = time.monotonic() + 10.0
    while Path(f"/proc/{loader}/cmdline").exists() and Path(f"/proc/{loader}/cmdline").read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
