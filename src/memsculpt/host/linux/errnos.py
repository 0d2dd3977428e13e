# SPDX-License-Identifier: Apache-2.0
"""What the kernel's error numbers mean to those who react: gone, not now, or never on this machine.

Source: errno(3), and per call process_madvise(2), process_vm_readv(2), proc(5), cgroup-v1/memory.rst.
"""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished

RETRY_IN_S = 1.0  # one tick: by then memory has moved, or the planner has changed its mind

_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})  # ENODEV: a cgroup file whose cgroup was removed
_NOT_NOW = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOTEMPTY, errno.ENOMEM, errno.ENOSPC})
_FIXES = {
    errno.EPERM: "run as root, or with CAP_SYS_PTRACE and CAP_SYS_NICE",
    errno.EACCES: "run as root, or with CAP_SYS_PTRACE and CAP_DAC_OVERRIDE",
    errno.EROFS: "mount it writable; in a container, run memsculpt on the host instead",
    errno.ENOSYS: "a kernel that has this call; memsculpt doctor names it",
    errno.EMFILE: "raise the number of open files (ulimit -n) to 4096 or more",
    errno.ENFILE: "raise fs.file-max",
    errno.EOPNOTSUPP: "a kernel that has this feature; memsculpt doctor names it",
}


def translate(error: OSError, place: str) -> MemsculptError:
    """Return the error of ours that `error` at `place` is; raise it `from` the original."""
    words = error.strerror or str(error)
    if error.errno in _GONE:
        return Vanished(place=place)
    if error.errno in _NOT_NOW:
        return Transient(place=place, problem=words, retry_in_s=RETRY_IN_S)
    fix = _FIXES.get(error.errno or 0, "memsculpt doctor says what this machine offers")
    return Unavailable(place=place, problem=words, fix=fix)


def from_number(number: int, place: str) -> MemsculptError:
    """Return the error of ours for an errno that a C call left."""
    return translate(OSError(number, os.strerror(number)), place)


@contextmanager
def at(place: str) -> Generator[None, None, None]:
    """Turn every OSError inside into ours, with `place` in it."""
    try:
        yield
    except OSError as error:
        raise translate(error, place) from error
