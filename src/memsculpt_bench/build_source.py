# SPDX-License-Identifier: Apache-2.0
"""The source that bench build builds: Debian's package of the kernel's source, fetched by the machine's own apt.

The archive is kept between runs; every arm unpacks its own tree from it, in a folder on the same file system.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from memsculpt_bench import build_disk
from memsculpt_bench.guests import debian
from memsculpt_bench.lab import LabUnavailable

REPOSITORY = Path(__file__).parents[2]
META_PACKAGE = "linux-source"
# What the job calls, and the Debian package that brings it.
PROGRAMS = {
    "tar": "tar",
    "xz": "xz-utils",
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
# Of an x86 kernel's source, what is large and that a tiny one has no use for. Kconfig and Makefiles stay: all are read.
_OTHER_ARCHITECTURES = (
    *("alpha", "arc", "arm", "arm64", "csky", "hexagon", "ia64", "loongarch", "m68k", "microblaze", "mips"),
    *("nios2", "openrisc", "parisc", "powerpc", "riscv", "s390", "sh", "sparc", "xtensa"),
)
_UNUSED_DRIVERS = ("drivers/gpu/drm", "drivers/net", "drivers/media", "drivers/staging", "drivers/scsi")
LEFT_OUT = (
    *(f"*/arch/{name}/*.[chS]" for name in _OTHER_ARCHITECTURES),
    *(f"*/arch/{name}/*.dts*" for name in _OTHER_ARCHITECTURES),
    *(f"*/{folder}/*.[ch]" for folder in (*_UNUSED_DRIVERS, "drivers/infiniband", "sound")),
    *(f"*/Documentation/*.{ending}" for ending in ("rst", "yaml", "txt", "svg")),
)


def cache() -> Path:
    """Where the archive is kept between runs."""
    return Path(os.environ.get("MEMSCULPT_BUILD_CACHE", REPOSITORY / "build" / "bench-build"))


def missing_packages(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Return the Debian packages of the programs that are not there, in order."""
    return sorted({package for program, package in programs.items() if shutil.which(program) is None})


def install_missing(say: Callable[[str], None]) -> None:
    """Install what the job calls and is not there, as root and by apt; else raise LabUnavailable naming it."""
    packages = sorted({*missing_packages(), *build_disk.missing_packages()})
    if not packages:
        return
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LabUnavailable(f"the build needs {names}; try: apt-get install {names}")
    say(f"installing what the build needs: {names}")
    try:
        debian.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages])
    except debian.Unavailable as error:
        raise LabUnavailable(f"the build needs {names}: {error}") from error


def ensure_archive(say: Callable[[str], None]) -> Path:
    """Return the archive of the source (.tar.xz), from the cache or fetched into it."""
    kept = sorted(cache().glob("linux-source-*.tar.xz"))
    if kept:
        return kept[-1]
    cache().mkdir(parents=True, exist_ok=True)
    try:
        name = next((each for each in debian.depends_on(META_PACKAGE) if each.startswith("linux-source-")), None)
        if name is None:
            raise LabUnavailable(f"apt knows no {META_PACKAGE}; try: apt-get update")
        say(f"fetching {name} (some 140 MB)")
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache()) as folder:
            packages = debian.download(name, Path(folder))
            debian.run(["dpkg-deb", "-x", packages[-1], f"{folder}/unpacked"])
            found = next(Path(folder, "unpacked").rglob("linux-source-*.tar.xz"), None)
            if found is None:
                raise LabUnavailable(f"{name} holds no archive of the source")
            return found.rename(cache() / found.name)
    except debian.Unavailable as error:
        raise LabUnavailable(f"no source to build: {error}") from error


def drop_from_cache(path: Path) -> None:
    """Have the kernel forget one file's pages, so that reading it is charged to the next who does."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_tools(folder: Path) -> None:
    """Compile and link a line outside the lab: the tool chain's own pages are charged to nobody there, in any arm."""
    source = folder / "warm.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-O2", "-o", folder / "warm", source], check=True, timeout=60)
