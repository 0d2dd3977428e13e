# SPDX-License-Identifier: Apache-2.0
"""Which workload a process belongs to, and the columns that come of it.

1. A virtual machine is a workload by itself, wherever its process lives: `vm:NAME`.
2. A partition's rule that names whole cgroups adopts each matching cgroup, with its subtree, as one workload; virtual
   machines in it belong to the partition, too, and are told apart.
3. A rule by exe, user, pid or vm gathers the matching processes, by exe and what else the rule names.
4. Everything else is its memory cgroup, or its exe where it lives in the root.
"""

import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.errors import ConfigError
from memsculpt.host.linux.processes import Reading
from memsculpt.host.linux.virtual_machines import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A cgroup that a partition's rule names."""

    cgroup: CgroupPath
    partition: str
    is_own: bool  # made by memsculpt


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process is accounted."""

    workload: WorkloadId
    partition: str | None
    cgroup: CgroupPath | None


def place_of(
    reading: Reading,
    partitions: Sequence[PartitionSettings],
    adopted: Sequence[Adopted],
    machine: Machine | None = None,
) -> Place:
    """Return the workload of a process; `machine` is the VM that it runs, if it does."""
    path = reading.detail.memory_cgroup
    vm = "" if machine is None else machine.name
    for one in adopted:
        if path == one.cgroup or path.startswith(f"{one.cgroup}/"):
            if one.is_own:
                break
            if machine is not None:
                return Place(workload=machine.workload, partition=one.partition, cgroup=CgroupPath(path))
            return Place(workload=WorkloadId(one.cgroup), partition=one.partition, cgroup=one.cgroup)
    exe, user = reading.detail.exe, user_name(reading.detail.user)
    for partition in partitions:
        rule = partition.match
        if not rule.is_by_cgroup() and rule.fits(cgroup=path, exe=exe, user=user, pid=reading.instance.pid, vm=vm):
            name = rule.workload_name(exe=exe, user=user, cgroup=path, pid=reading.instance.pid)
            workload = name if machine is None else machine.workload
            return Place(workload=workload, partition=partition.name, cgroup=None)
    if machine is not None:
        owner = next((one for one in adopted if path == one.cgroup), None)
        cgroup = CgroupPath(path) if path else None
        return Place(workload=machine.workload, partition=owner.partition if owner else None, cgroup=cgroup)
    if path:
        owner = next((one for one in adopted if path == one.cgroup), None)
        return Place(workload=WorkloadId(path), partition=owner.partition if owner else None, cgroup=CgroupPath(path))
    name = WorkloadId(f"exe:{exe}" if exe else f"exe:unknown user:{user}")
    return Place(workload=name, partition=None, cgroup=None)


def own_cgroup(partition: str) -> CgroupPath:
    """Return where a partition's own cgroup lies; the planner names it likewise."""
    return CgroupPath(f"memsculpt/{partition.replace('/', '_')}")


def find_adopted(partitions: Sequence[PartitionSettings], cgroups: Sequence[CgroupPath]) -> list[Adopted]:
    """Return the cgroups that the rules name, of those that are there, outermost ones only."""
    found: list[Adopted] = []
    for partition in partitions:
        own = own_cgroup(partition.name)
        if partition.match.is_by_cgroup():
            matching = [one for one in cgroups if fnmatchcase(one, partition.match.cgroup or "")]
            outer = [
                one for one in matching if not any(one != other and one.startswith(f"{other}/") for other in matching)
            ]
            found.extend(Adopted(cgroup=one, partition=partition.name, is_own=False) for one in outer)
        elif own in cgroups:
            found.append(Adopted(cgroup=own, partition=partition.name, is_own=True))
    return sorted(found, key=lambda one: (one.cgroup, one.partition))


def check_rules(
    partitions: Sequence[PartitionSettings],
    adopted: Sequence[Adopted],
    readings: Sequence[Reading],
    machines: Mapping[Instance, Machine],
) -> None:
    """Raise ConfigError where two rules claim one cgroup or one process."""
    for first in adopted:
        for second in adopted:
            inside = second.cgroup == first.cgroup or second.cgroup.startswith(f"{first.cgroup}/")
            if inside and first.partition != second.partition:
                raise ConfigError(
                    place=f'partition "{second.partition}"',
                    problem=f'cgroup "{second.cgroup}" belongs to partition "{first.partition}" as well',
                    fix="make the rules name different cgroups",
                )
    for reading in readings:
        machine = machines.get(reading.instance)
        claims = [
            one.name
            for one in partitions
            if not one.match.is_by_cgroup()
            and one.match.fits(
                cgroup=reading.detail.memory_cgroup,
                exe=reading.detail.exe,
                user=user_name(reading.detail.user),
                pid=reading.instance.pid,
                vm="" if machine is None else machine.name,
            )
        ]
        path = reading.detail.memory_cgroup
        claims += [
            one.partition
            for one in adopted
            if not one.is_own and (path == one.cgroup or path.startswith(f"{one.cgroup}/"))
        ]
        if len(set(claims)) > 1:
            raise ConfigError(
                place=f'partition "{claims[1]}"',
                problem=f'partition "{claims[0]}" claims process {reading.instance.pid} ({reading.detail.exe}) as well',
                fix="make the rules fit different processes",
            )


@lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """Return the user's name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
