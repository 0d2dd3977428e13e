# SPDX-License-Identifier: Apache-2.0
"""Which cgroups the rules of partitions name, and who lives in them now."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import ConfigError, Vanished
from memsculpt.host.linux.controller import Controller, decode, encode

WALK_INTERVAL_S = 2.0  # how often the tree is searched for cgroups that fit a rule with wildcards


@dataclass(frozen=True, slots=True)
class Claim:
    """A cgroup that, with all below it, is one workload of a partition."""

    cgroup: CgroupPath
    partition: str


@dataclass(frozen=True, slots=True)
class Membership:
    """Claims that exist now, the workload's cgroup of each process in them, and what is to be told."""

    claims: tuple[Claim, ...]
    cgroup_of: dict[int, CgroupPath]  # by pid
    notes: tuple[str, ...]


class Rules:
    """The rules that adopt whole cgroups."""

    def __init__(self, controller: Controller, partitions: Sequence[PartitionSettings]) -> None:
        self._controller = controller
        self._partitions = tuple(each for each in partitions if each.match.is_by_cgroup())
        self._walked_s = -WALK_INTERVAL_S
        self._wild: dict[str, tuple[CgroupPath, ...]] = {}  # by partition

    def check(self) -> None:
        """Raise ConfigError for a named cgroup that is absent, or one that two partitions claim."""
        owner: dict[CgroupPath, str] = {}
        for partition in self._partitions:
            rule = partition.match.cgroup or ""
            place = f'partition "{partition.name}"'
            if not is_wild(rule) and not os.path.isdir(self._controller.folder(CgroupPath(rule))):
                raise ConfigError(
                    place=place,
                    problem=f"the cgroup {rule!r} is absent below {os.fsdecode(self._controller.root)}",
                    fix="start what lives in it first, or name a pattern such as 'jobs/*'",
                )
            for cgroup in self._fitting(rule):
                rival = next((at for at in owner if is_below(cgroup, at) or is_below(at, cgroup)), None)
                if rival is not None:
                    raise ConfigError(
                        place=place,
                        problem=f'claims the cgroup {cgroup!r}, and so does partition "{owner[rival]}" ({rival!r})',
                        fix="let each cgroup fit one rule only",
                    )
            owner.update(dict.fromkeys(self._fitting(rule), partition.name))

    def members(self, now_s: float) -> Membership:
        """Read who lives in the claimed cgroups now; a cgroup that is gone claims nothing."""
        if now_s - self._walked_s >= WALK_INTERVAL_S:
            self._walked_s = now_s
            self._wild = {
                each.name: self._fitting(each.match.cgroup or "")
                for each in self._partitions
                if is_wild(each.match.cgroup or "")
            }
        claims: list[Claim] = []
        notes: list[str] = []
        cgroup_of: dict[int, CgroupPath] = {}
        for partition in self._partitions:
            rule = partition.match.cgroup or ""
            for cgroup in self._wild[partition.name] if is_wild(rule) else (CgroupPath(rule),):
                rival = next((each for each in claims if is_below(cgroup, each.cgroup)), None)
                if rival is not None:
                    notes.append(f"cgroup {cgroup!r} belongs to {rival.partition}, which claims {rival.cgroup!r}")
                    continue
                try:
                    cgroup_of.update(dict.fromkeys(self._pids(cgroup), cgroup))
                except Vanished:
                    notes.append(f"cgroup {cgroup!r} of partition {partition.name!r} is gone")
                    continue
                claims.append(Claim(cgroup, partition.name))
            if is_wild(rule) and not self._wild[partition.name]:
                notes.append(f"no cgroup fits {rule!r} of partition {partition.name!r}")
        return Membership(tuple(claims), cgroup_of, tuple(notes))

    def _pids(self, cgroup: CgroupPath) -> list[int]:
        pids = list(self._controller.pids(cgroup))
        for child in children(self._controller, cgroup):
            try:
                pids.extend(self._pids(child))
            except Vanished:
                continue  # a child that ended between the listing and the reading
        return pids

    def _fitting(self, rule: str) -> tuple[CgroupPath, ...]:
        """Return the topmost existing cgroups that fit: what is below one of them is part of it."""
        if not is_wild(rule):
            return (CgroupPath(rule),)
        literal = [part for part in _before_wildcard(rule).split("/") if part]
        return tuple(sorted(self._search(CgroupPath("/".join(literal)), rule)))

    def _search(self, at: CgroupPath, rule: str) -> list[CgroupPath]:
        found: list[CgroupPath] = []
        for child in children(self._controller, at):
            found.extend([child] if fnmatchcase(child, rule) else self._search(child, rule))
        return found


def children(controller: Controller, cgroup: CgroupPath) -> list[CgroupPath]:
    """Return the cgroups right below one; [] when it is gone."""
    folder = controller.folder(cgroup)
    try:
        if os.stat(folder).st_nlink == 2:  # kernfs counts directories here: none is below, nothing to list
            return []
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    prefix = encode(cgroup) + b"/" if cgroup else b""
    return [decode(prefix + name) for name in sorted(names)]


def is_wild(rule: str) -> bool:
    """Tell whether a rule is a pattern rather than a name."""
    return any(character in rule for character in "*?[")


def is_below(cgroup: str, other: str) -> bool:
    """Tell whether `cgroup` is `other` or lies below it."""
    return cgroup == other or other == "" or cgroup.startswith(other + "/")


def _before_wildcard(rule: str) -> str:
    end = min(rule.find(character) for character in "*?[" if character in rule)
    return rule[:end].rpartition("/")[0]
