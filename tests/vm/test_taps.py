# SPDX-License-Identifier: Apache-2.0
"""What a real guest receives and sends over a tap of this machine, as its reading tells."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from memsculpt.domain.settings import Settings, VmSettings
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt_bench.guests import bare, debian, lab
from memsculpt_bench.guests.bare import BareMachine
from memsculpt_bench.guests.guest import Guest
from tests.hosts.vm_contract import reading_of

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
TAP = f"mstap{os.getpid() % 100_000}"
FRAMES, FRAME_BYTES = 200, 1000
EXPERIMENT = 0x88B5  # an EtherType for whoever tries something (IEEE 802, local experimental)

# Any host that is opened on this machine finds this guest and takes one of its monitors.
pytestmark = [pytest.mark.needs("root"), pytest.mark.xdist_group("machine")]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest with a network card on a tap, which goes when QEMU does."""
    possible, reason = lab.probe()
    if not possible:
        pytest.skip(f"qemu_guest: {reason}")
    if not Path("/dev/net/tun").exists():
        pytest.skip("tap: this kernel has no /dev/net/tun (fix: modprobe tun)")
    try:
        kernel, initramfs = bare.prepare(lab.cache(), tmp_path, modules=(*bare.MODULES, "virtio_net"))
    except debian.Unavailable as error:
        pytest.skip(f"qemu_guest: {error}")
    network = ("-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no", "-device", "virtio-net-pci,netdev=net0")
    monitor = tmp_path / "tap.qmp"
    machine = BareMachine(kernel_image=kernel, initramfs=initramfs, name="lab-tap", monitor=monitor, more=network)
    with bare.guest(machine, tmp_path / "g") as booted:
        booted.check("ip link set eth0 up && ip addr add 192.0.2.2/24 dev eth0")
        yield booted


@pytest.fixture
def host(guest: Guest, tmp_path: Path) -> Iterator[Host]:
    settings = VmSettings(discover=False, sockets=(str(tmp_path / "tap.qmp"),), timeout_s=1.0)
    opened = open_host(Settings(interval_s=0.2, vms=settings))
    yield opened
    opened.close()


def raise_interface(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack("16sh14x", ioctl(asking, SIOCGIFFLAGS, request))[1]
        ioctl(asking, SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | IFF_UP))


def until_told(host: Host, received_bytes: int, sent_bytes: int) -> None:
    deadline_s = time.monotonic() + 30.0
    while True:
        host.observe()
        told = reading_of(host, "lab-tap")
        if (told.received_bytes or 0) >= received_bytes and (told.sent_bytes or 0) >= sent_bytes:
            return
        assert time.monotonic() < deadline_s, told
        time.sleep(0.2)


def test_what_goes_over_a_tap_is_told_from_the_guests_side(guest: Guest, host: Host):
    """Frames that this machine sends are what the guest has received, and the other way round; both never fall."""
    raise_interface(TAP)
    until_told(host, 0, 0)
    frame = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + EXPERIMENT.to_bytes(2, "big")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
        line.bind((TAP, 0))
        for _ in range(FRAMES):
            line.send(frame.ljust(FRAME_BYTES, b"\0"))
            time.sleep(0.001)  # the queue of a tap is short, and what finds no room is dropped
    until_told(host, FRAMES * FRAME_BYTES * 9 // 10, 0)
    before = reading_of(host, "lab-tap")
    guest.sh("ping -c 5 -W 1 192.0.2.1")  # nobody answers: it asks who that is, five times
    until_told(host, before.received_bytes or 0, (before.sent_bytes or 0) + 5 * 42)
    inside = int(guest.check("cat /sys/class/net/eth0/statistics/rx_bytes"))
    assert (reading_of(host, "lab-tap").received_bytes or 0) == pytest.approx(inside, rel=0.05)
