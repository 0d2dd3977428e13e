# SPDX-License-Identifier: Apache-2.0
"""The heavy half of `exec`: which cgroup a partition is, and the way into it."""

import os
from dataclasses import replace
from typing import NoReturn

from memsculpt.act.ownership import join_group
from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath
from memsculpt.doors import places
from memsculpt.doors.cli import preparing
from memsculpt.errors import MemsculptError, UsageError, Vanished
from memsculpt.host import merge_own_pages, open_host, own_instance
from memsculpt.host.protocol import Host
from memsculpt.plan import placement

WILDCARDS = frozenset("*?[")


def become(command: list[str], *, partition: str, share: str | None, config: str | None) -> NoReturn:
    """Enter the partition's cgroup and replace this process by the program.

    Raises UsageError for an unknown partition, Unavailable without privilege, MemsculptError when the program
    cannot be started, Refused when another group shares pages now.
    """
    settings = preparing.read_settings(config, is_named=config is not None)
    chosen = next((one for one in settings.partitions if one.name == partition), None)
    if chosen is None:
        known = ", ".join(one.name for one in settings.partitions) or "none"
        raise UsageError(place=f"--partition {partition}", problem="is not configured", fix=f"name one of: {known}")
    host = open_host(replace(settings, partitions=()))
    try:
        if share is not None:
            join_group(places.SHARING_GROUP, share)
            merge_own_pages()
        enter(host, chosen)
    finally:
        host.close()
    try:
        os.execvp(command[0], command)  # noqa: S606  becoming the program is what the command is for
    except OSError as error:
        raise MemsculptError(
            place=command[0], problem=f"cannot be started: {error.strerror}", fix="name a program that is there"
        ) from error


def enter(host: Host, partition: PartitionSettings) -> None:
    """Move this process into the partition's cgroup: the one that its rule names, or one of memsculpt's own.

    Raises MemsculptError when the rule names several, or one that is not there.
    """
    named = partition.match.cgroup if partition.match.is_by_cgroup() else None
    if named is None:
        cgroup = placement.own_cgroup(partition.name)
        host.create_cgroup(cgroup)
    elif WILDCARDS.isdisjoint(named):
        cgroup = CgroupPath(named)
    else:
        raise UsageError(
            place=f"--partition {partition.name}",
            problem=f'takes every cgroup that fits "{named}", so there is none to enter',
            fix="start the program in one of those cgroups, and it belongs to the partition",
        )
    try:
        host.move_process(own_instance(), cgroup)
    except Vanished as error:
        raise MemsculptError(
            place=f'cgroup "{cgroup}"',
            problem="is not there",
            fix="start the service that owns it first",
        ) from error
