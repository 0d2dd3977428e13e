# SPDX-License-Identifier: Apache-2.0
"""The lab: from nothing to a booted guest. `docs/testing-in-guests.md` is its manual."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from memsculpt_bench.guests import debian, image, initramfs, kernels
from memsculpt_bench.guests.guest import QEMU, Guest, Machine

REPOSITORY = Path(__file__).parents[3]
LOCK_FILE = REPOSITORY / "requirements" / "run.txt"

# What must be on this machine, and the Debian package that brings it.
PROGRAMS = {
    QEMU: "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "tar": "tar",
}


def cache() -> Path:
    """Where kernels and images are kept between sessions."""
    return Path(os.environ.get("MEMSCULPT_VM_CACHE", REPOSITORY / "build" / "vm-lab"))


def probe(programs: Mapping[str, str] = PROGRAMS) -> tuple[bool, str]:
    """Tell whether guests can be made here, and if not, why and what helps."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = {package for program, package in programs.items() if shutil.which(program, path=path) is None}
    if not initramfs.BUSYBOX.exists() or b"\0/lib64/ld-linux" in initramfs.BUSYBOX.read_bytes():
        missing.add("busybox-static")
    if missing:
        return False, f"guests need {', '.join(sorted(missing))}; try: apt-get install {' '.join(sorted(missing))}"
    if kernels.is_cached(cache()) and image.is_cached(cache(), LOCK_FILE):
        return True, "QEMU with its emulator, kernel and root image in the cache"
    try:
        debian.depends_on(kernels.META_PACKAGES["6.1"])
    except debian.Unavailable as error:
        return False, f"no kernel for guests: {error}"
    return True, "QEMU with its emulator; kernel and root image will be fetched by apt-get"


def machine(
    folder: Path,
    *,
    init: str,
    series: str = "6.1",
    memory_bytes: int = 512 << 20,
    cpus: int = 1,
    slow_bytes: int = 0,
) -> Machine:
    """Make all that a guest is booted from; `folder` gets what belongs to this session only.

    `slow_bytes` of its memory are on a node without processors.
    Raises debian.Unavailable if the kernel, the packages or the wheels cannot be had.
    """
    with image.locked(cache()):
        kernel = kernels.ensure(cache(), series)
        root_image = image.ensure(cache(), LOCK_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    initial = folder / "initramfs"
    initial.write_bytes(initramfs.build(kernels.read_modules(kernel)))
    source_drive = folder / "source.tar"
    image.pack_source(REPOSITORY / "src", source_drive)
    return Machine(
        kernel_image=kernel.image,
        initramfs=initial,
        root_image=root_image,
        source_drive=source_drive,
        init=init,
        memory_bytes=memory_bytes,
        cpus=cpus,
        slow_bytes=slow_bytes,
    )


def guest(
    folder: Path,
    *,
    init: str,
    series: str = "6.1",
    memory_bytes: int = 512 << 20,
    cpus: int = 1,
    slow_bytes: int = 0,
) -> Guest:
    """Return a guest that boots when it is entered."""
    made = machine(folder, init=init, series=series, memory_bytes=memory_bytes, cpus=cpus, slow_bytes=slow_bytes)
    return Guest(made, folder)
