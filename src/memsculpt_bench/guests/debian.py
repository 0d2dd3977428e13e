# SPDX-License-Identifier: Apache-2.0
"""Fetch and unpack Debian packages with the machine's own apt: its sources, its keys, nothing installed.

No registry is named here: whatever this machine's apt is configured to use, is used.
"""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

APT_TIMEOUT_S = 180


class Unavailable(Exception):
    """This machine cannot make the lab; says what is missing and how to get it."""


def run(command: Sequence[str | Path], *, cwd: Path | None = None, timeout_s: float = APT_TIMEOUT_S) -> str:
    """Run a command and return its stdout; a failure becomes `Unavailable` with the end of its stderr."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]}: not found ({error})") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]}: no end after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def depends_on(meta_package: str) -> list[str]:
    """Names of the packages that `meta_package` depends on, as apt's lists on this machine know them."""
    listing = run(["apt-cache", "depends", "--important", meta_package])
    return [line.split()[-1] for line in listing.splitlines() if line.strip().startswith("Depends:")]


def refresh() -> None:
    """Have apt fetch its lists anew; needs root."""
    run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60", "update"])


def download(package: str, folder: Path) -> list[Path]:
    """Download one package, without what it depends on, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run(["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", package], cwd=folder)
    return sorted(folder.glob("*.deb"))


def download_closure(packages: Sequence[str], folder: Path) -> list[Path]:
    """Download packages and all that they depend on, as for a machine on which nothing is installed."""
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    run(
        [
            "apt-get",
            *("-o", f"Dir::State::status={folder}/status"),
            *("-o", f"Dir::State::extended_states={folder}/extended_states"),
            *("-o", f"Dir::Cache={folder}"),
            *("-o", f"Dir::Cache::archives={archives}"),
            *("-o", "APT::Install-Recommends=false"),
            *("-o", "APT::Sandbox::User=root"),
            *("-o", "Debug::NoLocking=true"),
            *("-qq", "-y", "--download-only", "install", *packages),
        ]
    )
    return sorted(archives.glob("*.deb"))


def unpack(debs: Sequence[Path], root: Path, *, leave_out: Sequence[str] = ()) -> None:
    """Unpack packages over one another; no maintainer script runs. Symbolic links to folders are followed.

    `leave_out` are patterns of package names.
    """
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        name = deb.name.partition("_")[0]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in leave_out):
            continue
        with _piped(["dpkg-deb", "--fsys-tarfile", str(deb)]) as archive:
            subprocess.run(
                ["tar", "-C", root, "-x", "--keep-directory-symlink"], stdin=archive.stdout, check=True, timeout=60
            )


@contextmanager
def _piped(command: list[str]) -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
    if process.returncode != 0:
        raise Unavailable(f"{' '.join(command)}: exit {process.returncode}")


def replace_folder(finished: Path, place: Path) -> None:
    """Put a folder that is complete at its place in one step, so that nobody ever sees half of one."""
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    finished.rename(place)
