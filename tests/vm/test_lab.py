# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what the guests promise to the tests that use them."""

from __future__ import annotations

import dataclasses
import os

import pytest

from memsculpt_bench.guests import image, initramfs, lab
from memsculpt_bench.guests.guest import Guest, GuestError


def test_the_probe_says_what_is_there_or_missing(monkeypatch, tmp_path):
    """Without its programs the lab is not available, and the reason names the packages to install."""
    monkeypatch.setenv("PATH", str(tmp_path))

    possible, reason = lab.probe({"no-such-qemu": "qemu-system-x86"})

    assert not possible
    assert "apt-get install" in reason
    assert "qemu-system-x86" in reason


def test_cpio_entries_are_aligned_and_complete():
    """Each header starts at a multiple of four, and sizes are those of the content, whatever the lengths of names."""
    packed = initramfs.pack([initramfs.folder("a"), initramfs.file("a/bcd", b"12345", 0o644)])

    names, offset = [], 0
    while offset < len(packed):
        assert packed[offset : offset + 6] == b"070701"
        fields = [int(packed[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name_at = offset + 110
        content_at = (name_at + fields[11] + 3) // 4 * 4
        names.append((packed[name_at : name_at + fields[11] - 1], packed[content_at : content_at + fields[6]]))
        offset = (content_at + fields[6] + 3) // 4 * 4
    assert names == [(b"a", b""), (b"a/bcd", b"12345"), (b"TRAILER!!!", b"")]


def test_the_shell_gives_exit_code_and_output_and_survives_what_is_run(guest_v2: Guest):
    """Exit codes, stderr, missing last newlines, nonsense, killed and endless commands: each is answered by itself."""
    assert guest_v2.sh("echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
    assert guest_v2.sh("printf unfinished") == (0, "unfinished")
    assert guest_v2.sh("if then (").rc == 2
    assert guest_v2.sh("cat") == (0, "")
    assert guest_v2.sh("kill -9 $$").rc == 137
    with pytest.raises(GuestError, match="no end after 1 s"):
        guest_v2.sh("sleep 30", timeout_s=1)
    with pytest.raises(GuestError, match="exit 3"):
        guest_v2.check("exit 3")
    assert guest_v2.sh("echo again") == (0, "again\n")


def test_a_guest_that_does_not_boot_tells_why_and_leaves_nothing(guest_v2: Guest, tmp_path):
    """A kernel without an init panics: the error carries the console's end, at once, and QEMU is gone."""
    broken = Guest(dataclasses.replace(guest_v2.machine, init="/no/such/init"), tmp_path)

    with pytest.raises(GuestError, match=r"(?s)during: boot.*Kernel panic"), broken:
        pass

    with pytest.raises(GuestError, match="not running"):
        _ = broken.pid
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in _command_line(pid)]
    assert f"lab.init={image.INIT_PLAIN}" in _command_line(str(guest_v2.pid))


def _command_line(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_files_travel_unchanged(guest_v2: Guest):
    """What is written into the guest is read back byte for byte, also when it is longer than a word of the shell."""
    content = bytes(range(256)) * 600 + b"no newline"

    guest_v2.write_file("/tmp/a file", content)

    assert guest_v2.read_file("/tmp/a file") == content


def test_plain_guest_has_cgroup_v2_with_memory_swap_and_pressure(guest_v2: Guest):
    """The memory controller is on the unified hierarchy, its files are there, and swap is zram."""
    guest_v2.check("mkdir /sys/fs/cgroup/probe")
    try:
        files = guest_v2.check("cd /sys/fs/cgroup/probe && ls").split()
    finally:
        guest_v2.check("rmdir /sys/fs/cgroup/probe")

    wanted = {"min", "low", "high", "max", "reclaim", "current", "stat", "events", "pressure", "swap.max"}
    assert {f"memory.{name}" for name in wanted} <= set(files)
    assert guest_v2.check("uname -r").startswith("6.1.")
    assert "/dev/zram0" in guest_v2.check("cat /proc/swaps")
    assert guest_v2.check("cat /proc/pressure/memory").startswith("some avg10=")


def test_python_has_what_the_agent_imports(guest_v2: Guest):
    """Python 3.11 of the guest imports the runtime dependencies, and the source of this checkout."""
    printed = guest_v2.python(
        "import numpy, msgspec, starlette, uvicorn, jeepney, memsculpt.errors as ours; "
        "print(int(numpy.arange(1000).sum()), ours.__file__)"
    )

    assert printed.split() == ["499500", "/opt/memsculpt/src/memsculpt/errors.py"]


def test_systemd_runs_the_other_guest(guest_systemd: Guest):
    """PID 1 is systemd, its D-Bus answers, and cgroup v2 is the only hierarchy."""
    assert guest_systemd.check("cat /proc/1/comm") == "systemd"
    assert " cgroup2 " in guest_systemd.check("grep ' /sys/fs/cgroup ' /proc/mounts")
    assert guest_systemd.check("grep -c cgroup /proc/mounts") == "1"
    assert guest_systemd.check("systemctl --failed --plain --no-legend") == ""
