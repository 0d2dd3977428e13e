# SPDX-License-Identifier: Apache-2.0
"""Where the kernel's errors become ours, in this one place."""

import errno

from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished

GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})
LATER = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM, errno.ENOSPC})
FIXES = {
    errno.EPERM: "run as root",
    errno.EACCES: "run as root",
    errno.EROFS: "mount it writable; in a container, run memsculpt on the host instead",
    errno.EMFILE: "raise the number of open files (ulimit -n) to 4096 or more",
    errno.ENFILE: "raise fs.file-max",
    errno.ECONNREFUSED: "start D-Bus: systemctl start dbus",
}


def is_gone(error: OSError) -> bool:
    """Tell whether a process or cgroup went away between two calls: the one cause for leaving out a row."""
    return error.errno in GONE


def translate(error: OSError, place: str) -> MemsculptError:
    """Return what an OSError means: gone (drop the row), later (back off), or not possible here (say why)."""
    if error.errno in GONE:
        return Vanished(place=place)
    words = error.strerror or str(error)
    if error.errno in LATER:
        return Transient(place=place, problem=words, retry_in_s=1.0)
    fix = FIXES.get(error.errno or 0, "see `memsculpt doctor`")
    return Unavailable(place=place, problem=words, fix=fix)
