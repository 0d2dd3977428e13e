# SPDX-License-Identifier: Apache-2.0
"""A guest without a root image: a kernel, busybox and a shell. Two seconds to boot, and two of a kind are twins.

For what is looked at from outside: the memory of several guests at once, and their monitors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memsculpt_bench.guests import image, initramfs, kernels
from memsculpt_bench.guests.guest import QEMU, Guest

MODULES = ("virtio_pci", "virtio_console", "virtio_balloon")

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /tmp /mnt
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for m in $(cat /mod/order); do insmod /mod/$m || echo "lab: insmod $m failed"; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BareMachine:
    """What to boot. `merge` is QEMU's mem-merge: whether the guest's memory is offered to KSM from the start on."""

    kernel_image: Path
    initramfs: Path
    name: str = "bare"
    memory_bytes: int = 160 << 20
    merge: bool = False
    memory_backend: bool = True  # False: QEMU's own default RAM, which has no -object line
    monitor: Path | None = None  # where QMP listens
    more: tuple[str, ...] = ()  # further arguments of QEMU

    def command(self, folder: Path, shell_fd: int) -> list[str]:
        """Return QEMU's command line; see `Guest`."""
        size = f"{self.memory_bytes >> 20}M"
        merge = "on" if self.merge else "off"
        backend = ("-object", f"memory-backend-ram,id=pool,size={size},merge={merge}") if self.memory_backend else ()
        named = ",memory-backend=pool" if self.memory_backend else ""
        monitor = ("-qmp", f"unix:{self.monitor},server=on,wait=off") if self.monitor is not None else ()
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # even a killed test session leaves no QEMU behind
            *(QEMU, "-accel", "tcg,thread=multi,tb-size=32", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-name", self.name, "-m", size, *backend, "-machine", f"q35{named},mem-merge={merge}"),
            *("-kernel", str(self.kernel_image), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 nokaslr", "-serial", f"file:{folder / 'console.log'}"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=shell,fd={shell_fd},server=off"),
            *("-device", f"virtserialport,chardev=shell,name={image.SHELL_PORT}", *monitor, *self.more),
        ]


def prepare(
    cache: Path,
    folder: Path,
    series: str = "6.1",
    *,
    programs: Mapping[str, bytes] | None = None,
    modules: tuple[str, ...] = MODULES,
    setup: str = "",
) -> tuple[Path, Path]:
    """Return kernel and initramfs, with static `programs` in /bin. Raises debian.Unavailable where there are none.

    `setup` is what the guest's shell does after its modules are in, lines of sh.
    """
    with image.locked(cache):
        kernel = kernels.ensure(cache, series)
    found = kernels.read_modules(kernel, modules)
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / "bare.initramfs"
    more = [initramfs.file(f"bin/{name}", content) for name, content in (programs or {}).items()]
    packed.write_bytes(initramfs.build(found, init=INIT + setup + image.SERVE_SHELL, more=more))
    return kernel.image, packed


def guest(machine: BareMachine, folder: Path) -> Guest:
    """Return a guest that boots when it is entered."""
    return Guest(machine, folder)
