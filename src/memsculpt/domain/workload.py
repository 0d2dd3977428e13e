# SPDX-License-Identifier: Apache-2.0
"""Who is accounted as one: identity that survives restarts, and the rules that name partitions."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NewType

WorkloadId = NewType("WorkloadId", str)
"""`system.slice/redis.service` (cgroup below the memory controller's root) or `exe:/usr/bin/foo`, the latter with
` user:`, ` cgroup:` or ` pid:` and a value behind it where a partition's rule tells the program's processes apart;
`vm:NAME` for a virtual machine."""

CgroupPath = NewType("CgroupPath", str)
"""A cgroup relative to the memory controller's root, without a leading slash; "" is the root.

Bytes that are not UTF-8 are carried as surrogates (os.fsdecode) and go back unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Instance:
    """One life of a process: a pid alone is reused by the kernel, the pair is not."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat, clock ticks after boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which workloads belong to a partition: every field that is given must fit (globs, case counts)."""

    cgroup: str | None = None
    exe: str | None = None
    user: str | None = None
    pid: int | None = None
    vm: str | None = None
    label: str | None = None

    def is_by_cgroup(self) -> bool:
        """Tell whether whole cgroups are adopted, rather than single processes."""
        others = (self.exe, self.user, self.pid, self.vm)
        return self.cgroup is not None and all(one is None for one in others)

    def fits(self, *, cgroup: str, exe: str, user: str, pid: int, vm: str = "", label: str = "") -> bool:
        """Tell whether a process with these facts belongs here."""
        return (
            (self.cgroup is None or fnmatchcase(cgroup, self.cgroup))
            and (self.exe is None or fnmatchcase(exe, self.exe))
            and (self.user is None or self.user == user)
            and (self.pid is None or self.pid == pid)
            and (self.vm is None or fnmatchcase(vm, self.vm))
            and (self.label is None or fnmatchcase(label, self.label))
        )

    def workload_name(self, *, exe: str, user: str, cgroup: str, pid: int) -> WorkloadId:
        """Return what this rule's processes of one program are known as, also after a restart.

        Two partitions may divide a program's processes by user, say: then the user is a part of the name.
        """
        words = [f"exe:{exe or 'unknown'}"]
        if self.user is not None or not exe:
            words.append(f"user:{user}")
        if self.cgroup is not None:
            words.append(f"cgroup:{cgroup}")
        if self.pid is not None:
            words.append(f"pid:{pid}")
        return WorkloadId(" ".join(words))

    def describe(self) -> str:
        """Print the rule as the configuration writes it."""
        names = ("cgroup", "exe", "user", "pid", "vm", "label")
        given = [f"{name} = {getattr(self, name)!r}" for name in names if getattr(self, name) is not None]
        return "{ " + ", ".join(given) + " }"
