# SPDX-License-Identifier: Apache-2.0
"""A real libvirt 9 with a guest of its own: found, asked, ballooned, and its memory located, through libvirt alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memsculpt_bench.guests import debian, lab, small

SCENE = Path(__file__).with_name("libvirt_scene.py")
DRIVERS = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")


@pytest.fixture
def short_path():
    """A folder whose name is short: libvirt has QEMU listen far below it, and a socket's path ends at 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="lv-") as folder:
        yield Path(folder)


@pytest.mark.needs("root")
@pytest.mark.timeout(150)
def test_a_vm_of_libvirts_is_read_and_ballooned_like_any_other(short_path):
    """The same reading, the same RAM, the same balloon; what libvirt counts agrees, and what we changed is put back."""
    if importlib.util.find_spec("libvirt") is None or not DRIVERS.exists():
        pytest.skip(
            "libvirt: apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-dev pkg-config, "
            "pip install -r requirements/libvirt.txt (never libvirt-daemon-system)"
        )
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    try:
        machine = small.machine(short_path)
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    # What libvirt makes below /run and /var is private to the namespace, too: nothing of it outlives the scene.
    command = ["unshare", "-m", "--propagation", "private", sys.executable, str(SCENE), str(short_path)]
    done = subprocess.run(
        [*command, str(machine.kernel_image), str(machine.initramfs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    reading = told["reading"]
    assert told["before_it_was_asked"] == ["libvirt", "unreachable", True]
    assert (reading["via"], reading["state"], reading["ram_mib"]) == ("libvirt", "running", 256)
    assert 0 < reading["used_mib"] < reading["total_mib"] <= 256 == reading["balloon_mib"]
    assert reading["deflate_on_oom"]
    assert reading["free_page_reporting"]
    assert reading["vcpu_s"] > 0.0
    assert told["ram"]["backing"] == "private"
    assert told["ram"]["is_mapped"]
    assert 254 <= told["ram"]["mib"] <= 256
    assert told["balloon"] == [256, 160]
    assert told["balloon_by_libvirt_mib"] == 160
    assert not told["wakes_for_our_own"]
    assert told["wakes_for_an_operator"]
    assert not told["kvm_is_open"]
    assert told["is_polled"]
    assert not told["is_polled_afterwards"]
