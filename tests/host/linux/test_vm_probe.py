# SPDX-License-Identifier: Apache-2.0
"""What doctor finds of virtual machines: who greets, who is in other hands, who has no monitor."""

import os
import socket
from pathlib import Path

from memsculpt.host.linux.vm_probe import FoundVm, find_vms
from memsculpt_bench.qmp_peers import Peer, Peers


def a_qemu(proc: Path, pid: int, *arguments: str, exe: str = "/usr/bin/qemu-system-x86_64") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "exe").symlink_to(exe)
    (folder / "cwd").symlink_to(proc.parent)
    (folder / "cmdline").write_bytes("\0".join((exe, *arguments, "")).encode())


def test_each_is_told_apart(tmp_path):
    """Free, busy, absent, without a monitor; other programs and relative paths."""
    proc = tmp_path / "proc"
    proc.mkdir()
    busy, free = Peer(path=tmp_path / "busy"), Peer(path=tmp_path / "free")
    a_qemu(proc, 10, "-name", "free", "-qmp", "unix:free,server=on")
    a_qemu(proc, 11, "-name", "busy", "-qmp", f"unix:{busy.path},server=on")
    a_qemu(proc, 12, "-name", "absent", "-qmp", "unix:absent,server=on")
    a_qemu(proc, 13, "-name", "bare")
    a_qemu(proc, 14, "-name", "x", exe="/usr/bin/qemu-img")
    with Peers(busy, free), socket.socket(socket.AF_UNIX) as other:
        other.connect(os.fspath(busy.path))
        assert b"QMP" in other.recv(4096)
        found = {one.name: one for one in find_vms(str(proc))}
    assert found.keys() == {"free", "busy", "absent", "bare"}
    assert found["free"] == FoundVm(pid=10, name="free")
    assert found["busy"].is_busy
    assert "No such file" in found["absent"].problem
    assert found["bare"].problem == "no QMP monitor"
