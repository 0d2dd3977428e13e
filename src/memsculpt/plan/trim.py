# SPDX-License-Identifier: Apache-2.0
"""Page cache that nobody uses again leaves a partition that is configured so, also when there is room.

For batch work: a build reads its sources once and writes objects that are read once, if ever, and all of it
stays until somebody needs the room. How much page cache is worth keeping is learnt from refaults (the kernel's
shadow entries: pages that were evicted and are read again, mm/workingset.c): what came back since the tick
before was missed, so some times that much more is kept; without refaults a little less is kept with each tick, so that
what was hot and no longer is leaves, too. *Which* pages leave is the kernel's choice, by its own order: used
once before used again. Dirty pages cannot leave; a reclaim that meets them has the kernel write them out, and
the next one takes them.

Nothing is taken from who stalls on memory or was OOM-killed, nothing below the guarantee and the floor, nothing
beyond the rate, and nothing ever by a limit that stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import Reason, Reclaim
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import CgroupPath
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import Kept, PlannerState

# Each byte that came back stands for others that will: they were evicted with it, and are read later.
_MISSED_WEIGHT = 4.0
_FORGET_HALF_LIFE_S = 120.0
# A workload that stalls keeps so much more in the next tick than it has: it is let alone until that is forgotten.
_HURT_RATIO = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What leaves in this plan, and what is to be remembered."""

    actions: tuple[Reclaim, ...]
    kept: Mapping[CgroupPath, Kept]
    held_back: tuple[Reason, ...] = ()


def trim(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    settings: Settings,
    *,
    holds_still: bool,
) -> Trimmed:
    """Choose what page cache leaves the cgroups of trimmed partitions. `holds_still`: nothing, but go on learning."""
    rows = [int(row) for row in np.flatnonzero(now.partitions.is_trimmed[now.cgroups.partition_row])]
    if not rows:
        return Trimmed(actions=(), kept={})
    if not planner.abilities.drop_cache:
        reason = Reason(code="unable", text="page cache is to be trimmed: this host cannot take it from a cgroup")
        return Trimmed(actions=(), kept={}, held_back=(reason,))
    elapsed_s = settings.interval_s if planner.planned_at_s is None else now.now_s - planner.planned_at_s
    cache = now.sum_by_cgroup(observation.workloads.file_bytes)
    refaults = now.sum_by_cgroup(observation.workloads.refaults_count)
    hurt = _hurt(now, profiles, settings)
    may_leave = np.maximum(now.cgroups.used_bytes - _lower_bytes(now), 0)
    left_bytes = int(settings.plan.page_out_bytes_per_s * min(max(elapsed_s, 0.0), 2.0 * settings.interval_s))
    actions: list[Reclaim] = []
    kept: dict[CgroupPath, Kept] = {}
    for row in rows:
        path = now.cgroups.states[row].cgroup
        before = planner.kept.get(path)
        learnt = _learnt(
            before, int(refaults[row]), int(cache[row]), elapsed_s, now.page_bytes, is_hurt=bool(hurt[row])
        )
        kept[path] = learnt
        size = min(int(cache[row] - learnt.cache_bytes), int(may_leave[row]), left_bytes)
        size = size // now.page_bytes * now.page_bytes
        if holds_still or hurt[row] or size < settings.plan.min_move_bytes:
            continue
        left_bytes -= size
        figures = {
            "moved_bytes": float(size),
            "cache_bytes": float(cache[row]),
            "kept_bytes": learnt.cache_bytes,
            "refaulted_bytes": float(_refaulted(before, int(refaults[row])) * now.page_bytes),
        }
        text = (
            "it is configured to be trimmed and holds {cache_bytes} of page cache, of which {kept_bytes} are kept: "
            "{refaulted_bytes} were read again since the tick before"
        )
        partition = now.partitions.names[int(now.cgroups.partition_row[row])]
        reason = Reason(code="trim", text=text, figures=figures)
        actions.append(Reclaim(partition=partition, cgroup=path, size_bytes=size, reason=reason, only_cache=True))
    return Trimmed(actions=tuple(sorted(actions, key=lambda action: action.cgroup)), kept=kept)


def _refaulted(before: Kept | None, refaults_count: int) -> int:
    # Before the first look nobody was trimmed here; a cgroup that was made anew counts from 0.
    return 0 if before is None else max(refaults_count - before.refaults_count, 0)


def _learnt(
    before: Kept | None, refaults_count: int, cache_bytes: int, elapsed_s: float, page_bytes: int, *, is_hurt: bool
) -> Kept:
    """Return what is kept from now on: what was missed more, and a little less of the rest."""
    faded = 0.0 if before is None else before.cache_bytes * 0.5 ** (max(elapsed_s, 0.0) / _FORGET_HALF_LIFE_S)
    missed = _MISSED_WEIGHT * _refaulted(before, refaults_count) * page_bytes
    keep = max(faded, min(faded + missed, float(cache_bytes)))  # there is no more to keep than there is
    if is_hurt:
        keep = max(keep, _HURT_RATIO * cache_bytes)
    return Kept(cache_bytes=keep, refaults_count=refaults_count)


def _hurt(now: Situation, profiles: Profiles, settings: Settings) -> Int64:
    # That a limit was hit does not count: on v1 the reclaim itself is a limit for a moment.
    stalls = (now.workloads.stall_ratio > settings.plan.pressure_max_ratio) | profiles.was_oom_killed
    return now.sum_by_cgroup(stalls.astype(np.int64))


def _lower_bytes(now: Situation) -> Int64:
    """Return what each cgroup keeps of its partition's guarantee or floor: by what it uses of it."""
    used = np.maximum(now.used_bytes[now.cgroups.partition_row], 1)
    share = np.minimum(now.cgroups.used_bytes / used, 1.0)
    return np.ceil(now.lower_bytes[now.cgroups.partition_row] * share).astype(np.int64)
