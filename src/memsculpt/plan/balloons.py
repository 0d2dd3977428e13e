# SPDX-License-Identifier: Apache-2.0
"""Balloons: what each guest should have of its memory now. Pure; docs/methods/virtual-machines.md has the reasons.

*Lower* (inflate): the host gets memory from a guest that is not expected to need it. *Raise* (deflate): the guest gets
it back. What a partition's VMs may hold together is divided among them as partitions divide the host: so that the
chance of falling short is equal at the margin (partitions.py). Then, for each guest:

- Never below what it needs and is forecast to need (the median), a margin, its part of the guarantee, and `[vms]
  floor`; the margin is larger where the guest would die of a wrong forecast (no deflate-on-oom).
- Raised at once to what it is forecast to need at NEED_LEVEL, as far as its part of the room goes, or when it is in
  distress by itself (swap-ins, faults, little available); as spare room allows otherwise, in steps.
- Lowered in steps, one at a time, faster when the host is about to run short; not at all while the host has room, while
  the guest is or was short, or where nothing would come free: memory that was never touched, or that free page
  reporting has returned already.
- Never above what the operator left it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.arrays import Bool
from memsculpt.domain.guest import GuestDemand
from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import Reason, SetBalloon
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, Settings
from memsculpt.domain.vm import VmId, VmReading, VmState
from memsculpt.plan import partitions
from memsculpt.plan.balloon_watch import TOLERANCE_BYTES, follow_balloon, must_withdraw
from memsculpt.plan.growth import Growth
from memsculpt.plan.partitions import Demand, Sizes
from memsculpt.plan.situation import NEED_LEVEL, Situation, level_column
from memsculpt.plan.state import Balloon, PlannerState

STEP_BYTES = MIB
# Beyond the forecast. A guest without deflate-on-oom that is left too little does not swap first: it may panic.
MARGIN_RATIO, MARGIN_LEAST_BYTES = 0.05, 16 * MIB
WIDE_MARGIN_RATIO, WIDE_MARGIN_LEAST_BYTES = 0.10, 32 * MIB
# Of the guest's memory in a second. 256 MiB take a guest 0.6 to 0.9 s (docs/costs.md), on a processor of its own.
CALM_RATIO_PER_S, URGENT_RATIO_PER_S, SPARE_RATIO_PER_S = 1 / 64, 1 / 2, 1 / 32
# Of the capacity: below the first nobody is asked to give and spare room is handed out; the second is urgent.
CALM_FILL_RATIO, URGENT_FILL_RATIO = 0.8, 1.0
SPARE_WORTH_RATIO = 0.05  # of the guest's memory: spare room below this is not worth a step
# The guest is short: it swaps in or faults with little left, or has next to nothing. With much left it only goes back
# to what it had swapped before.
SHORT_SWAP_IN_BYTES_PER_S = 0.25 * MIB
SHORT_FAULTS_PER_S, LITTLE_RATIO, NOTHING_RATIO = 20.0, 0.15, 0.03
RELIEF_RATIO, RELIEF_LEAST_BYTES = 1 / 8, 16 * MIB
SHORT_REST_S = 5.0  # so long after it was short, a guest is asked for nothing
GONE_KEPT_S = 86_400.0  # a VM that was saved, and may begin again with the balloon that it had
GREW_BYTES, GREW_REST_S = 4 * MIB, 5.0  # nor after its need has risen: what it is told to need is a second old


@dataclass(frozen=True, slots=True, kw_only=True)
class Balloons:
    """What is asked, and what is known of each balloon afterwards."""

    lowered: tuple[SetBalloon, ...] = ()
    raised: tuple[SetBalloon, ...] = ()
    held_back: tuple[Reason, ...] = ()
    known: Mapping[VmId, Balloon]
    moved_partitions: tuple[int, ...] = ()  # rows of partitions whose memory balloons move


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vm:
    """A VM of a partition whose balloon may be moved. Sizes are of guest memory."""

    reading: VmReading
    demand: GuestDemand
    balloon: Balloon
    row: int  # in the workloads
    partition: int
    margin_bytes: int
    lowest_bytes: int
    wanted_bytes: int  # at NEED_LEVEL, where there is room
    is_short: bool

    @property
    def now_bytes(self) -> int:
        """Return what it is on its way to."""
        asked = self.balloon.asked_bytes
        return self.balloon.seen_bytes if asked is None or self.balloon.is_given_back else asked


def set_balloons(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    profiles: Profiles,
    sizes: Sizes,
    growth: Growth,
    settings: Settings,
    *,
    holds_still: bool = False,
) -> Balloons:
    """Follow every balloon, and ask those that may be asked."""
    known = follow_all(planner, observation)
    if not settings.vms.balloon or not planner.abilities.balloons:
        return Balloons(known=known)
    movable, withdrawn, held_back = _movable(now, observation, profiles, known, settings)
    for vm in movable:
        known[vm.reading.id] = vm.balloon
    lowered: list[SetBalloon] = []
    raised: list[SetBalloon] = withdrawn
    shares = _shares(now, movable, sizes)
    fill_ratio = growth.forecast_use_bytes / max(now.planned_bytes, 1)
    elapsed_s = settings.interval_s if planner.planned_at_s is None else now.now_s - planner.planned_at_s
    elapsed_s = min(max(elapsed_s, 0.0), 2.0 * settings.interval_s)
    left_bytes = int(settings.plan.shrink_bytes_per_s * elapsed_s)
    for vm in movable:
        target = min(max(shares[vm.reading.id], vm.lowest_bytes), vm.balloon.most_bytes)
        raise_ = None if holds_still and not vm.is_short else _raise(now, vm, target, fill_ratio, elapsed_s)
        if raise_ is not None:
            raised.append(raise_)
        elif not holds_still and target < vm.now_bytes:
            lower = _lower(now, vm, target, fill_ratio, elapsed_s, left_bytes, settings)
            if lower is not None:
                lowered.append(lower)
                left_bytes -= lower.from_bytes - lower.to_bytes
    return Balloons(
        lowered=tuple(lowered),
        raised=tuple(raised),
        held_back=tuple(held_back),
        known=known,
        moved_partitions=tuple(sorted({vm.partition for vm in movable})),
    )


def follow_all(planner: PlannerState, observation: Observation) -> dict[VmId, Balloon]:
    """Return what is known of every balloon now.

    Of a VM that does not tell, or is gone for a while (saved), what was asked is kept: it may come back with that.
    """
    oldest_s = observation.time_s - GONE_KEPT_S
    known = {
        vm: one for vm, one in planner.balloons.items() if one.asked_bytes is not None and one.followed_at_s > oldest_s
    }
    for reading in observation.vms:
        followed = follow_balloon(planner.balloons.get(reading.id), reading, observation.time_s)
        if followed is not None:
            known[reading.id] = replace(followed, followed_at_s=observation.time_s)
    return known


def not_squeezed(now: Situation, sizes: Sizes, ballooned: Balloons) -> Sizes:
    """Return the sizes for limits: a partition whose balloons move is not squeezed below what it holds.

    A limit would send guests' pages to swap that a balloon frees a moment later. Fixed sizes and ceilings are kept.
    """
    rows = list(ballooned.moved_partitions)
    if not rows:
        return sizes
    eased = sizes.size_bytes.copy()
    may = ~now.partitions.is_fixed[rows]
    held = np.minimum(now.held_bytes[rows], now.ceiling_bytes[rows])
    eased[rows] = np.where(may, np.maximum(eased[rows], held), eased[rows])
    return replace(sizes, size_bytes=eased)


def is_short(demand: GuestDemand, balloon_bytes: int) -> bool:
    """Tell whether a guest is short of memory by its own figures, whatever the host looks like."""
    if not demand.is_told:
        return False
    comes_back = demand.swap_in_bytes_per_s > SHORT_SWAP_IN_BYTES_PER_S
    comes_back |= demand.major_faults_per_s > SHORT_FAULTS_PER_S
    has_little = demand.available_bytes < LITTLE_RATIO * balloon_bytes
    return (comes_back and has_little) or demand.available_bytes < NOTHING_RATIO * balloon_bytes


def margin_bytes(need_bytes: int, *, is_safe: bool) -> int:
    """Return what a guest is left beyond what it is forecast to need; `is_safe`: it has deflate-on-oom."""
    if is_safe:
        return max(MARGIN_LEAST_BYTES, int(MARGIN_RATIO * need_bytes))
    return max(WIDE_MARGIN_LEAST_BYTES, int(WIDE_MARGIN_RATIO * need_bytes))


def _movable(
    now: Situation, observation: Observation, profiles: Profiles, known: Mapping[VmId, Balloon], settings: Settings
) -> tuple[list[_Vm], list[SetBalloon], list[Reason]]:
    """Return the VMs whose balloons may be moved, what is taken back of refused asks, and why others are not."""
    row_of = {one: row for row, one in enumerate(now.workloads.ids)}
    found: list[_Vm] = []
    withdrawn: list[SetBalloon] = []
    held_back: list[Reason] = []
    count_of: dict[int, int] = {}
    for reading in observation.vms:
        row = row_of.get(reading.workload, -1)
        if row >= 0 and now.workloads.partition_row[row] >= 0:
            partition = int(now.workloads.partition_row[row])
            count_of[partition] = count_of.get(partition, 0) + 1
    for reading in observation.vms:
        row, balloon = row_of.get(reading.workload, -1), known.get(reading.id)
        demand = profiles.guests.get(reading.workload)
        if row < 0 or now.workloads.partition_row[row] < 0 or balloon is None or demand is None:
            continue
        if reading.state is not VmState.RUNNING:
            continue
        partition = int(now.workloads.partition_row[row])
        if balloon.rests_until_s > now.now_s:
            if must_withdraw(balloon, now.now_s):
                withdrawn.append(_ask(now, reading, row, balloon, balloon.seen_bytes, "balloon-refused", _REFUSED, {}))
            figures = {"rest_s": balloon.rests_until_s - now.now_s, "balloon_bytes": float(balloon.seen_bytes)}
            text = f"{reading.workload}: {balloon.rests_why}; it is left at {{balloon_bytes}} for another {{rest_s}}"
            held_back.append(Reason(code="balloon-rests", text=text, figures=figures))
            continue
        found.append(_vm(now, reading, demand, balloon, row, partition, count_of[partition], settings))
    return sorted(found, key=lambda vm: vm.reading.workload), withdrawn, held_back


_REFUSED = "its guest does not follow, so what it was asked for is taken back: it keeps {to_bytes}"


def _vm(
    now: Situation,
    reading: VmReading,
    demand: GuestDemand,
    balloon: Balloon,
    row: int,
    partition: int,
    count: int,
    settings: Settings,
) -> _Vm:
    short = is_short(demand, balloon.seen_bytes)
    needs = demand.need_bytes or 0
    if needs > balloon.need_bytes + GREW_BYTES and balloon.need_bytes:
        balloon = replace(balloon, grew_at_s=now.now_s)
    balloon = replace(balloon, need_bytes=needs, pressed_at_s=now.now_s if short else balloon.pressed_at_s)
    need = max(int(now.workloads.median_bytes[row]) - demand.overhead_bytes, needs)
    likely = max(int(now.workloads.need_bytes[row]) - demand.overhead_bytes, needs)
    is_safe = reading.features.deflate_on_oom
    margin = margin_bytes(need, is_safe=is_safe)
    if balloon.foreign_at_s > now.now_s - 20 * SHORT_REST_S:  # it was wrong before: it took memory back
        margin *= 2
    lowest = need + margin
    if short:
        lowest = max(lowest, balloon.seen_bytes + max(RELIEF_LEAST_BYTES, int(RELIEF_RATIO * balloon.seen_bytes)))
    if not demand.is_told:  # nobody knows what it needs
        lowest = reading.ram_bytes
    part = int(now.partitions.guarantee_bytes[partition]) // count - demand.overhead_bytes
    lowest = max(lowest, settings.vms.floor_bytes, part)
    return _Vm(
        reading=reading,
        demand=demand,
        balloon=balloon,
        row=row,
        partition=partition,
        margin_bytes=margin,
        lowest_bytes=_rounded(lowest, balloon),
        wanted_bytes=_rounded(max(likely + margin, lowest), balloon),
        is_short=short,
    )


def _rounded(size_bytes: int, balloon: Balloon) -> int:
    return min(-(-size_bytes // STEP_BYTES) * STEP_BYTES, balloon.most_bytes)


def _shares(now: Situation, movable: list[_Vm], sizes: Sizes) -> Mapping[VmId, int]:
    """Return what each guest should have, in guest memory: what their partitions have, divided among them all.

    What others in these partitions need is taken off, and what every partition of VMs holds beyond its size: a VM
    whose balloon may not be moved now keeps what it has, whoever it was meant for.
    """
    if not movable:
        return {}
    vms = movable
    mine = np.zeros(len(now.workloads.ids), np.bool_)
    mine[[vm.row for vm in vms]] = True
    inside = now.workloads.partition_row >= 0
    others = now.sum_by_partition(np.where(inside & ~mine, now.workloads.need_bytes, 0))
    concerned = np.array(sorted({vm.partition for vm in vms}), np.int64)
    resting = inside & ~mine & _is_vm(now)
    beyond = np.where(resting, np.maximum(now.workloads.held_bytes - now.workloads.need_bytes, 0), 0)
    room = sizes.size_bytes[concerned] - others[concerned]
    # A partition of which no balloon moves keeps more than its size if its VMs hold more.
    idle = np.setdiff1d(np.flatnonzero(now.sum_by_partition(np.where(resting, 1, 0))), concerned)
    held = now.sum_by_partition(np.where(resting, now.workloads.held_bytes, 0))
    excess = int(np.maximum(held[idle] - sizes.size_bytes[idle], 0).sum())
    excess += int(now.sum_by_partition(beyond)[concerned].sum())
    capacity = max(int(np.maximum(room, 0).sum()) - excess, 0)
    divided = partitions.divide(_demand_of(now, vms), capacity_bytes=capacity, page_bytes=now.page_bytes)
    return {
        vm.reading.id: (size - vm.demand.overhead_bytes) // STEP_BYTES * STEP_BYTES
        for vm, size in zip(vms, divided.size_bytes.tolist(), strict=True)
    }


def _is_vm(now: Situation) -> Bool:
    return np.array([one.startswith("vm:") for one in now.workloads.ids], dtype=np.bool_)


def _demand_of(now: Situation, vms: list[_Vm]) -> Demand:
    """Return the VMs' predictive distributions, each with its margin; as situation.demand_of has the partitions'."""
    rows = [vm.row for vm in vms]
    margin = np.array([vm.margin_bytes for vm in vms], np.float64)
    lowest = np.array([vm.lowest_bytes + vm.demand.overhead_bytes for vm in vms], np.int64)
    levels = np.array([0.0, *now.levels, (1.0 + now.levels[-1]) / 2.0])
    knots = np.empty((len(vms), len(levels)))
    knots[:, 0] = lowest
    knots[:, 1:-1] = now.workloads.quantiles_bytes[rows] + margin[:, np.newaxis]
    knots[:, -1] = now.workloads.peak_bytes[rows] + margin
    knots = np.maximum.accumulate(knots, axis=1)
    most = [vm.balloon.most_bytes + vm.demand.overhead_bytes for vm in vms]
    ceiling = np.minimum(np.array(most, np.int64), now.ceiling_bytes[[vm.partition for vm in vms]])
    ceiling = np.maximum(ceiling, lowest)
    return Demand(
        levels=levels,
        knots_bytes=knots,
        tail_bytes=np.maximum(knots[:, -1] / 16.0, float(STEP_BYTES)),
        guarantee_bytes=np.zeros(len(vms), np.int64),
        floor_bytes=lowest,
        ceiling_bytes=ceiling,
        weights=now.partitions.weights[[vm.partition for vm in vms]],
        giving_order=np.arange(len(vms), dtype=np.int64),
    )


def _raise(now: Situation, vm: _Vm, target: int, fill_ratio: float, elapsed_s: float) -> SetBalloon | None:
    """Give back at once what is needed, and spare room in steps."""
    figures = _figures(now, vm)
    goal = max(vm.lowest_bytes, min(vm.wanted_bytes, target))
    if vm.now_bytes < goal:
        if not vm.demand.is_told:
            text = "nothing is known of its need any more, so it gets its memory back"
            return _ask(now, vm.reading, vm.row, vm.balloon, goal, "balloon-silent", text, figures)
        if vm.is_short:
            text = (
                "its guest is short: {available_bytes} available, {swap_in_bytes} a second coming from its swap, "
                "{major_faults} major faults a second"
            )
            return _ask(now, vm.reading, vm.row, vm.balloon, goal, "balloon-short", text, figures)
        text = "its guest is forecast to need {need_bytes}, and keeps a margin of {margin_bytes}"
        return _ask(now, vm.reading, vm.row, vm.balloon, goal, "balloon-need", text, figures)
    if fill_ratio >= CALM_FILL_RATIO:
        return None
    spare = min(target, vm.now_bytes + int(SPARE_RATIO_PER_S * vm.reading.ram_bytes * elapsed_s))
    spare = spare if spare >= vm.balloon.most_bytes else spare // STEP_BYTES * STEP_BYTES
    is_worth = target - vm.now_bytes >= SPARE_WORTH_RATIO * vm.reading.ram_bytes or target == vm.balloon.most_bytes
    if spare > vm.now_bytes and is_worth:
        text = "its partition has room for {share_bytes} of guest memory"
        figures |= {"share_bytes": float(target)}
        return _ask(now, vm.reading, vm.row, vm.balloon, spare, "balloon-spare", text, figures)
    return None


def _lower(
    now: Situation,
    vm: _Vm,
    target: int,
    fill_ratio: float,
    elapsed_s: float,
    left_bytes: int,
    settings: Settings,
) -> SetBalloon | None:
    """Take one step towards the target, where that frees something and nobody was short lately."""
    if fill_ratio < CALM_FILL_RATIO or vm.is_short or now.now_s - vm.balloon.pressed_at_s < SHORT_REST_S:
        return None
    if now.now_s - vm.balloon.grew_at_s < GREW_REST_S:
        return None
    if not vm.demand.is_told or abs(vm.balloon.seen_bytes - vm.now_bytes) > TOLERANCE_BYTES:
        return None  # the step before is still under way
    resident = int(now.workloads.held_bytes[vm.row]) - vm.demand.overhead_bytes
    if resident - target < settings.plan.min_move_bytes:
        return None
    urgency = min((fill_ratio - CALM_FILL_RATIO) / (URGENT_FILL_RATIO - CALM_FILL_RATIO), 1.0)
    rate = CALM_RATIO_PER_S + urgency * (URGENT_RATIO_PER_S - CALM_RATIO_PER_S)
    step = min(max(int(rate * vm.reading.ram_bytes * elapsed_s), settings.plan.min_move_bytes), left_bytes)
    to_bytes = -(-max(target, vm.now_bytes - step) // STEP_BYTES) * STEP_BYTES
    if vm.now_bytes - to_bytes < min(settings.plan.min_move_bytes, vm.now_bytes - target):
        return None
    figures = _figures(now, vm) | {
        "target_bytes": float(target),
        "fill_ratio": fill_ratio,
        "horizon_s": settings.forecast.act_horizon_s,
    }
    text = (
        "its guest is forecast to need {need_bytes} over {horizon_s} and has {available_bytes} to spare, while the "
        "partitions are going to fill {fill_ratio} of the capacity; on the way to {target_bytes}"
    )
    return _ask(now, vm.reading, vm.row, vm.balloon, to_bytes, "balloon-idle", text, figures, from_bytes=vm.now_bytes)


def _figures(now: Situation, vm: _Vm) -> dict[str, float]:
    need = int(now.workloads.quantiles_bytes[vm.row, level_column(now.levels, NEED_LEVEL)]) - vm.demand.overhead_bytes
    return {
        "need_bytes": float(max(need, vm.demand.need_bytes or 0)),
        "margin_bytes": float(vm.margin_bytes),
        "available_bytes": float(vm.demand.available_bytes),
        "swap_in_bytes": vm.demand.swap_in_bytes_per_s,
        "major_faults": vm.demand.major_faults_per_s,
    }


def _ask(
    now: Situation,
    reading: VmReading,
    row: int,
    balloon: Balloon,
    to_bytes: int,
    code: str,
    text: str,
    figures: dict[str, float],
    *,
    from_bytes: int | None = None,
) -> SetBalloon:
    return SetBalloon(
        partition=now.partitions.names[int(now.workloads.partition_row[row])],
        workload=reading.workload,
        process=reading.process,
        vm=reading.id,
        from_bytes=balloon.seen_bytes if from_bytes is None else from_bytes,
        to_bytes=to_bytes,
        reason=Reason(code=code, text=text, figures=figures | {"to_bytes": float(to_bytes)}),
    )
