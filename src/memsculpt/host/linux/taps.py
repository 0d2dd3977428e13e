# SPDX-License-Identifier: Apache-2.0
"""What a VM's network devices have carried, where they are taps of the host.

Source: /sys/class/net/IF/statistics (Documentation/ABI/testing/sysfs-class-net-statistics), and the line `iff:` in
/proc/PID/fdinfo of an open /dev/net/tun (drivers/net/tun.c, tun_chr_show_fdinfo), for taps that were handed over open.
"""

import os

TUN = "/dev/net/tun"
DESCRIPTORS_MOST = 4096


class Taps:
    """The taps of one process."""

    def __init__(self, named: tuple[str, ...], pid: int, proc: str = "/proc", sys: str = "/sys") -> None:
        self._folder = f"{sys}/class/net"
        self._names = tuple(dict.fromkeys((*named, *_opened_taps(f"{proc}/{pid}"))))
        self._last = (0, 0)

    def read_bytes(self) -> tuple[int, int] | None:
        """Return what the guest received and sent; None without a tap. It never falls."""
        if not self._names:
            return None
        received = sum(self._count(name, "tx_bytes") for name in self._names)  # the host sends what the guest receives
        sent = sum(self._count(name, "rx_bytes") for name in self._names)
        self._last = (max(self._last[0], received), max(self._last[1], sent))
        return self._last

    def _count(self, name: str, what: str) -> int:
        try:
            descriptor = os.open(f"{self._folder}/{name}/statistics/{what}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # unplugged, or in a network namespace of its own: nothing can be told
            return 0
        try:
            content = os.read(descriptor, 32).strip()
        finally:
            os.close(descriptor)
        return int(content) if content.isdigit() else 0


def _opened_taps(process: str) -> list[str]:
    found: list[str] = []
    try:
        names = os.listdir(f"{process}/fd")[:DESCRIPTORS_MOST]
    except OSError:  # ended, or not ours to see
        return found
    for name in names:
        try:
            if os.readlink(f"{process}/fd/{name}") != TUN:
                continue
            descriptor = os.open(f"{process}/fdinfo/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # closed meanwhile
            continue
        try:
            content = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
        found += [line.split()[1].decode() for line in content.splitlines() if line.startswith(b"iff:\t")]
    return found
