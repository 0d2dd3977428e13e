# SPDX-License-Identifier: Apache-2.0
"""One agent to a machine, one to a state folder: locks that the kernel releases when their owner dies.

flock(2), not a pid file: a lock whose owner was killed is free at once, so there is nothing stale to guess about, and a
reused pid cannot hold it. The pid in the file is for the message only. Descriptors are close-on-exec, so that no child
(the guardian of `lease`) keeps a dead agent's lock.
"""

import fcntl
import os
from pathlib import Path

from memsculpt.errors import Refused

MACHINE_LOCK = Path("/run/memsculpt/agent.lock")
"""In a folder that only root may write: a name in the abstract socket space could be taken by any user beforehand."""


class Lock:
    """A file that one process at a time owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give it up; the file stays, because removing it would let two owners hold two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def take(path: Path) -> Lock:
    """Own the file at `path`, which is made where it is absent.

    Raises Refused when another process owns it, naming its pid; OSError when it cannot be made or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise Refused(
            place=str(path),
            problem=f"another memsculpt (pid {owner}) is at work here, and two would undo each other's changes",
            fix=f"ask that one (memsculpt status), or stop it first (kill {owner})",
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError:
        # A full disk: the lock itself holds, only the name of its owner is missing from the message ("unknown").
        pass
    return Lock(descriptor)


def join_group(path: Path, group: str) -> int:
    """Become one of those who share pages on this machine; return the descriptor that says so while it is open.

    The kernel merges the pages of all who opted in, whatever group they mean (KSM), so one group at a time may. The
    descriptor is inherited: it stays open until the last of the group's programs and their children have ended.

    Raises Refused when programs of another group share now; OSError when the file cannot be made or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    wanted = os.fsencode(group)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody shares: what group it is stands in the file
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, wanted, 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        present = os.pread(descriptor, 4096, 0)
        os.set_inheritable(descriptor, True)
    except OSError:
        os.close(descriptor)
        raise
    if present == wanted:
        return descriptor
    os.close(descriptor)
    raise Refused(
        place=f"--share {group}",
        problem=f'programs of the group "{os.fsdecode(present)}" share pages now; the kernel would merge with theirs',
        fix="wait until they have ended, or leave --share out",
    )


class SharingSeat:
    """Held while the pages of a trust group's VMs are merged: programs of `exec --share` are kept off meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, group: str) -> str:
        """Take it; return why that cannot be, "" where it is taken."""
        if self._descriptor is not None:
            return ""
        try:
            self._descriptor = join_group(self._path, f"trust {group}")
        except Refused as error:
            return f"{error.problem}; fix: {error.fix}"
        except OSError as error:
            return f"{self._path}: {error.strerror}: programs of `exec --share` could not be kept off"
        os.set_inheritable(self._descriptor, False)
        return ""

    def leave(self) -> None:
        """Let others sit."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
