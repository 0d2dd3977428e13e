# SPDX-License-Identifier: Apache-2.0
"""The heavy half of `exec`: which cgroup a partition is, and the way into it."""

import os
from dataclasses import replace
from typing import NoReturn

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath
from memsculpt.doors.cli import preparing
from memsculpt.errors import MemsculptError, UsageError
from memsculpt.host import merge_own_pages, open_host, own_instance

WILDCARDS = frozenset("*?[")


def become(command: list[str], *, partition: str, share: bool, config: str | None) -> NoReturn:
    """Enter the partition's cgroup and replace this process by the program.

    Raises UsageError for an unknown partition, Unavailable without privilege, MemsculptError when the program
    cannot be started.
    """
    settings = preparing.read_settings(config, is_named=config is not None)
    chosen = next((one for one in settings.partitions if one.name == partition), None)
    if chosen is None:
        known = ", ".join(one.name for one in settings.partitions) or "none"
        raise UsageError(place=f"--partition {partition}", problem="is not configured", fix=f"name one of: {known}")
    host = open_host(replace(settings, partitions=()))
    try:
        cgroup = cgroup_of(chosen)
        host.create_cgroup(cgroup)
        host.move_process(own_instance(), cgroup)
        if share:
            merge_own_pages()
    finally:
        host.close()
    try:
        os.execvp(command[0], command)  # noqa: S606  becoming the program is what the command is for
    except OSError as error:
        raise MemsculptError(
            place=command[0], problem=f"cannot be started: {error.strerror}", fix="name a program that is there"
        ) from error


def cgroup_of(partition: PartitionSettings) -> CgroupPath:
    """Return the cgroup that a program of the partition enters: the one that is named, or one of ours."""
    named = partition.match.cgroup
    if named is not None and not WILDCARDS.intersection(named):
        return CgroupPath(named)
    return CgroupPath(f"memsculpt/{partition.name}")
