# SPDX-License-Identifier: Apache-2.0
"""`request(workload, bytes, within)`: an application says what it is about to need, and is told how it is met.

In this order: there is room; its partition is resized (donors free ahead); it moves to a partition that
fits; a partition is created for it; or it is refused with the reason and the figures. What is granted
becomes a reservation: the workload's need counts as granted until `within` has passed and its use has
caught up. Each way is tried on the planner's own arithmetic, as if the request were granted already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.plan import Action, Answer, CreateCgroup, Grant, LimitKind, MoveProcess, Reason, Request
from memsculpt.domain.pool import PoolSummary
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Kind, PartitionSettings, Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath, Instance, Match
from memsculpt.plan import limits, memory, placement, reclaim, zones
from memsculpt.plan.decide import Outlook, look_ahead
from memsculpt.plan.reclaim import Taken
from memsculpt.plan.situation import level_column
from memsculpt.plan.state import Moved, PlannerState, Reservation

_MOST_TRIED = 8  # partitions with the most room that are tried for a move


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """The request and all that is needed to try an answer to it."""

    request: Request
    row: int
    target_bytes: int  # what the workload is to hold in the end
    processes: tuple[Instance, ...]
    planner: PlannerState  # as remembered, without the reservation
    observation: Observation
    profiles: Profiles
    forecasts: Forecasts
    settings: Settings

    def reserved(self) -> Reservation:
        return Reservation(
            workload=self.request.workload,
            target_bytes=self.target_bytes,
            asked_at_s=self.request.asked_at_s,
            within_s=self.request.within_s,
            processes=self.processes,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """What the host would be asked to become if the request were granted in this way."""

    outlook: Outlook
    fits: bool  # the partition's size covers all that its workloads will need
    taken: Taken  # what can leave until `within` has passed
    lacking_bytes: int  # what would still be missing then

    @property
    def is_met(self) -> bool:
        return self.fits and self.lacking_bytes <= 0


def answer_request(
    planner: PlannerState,
    request: Request,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    settings: Settings,
    *,
    pools: Sequence[PoolSummary] = (),
) -> tuple[PlannerState, Grant]:
    """Decide on a request; the state returned remembers what was granted. `pools` are those of `choose`.

    `request.size_bytes` is what the workload will need beyond what it holds now. The grant's actions are
    those of the plan that `choose` makes next: it is not necessary to apply them from the grant.
    """
    if request.workload not in observation.workloads.ids:
        return planner, _refuse(request, None, "unknown-workload", "no workload of this name is running", {})
    if request.size_bytes <= 0 or request.within_s < 0.0:
        return planner, _refuse(request, None, "no-size", "a request names a size above 0 and a time from now", {})
    profiles, forecasts = zones.without_gone(observation, profiles, forecasts, pools, settings)
    asked = _understood(planner, request, observation, profiles, forecasts, settings)
    partition = observation.workloads.partitions[asked.row]
    here: _Trial | None = None
    if partition is not None and partition in {each.name for each in settings.partitions + planner.created}:
        here = _try(asked, partition, observation, planner)
        if here.is_met:
            return _grant_here(asked, partition, here)
        if here.fits:  # room is lacking on the host: another partition has no more of it
            return planner, _refuse(request, partition, *_lacks(here, asked))
    for name, cgroup in _elsewhere(asked, partition):
        trial = _try(asked, name, _as_if_in(observation, asked.row, name), planner)
        if trial.is_met:
            return _grant_move(asked, partition, name, cgroup)
    return _create_or_refuse(asked, partition, here)


def _understood(
    planner: PlannerState,
    request: Request,
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    settings: Settings,
) -> _Asked:
    row = observation.workloads.ids.index(request.workload)
    workloads = observation.workloads
    held = int(workloads.resident_bytes[row] + workloads.kernel_bytes[row] - profiles.reclaimable_bytes[row])
    promised = (each.target_bytes for each in planner.reservations if each.workload == request.workload)
    processes = observation.processes
    mine = np.flatnonzero(processes.workload_index == row)
    horizon = forecasts.horizons_s[level_column(forecasts.horizons_s, request.within_s)]
    return _Asked(
        request=request,
        row=row,
        target_bytes=max([max(held, 0), *promised]) + request.size_bytes,
        processes=tuple(
            sorted(
                Instance(pid=int(processes.pids[each]), start_ticks=int(processes.start_ticks[each])) for each in mine
            )
        ),
        planner=planner,
        observation=observation,
        profiles=profiles,
        forecasts=forecasts,
        # The others' needs count over the time that the request gives.
        settings=replace(settings, forecast=replace(settings.forecast, act_horizon_s=horizon)),
    )


def _try(asked: _Asked, partition: str, observation: Observation, planner: PlannerState) -> _Trial:
    planner = memory.refreshed(planner, observation, asked.profiles, asked.settings)
    rate = asked.settings.plan.page_out_bytes_per_s * asked.request.within_s
    planner = replace(
        planner,
        reservations=(*planner.reservations, asked.reserved()),
        page_out_budget_bytes=planner.page_out_budget_bytes + rate,
    )
    outlook = look_ahead(planner, observation, asked.profiles, asked.forecasts, _no_corrections(), asked.settings)
    now, growth = outlook.now, outlook.growth
    row = now.partitions.row_of[partition]
    needed = int(now.sum_by_partition(now.workloads.need_bytes)[row] + now.charge_shift_bytes[row])
    taken = reclaim.free_ahead(now, outlook.planner, observation, asked.profiles, outlook.sizes, growth, asked.settings)
    # The room between the target and what may be planned with is there for this.
    slack = now.planned_bytes - now.target_bytes
    entitled = int(growth.entitled_bytes[asked.row])
    return _Trial(
        outlook=outlook,
        fits=needed <= int(now.ceiling_bytes[row]),
        taken=taken,
        lacking_bytes=max(growth.shortage_bytes - slack - taken.size_bytes, asked.target_bytes - entitled, 0),
    )


def _grant_here(asked: _Asked, partition: str, trial: _Trial) -> tuple[PlannerState, Grant]:
    outlook = trial.outlook
    now = outlook.now
    raised = tuple(
        action
        for action in limits.set_budgets(
            now,
            outlook.planner,
            outlook.sizes,
            outlook.growth,
            trial.taken.size_bytes,
            asked.settings,
            holds_still=False,
        ).raised
        if action.partition == partition and action.kind is not LimitKind.GUARANTEE
    )
    figures = _figures(asked, trial)
    actions: tuple[Action, ...] = (*trial.taken.actions, *raised)
    planner = _remembering(asked)
    cgroup = int(now.workloads.cgroup_row[asked.row])
    limit = int(now.cgroups.limit_bytes[cgroup]) if cgroup >= 0 else UNLIMITED_BYTES
    held = int(now.cgroups.used_bytes[cgroup] - now.workloads.reclaimable_bytes[asked.row]) if cgroup >= 0 else 0
    if not trial.taken.actions and held + asked.request.size_bytes <= limit:
        text = "{room_bytes} are free and its limit allows {target_bytes}"
        return planner, _granted(asked, Answer.ENOUGH, partition, Reason(code="enough", text=text, figures=figures))
    text = "its partition gets {partition_size_bytes}, {leaving_bytes} of others' cold pages leave for it"
    reason = Reason(code="resize", text=text, figures=figures)
    return planner, _granted(asked, Answer.RESIZED, partition, reason, actions)


def _grant_move(asked: _Asked, left: str | None, name: str, cgroup: CgroupPath) -> tuple[PlannerState, Grant]:
    why = f"it asked for more than {'its partition' if left else 'it had'} may give"
    moves = placement.move_workload(asked.observation, asked.request.workload, name, cgroup, why)
    text = "its own partition cannot grow by {asked_bytes}; this one can, and takes it in"
    reason = Reason(code="move", text=text, figures=_asked_figures(asked))
    grant = _granted(asked, Answer.MOVED, name, reason, moves)
    return _remembering(asked, grant, left), grant


def _create_or_refuse(asked: _Asked, partition: str | None, here: _Trial | None) -> tuple[PlannerState, Grant]:
    """Make a partition just large enough, where only the ceiling or the lack of a partition is in the way."""
    planner = asked.planner
    if not planner.abilities.groups:
        text = "its partition may not grow, and this host cannot make another"
        return planner, _refuse(asked.request, partition, "unable", text, _asked_figures(asked))
    fresh = _fresh_partition(asked, partition)
    richer = replace(planner, created=(*planner.created, fresh), columns=None)
    trial = _try(asked, fresh.name, _as_if_in(asked.observation, asked.row, fresh.name), richer)
    if not trial.is_met:
        return planner, _refuse(asked.request, partition, *_lacks(here or trial, asked))
    cgroup = placement.own_cgroup(fresh.name)
    reason = Reason(
        code="create",
        text="no partition can take {asked_bytes} more; one of {target_bytes} is made for it",
        figures=_asked_figures(asked),
    )
    moves = placement.move_workload(
        asked.observation, asked.request.workload, fresh.name, cgroup, "it asked for memory"
    )
    create = CreateCgroup(partition=fresh.name, cgroup=cgroup, reason=reason)
    grant = _granted(asked, Answer.CREATED, fresh.name, reason, (create, *moves))
    return _remembering(replace(asked, planner=richer), grant, partition), grant


def _fresh_partition(asked: _Asked, partition: str | None) -> PartitionSettings:
    known = {each.name: each for each in asked.settings.partitions + asked.planner.created}
    number = 1 + len(asked.planner.created)
    while f"request-{number}" in known:
        number += 1
    name = f"request-{number}"
    return PartitionSettings(
        name=name,
        match=Match(cgroup=placement.own_cgroup(name)),
        kind=Kind.DYNAMIC,
        ceiling_bytes=asked.target_bytes,
        priority=known[partition].priority if partition in known else 100.0,
    )


def _elsewhere(asked: _Asked, partition: str | None) -> Iterator[tuple[str, CgroupPath]]:
    """Yield partitions that it could move to, the roomiest first.

    Not to a fixed one, and not to a more important one: a request does not promote who makes it.
    """
    if not asked.planner.abilities.groups:
        return
    source = {each.name: each for each in asked.settings.partitions + asked.planner.created}
    most = (
        source[partition].priority if partition in source else min((p.priority for p in source.values()), default=0.0)
    )
    used: dict[str, int] = {}
    cgroup_of: dict[str, CgroupPath] = {}
    for state in asked.observation.cgroups:
        used[state.partition] = used.get(state.partition, 0) + state.used_bytes
        cgroup_of[state.partition] = min(cgroup_of.get(state.partition, state.cgroup), state.cgroup)
    found = [
        (source[name].ceiling_bytes - held, name)
        for name, held in used.items()
        if name in source and name != partition and source[name].kind is Kind.DYNAMIC and source[name].priority <= most
    ]
    for room, name in sorted(found, key=lambda each: (-each[0], each[1]))[:_MOST_TRIED]:
        if room >= asked.target_bytes:
            yield name, cgroup_of[name]


def _as_if_in(observation: Observation, row: int, partition: str) -> Observation:
    """Return the observation as it would be with the workload in another partition; its charge stays."""
    workloads = observation.workloads
    partitions = (*workloads.partitions[:row], partition, *workloads.partitions[row + 1 :])
    return replace(observation, workloads=replace(workloads, partitions=partitions))


def _remembering(asked: _Asked, grant: Grant | None = None, left: str | None = None) -> PlannerState:
    planner = asked.planner
    others = tuple(each for each in planner.reservations if each.workload != asked.request.workload)
    planner = replace(planner, reservations=(*others, asked.reserved()))
    if grant is None or grant.partition is None:
        return planner
    behind: dict[tuple[CgroupPath, CgroupPath], int] = {}
    for action in grant.actions:
        if isinstance(action, MoveProcess):
            way = (action.from_cgroup, action.to_cgroup)
            behind[way] = behind.get(way, 0) + action.charged_bytes
    stays = tuple(
        Moved(
            processes=asked.processes,
            from_partition=left,
            from_cgroup=cgroup,
            to_partition=grant.partition,
            to_cgroup=to_cgroup,
            charged_bytes=charged,
        )
        for (cgroup, to_cgroup), charged in sorted(behind.items())
    )
    return replace(planner, moves=(*planner.moves, *stays), pending=(*planner.pending, *grant.actions))


def _granted(asked: _Asked, answer: Answer, partition: str, reason: Reason, actions: tuple[Action, ...] = ()) -> Grant:
    return Grant(
        answer=answer,
        partition=partition,
        granted_bytes=asked.request.size_bytes,
        stays_charged_bytes=sum(each.charged_bytes for each in actions if isinstance(each, MoveProcess)),
        reason=reason,
        actions=actions,
    )


def _refuse(request: Request, partition: str | None, code: str, text: str, figures: Mapping[str, float]) -> Grant:
    facts = {"asked_bytes": float(request.size_bytes), "within_s": request.within_s, **figures}
    return Grant(
        answer=Answer.REFUSED,
        partition=partition,
        granted_bytes=0,
        stays_charged_bytes=0,
        reason=Reason(code=code, text=text, figures=facts),
    )


def _lacks(trial: _Trial, asked: _Asked) -> tuple[str, str, Mapping[str, float]]:
    figures = _figures(asked, trial)
    if trial.fits or trial.lacking_bytes > 0:
        text = (
            "{lacking_bytes} are lacking: {room_bytes} are free, and {leaving_bytes} of others' cold pages "
            "can leave within {within_s}"
        )
        return "no-room", text, figures
    return "ceiling", "its partition may have {ceiling_bytes} at most, and it would need {target_bytes}", figures


def _asked_figures(asked: _Asked) -> dict[str, float]:
    return {
        "asked_bytes": float(asked.request.size_bytes),
        "target_bytes": float(asked.target_bytes),
        "within_s": asked.request.within_s,
    }


def _figures(asked: _Asked, trial: _Trial) -> dict[str, float]:
    now, sizes = trial.outlook.now, trial.outlook.sizes
    row = int(now.workloads.partition_row[asked.row])
    return {
        **_asked_figures(asked),
        "room_bytes": float(max(now.planned_bytes - int(now.held_bytes.sum()), 0)),
        "leaving_bytes": float(trial.taken.size_bytes),
        "lacking_bytes": float(trial.lacking_bytes),
        "partition_size_bytes": float(sizes.size_bytes[row]),
        "ceiling_bytes": float(now.ceiling_bytes[row]),
        "forecast_use_bytes": float(trial.outlook.growth.forecast_use_bytes),
        "capacity_bytes": float(now.planned_bytes),
        "horizon_s": asked.settings.forecast.act_horizon_s,
    }


def _no_corrections() -> Corrections:
    none = np.zeros(0)
    return Corrections(
        ids=(),
        headroom_ratio=none,
        page_out_allowed_ratio=none.copy(),
        page_in_useful_ratio=none.copy(),
        refused_until_s=none.copy(),
        scored_count=np.zeros(0, np.int64),
        covered_ratio=none.copy(),
        pinball_bytes=none.copy(),
    )
