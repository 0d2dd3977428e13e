# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernels as guest kernels: fetched by apt, unpacked into the cache, never installed."""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from memsculpt_bench.guests import debian

# What each series is called in the archive of Debian 12. The version itself changes with each security update, and old
# ones leave the archive, so it is always resolved through the meta package.
META_PACKAGES = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}

# Modules of the initramfs. lzo of zram is a soft dependency that no .modinfo tells, so it is named and comes first.
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_balloon", "lzo", "lzo-rle", "lz4", "zstd", "zram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An unpacked kernel."""

    version: str  # "6.1.0-56-cloud-amd64", as uname -r gives it
    image: Path
    modules: Path  # .../lib/modules/VERSION


def ensure(cache: Path, series: str = "6.1") -> Kernel:
    """Return the newest kernel of `series` that the archive has; without the archive, the newest one cached."""
    try:
        version = _newest_in_archive(series)
    except debian.Unavailable:
        cached = sorted((cache / "kernels").glob(f"{series}.*"), key=lambda path: path.stat().st_mtime)
        if not cached:
            raise
        return _at(cached[-1])
    place = cache / "kernels" / version
    if not place.exists():
        (cache / "kernels").mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        try:
            debian.unpack(debian.download(f"linux-image-{version}", work / "debs"), work / "root")
            debian.replace_folder(work / "root", place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return _at(place)


def is_cached(cache: Path, series: str = "6.1") -> bool:
    """Tell whether the cache has a kernel of the series."""
    return any((cache / "kernels").glob(f"{series}.*"))


def read_modules(kernel: Kernel, wanted: tuple[str, ...] = MODULES) -> list[tuple[str, bytes]]:
    """Return name and content of the wanted modules and all they depend on, in the order to insert them.

    What is built into the kernel is skipped. Names use `_`, as the kernel's own do.
    """
    files = {
        _module_name(path.name): path for path in kernel.modules.rglob("*.ko*") if path.name.endswith((".ko", ".ko.xz"))
    }
    builtin_list = (kernel.modules / "modules.builtin").read_text(encoding="utf-8")
    builtin = {_module_name(Path(line).name) for line in builtin_list.splitlines()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise debian.Unavailable(f"kernel {kernel.version}: no module {name!r} below {kernel.modules}")
        path = files[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)", content)
        for other in depends.group(1).decode().split(",") if depends and depends.group(1) else ():
            add(_module_name(other))
        ordered[name] = content

    for name in wanted:
        if _module_name(name) in files or _module_name(name) in builtin:  # 6.12 has no lzo for zram
            add(_module_name(name))
    return list(ordered.items())


def _module_name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


def _newest_in_archive(series: str) -> str:
    try:
        names = debian.depends_on(META_PACKAGES[series])
    except debian.Unavailable:  # lists that were never fetched, or not those of the security archive
        debian.refresh()
        names = debian.depends_on(META_PACKAGES[series])
    for name in names:
        if name.startswith(f"linux-image-{series}."):
            return name.removeprefix("linux-image-")
    raise debian.Unavailable(
        f"apt knows no {META_PACKAGES[series]} of series {series} (the lab needs the archive of Debian 12; "
        "try: apt-get update)"
    )


def _at(place: Path) -> Kernel:
    return Kernel(
        version=place.name,
        image=place / "boot" / f"vmlinuz-{place.name}",
        modules=place / "lib" / "modules" / place.name,
    )
