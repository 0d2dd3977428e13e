# SPDX-License-Identifier: Apache-2.0
"""A fresh file system for each arm of bench build: an ext4 image on the machine's own disk, read and written directly.

Forty thousand files take longer to delete than to write where the file system discards blocks, and the discards go
on into the next arm. An image is deleted as one file, and every arm finds the same empty disk. The loop device
bypasses the page cache of the file system below it (direct I/O), so that no page is kept twice.
"""

import os
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memsculpt_bench.lab import LabUnavailable

PREFIX = "memsculpt-lab-disk-"
SIZE_BYTES = 3 << 30
PROGRAMS = {"losetup": "mount", "mount": "mount", "umount": "mount", "mkfs.ext4": "e2fsprogs"}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing_packages() -> list[str]:
    """Return the Debian packages of the programs that are not there."""
    return sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=_PATH) is None})


@contextmanager
def fresh_disk(below: Path) -> Generator[Path]:
    """Mount a new, empty file system below a folder and give its root; it is gone afterwards.

    Raises LabUnavailable when this machine has no loop device or may not mount.
    """
    image = below / f"{PREFIX}{os.getpid()}.img"
    root = below / f"{PREFIX}{os.getpid()}"
    device = ""
    try:
        root.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        _run(["mkfs.ext4", "-q", "-F", image])
        device = _run(["losetup", "--find", "--show", "--direct-io=on", image])
        _run(["mount", device, root])
        yield root
    finally:
        _take_down(root, device, image)


def sweep(below: Path) -> list[str]:
    """Take down what a killed bench left below a folder; return the names."""
    swept: list[str] = []
    for image in below.glob(f"{PREFIX}*.img"):
        owner = image.stem.removeprefix(PREFIX)
        if owner.isdigit() and Path(f"/proc/{owner}").exists():
            continue
        device = _run(["losetup", "--noheadings", "--output", "NAME", "--associated", image]).split()
        _take_down(image.with_suffix(""), device[0] if device else "", image)
        swept.append(image.name)
    return swept


def _take_down(root: Path, device: str, image: Path) -> None:
    try:
        if root.is_mount():
            _run(["umount", root])
    finally:
        if device:
            _run(["losetup", "--detach", device])
        image.unlink(missing_ok=True)
        if root.exists():
            root.rmdir()


def _run(command: Sequence[str | Path]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PATH": _PATH}
        )
    except (OSError, subprocess.CalledProcessError) as error:
        told = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise LabUnavailable(f"no disk for the build: {' '.join(map(str, command))}: {told}") from error
    return done.stdout.strip()
