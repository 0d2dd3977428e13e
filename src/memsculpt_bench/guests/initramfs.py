# SPDX-License-Identifier: Apache-2.0
"""The initramfs of the guests: busybox, kernel modules and an init that hands over to the root image.

Written as an uncompressed newc cpio in Python, so neither cpio nor gzip nor root is needed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # of Debian's busybox-static

# Swap is set up here because it belongs to the kernel and survives the change of root; so both flavours have it.
# The last drive is a tar of the source under test, made at the start of the session.
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /mod/order); do insmod /mod/$m || echo "lab: insmod $m failed"; done
read line < /proc/cmdline
for word in $line; do case $word in lab.*) export "lab_${word#lab.}";; esac; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
if [ "${lab_zram_bytes:-0}" != 0 ]; then
    echo $lab_zram_bytes > /sys/block/zram0/disksize
    mkswap /dev/zram0 > /dev/null && swapon /dev/zram0 || echo "lab: no zram swap"
fi
mount -t ext4 /dev/vda /mnt || echo "lab: the root image does not mount"
mkdir -p /mnt/opt/memsculpt
tar -xf /dev/vdb -C /mnt/opt/memsculpt || echo "lab: the source drive does not unpack"
mount --move /proc /mnt/proc; mount --move /sys /mnt/sys; mount --move /dev /mnt/dev
exec switch_root /mnt $lab_init
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or device node."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    """Return the entry of a folder."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, content: bytes, mode: int = 0o755) -> Entry:
    """Return the entry of a file."""
    return Entry(path, stat.S_IFREG | mode, content)


def character_device(path: str, major: int, minor: int) -> Entry:
    """Return the entry of a device node."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def pack(entries: Iterable[Entry]) -> bytes:
    """Return entries as a newc cpio archive. Source: Documentation/driver-api/early-userspace/buffer-format.rst."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode, mode, uid, gid, nlink, mtime, filesize, device of the file (2), device node (2), namesize, checksum
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def build(
    modules: Iterable[tuple[str, bytes]], busybox: Path = BUSYBOX, init: str = INIT, more: Iterable[Entry] = ()
) -> bytes:
    """Return the initramfs with `modules`, which are inserted in the order given, an init that does it, and `more`."""
    modules = list(modules)
    order = "".join(f"{name}.ko\n" for name, _ in modules)
    return pack(
        [
            *(folder(path) for path in ("bin", "mod", "dev", "proc", "sys", "mnt")),
            character_device("dev/console", 5, 1),
            character_device("dev/null", 1, 3),
            file("bin/busybox", busybox.read_bytes()),
            file("init", init.encode()),
            file("mod/order", order.encode(), 0o644),
            *(file(f"mod/{name}.ko", content, 0o644) for name, content in modules),
            *more,
        ]
    )
