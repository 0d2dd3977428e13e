# SPDX-License-Identifier: Apache-2.0
"""Inside of pools: cold blocks that leave busy processes when idle donors do not suffice, hot blocks that are gathered.

Free ahead takes whole processes that idle, of partitions above their size. What is lacking beyond that leaves
block by block, at the price that plan/sculpt.py knows: of any partition, first of those above their size, never below
a guarantee or floor. What a partition holds above its ceiling or fixed size leaves so, too, whoever lacks it. What left
so is no part of its workload's need any more, or it would be brought back at once.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import Observation
from memsculpt.domain.pages import REGION_BYTES
from memsculpt.domain.plan import Reason, SculptPool
from memsculpt.domain.pool import ColdTo, ColdZone, HotZone, PoolSummary
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Mode, Sculpt, Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.plan.growth import Growth
from memsculpt.plan.partitions import Sizes
from memsculpt.plan.reclaim import Taken, refused_left_out, swap_room_bytes
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import PlannerState

GATHERED_EVERY_S = 60.0
# A region takes up to 5 ms (docs/methods/sculpting.md): a sixth of a second at most, once a minute.
GATHERED_MOST_BYTES = 32 * REGION_BYTES


def without_gone(
    observation: Observation,
    profiles: Profiles,
    forecasts: Forecasts,
    pools: Sequence[PoolSummary],
    settings: Settings,
) -> tuple[Profiles, Forecasts]:
    """Take what sculpts sent out off the needs that still count it.

    The working set never forgets it. A forecast does, once its history holds nothing from before: only until then is
    it corrected.
    """
    if not any(pool.gone_bytes for pool in pools):
        return profiles, forecasts
    ids = {each: row for row, each in enumerate(observation.workloads.ids)}
    gone, lately = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    for pool in pools:
        if pool.gone_bytes and pool.workload in ids:
            gone[ids[pool.workload]] += pool.gone_bytes
            if observation.time_s - pool.left_at_s <= settings.forecast.history_s:
                lately[ids[pool.workload]] += pool.gone_bytes
    if not gone.any():
        return profiles, forecasts
    held = observation.workloads.resident_bytes + observation.workloads.kernel_bytes
    profiles = replace(
        profiles,
        working_set_bytes=_without(profiles.working_set_bytes, held, gone),
        needed_bytes=_without(profiles.needed_bytes, held, gone),
    )
    rows = np.array([ids.get(each, -1) for each in forecasts.ids], np.int64)
    known = rows >= 0
    quantiles: Float64 = forecasts.quantiles_bytes.copy()
    beyond = np.maximum(quantiles[known] - held[rows[known], np.newaxis, np.newaxis], 0.0)
    quantiles[known] -= np.minimum(beyond, lately[rows[known], np.newaxis, np.newaxis])
    return profiles, replace(forecasts, quantiles_bytes=quantiles)


def send_cold(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    sizes: Sizes,
    growth: Growth,
    taken: Taken,
    pools: Sequence[PoolSummary],
    settings: Settings,
) -> Taken:
    """Return what leaves with cold blocks of pools added, for what free ahead leaves lacking."""
    least = settings.plan.min_move_bytes
    if settings.plan.sculpt is Sculpt.OFF or not planner.abilities.page_out or not any(one.cold_bytes for one in pools):
        return taken
    lacking = lacking_bytes(now) - taken.size_bytes
    forced = np.maximum(now.held_bytes - now.ceiling_bytes - now.sum_by_partition(taken.by_workload_bytes), 0)
    forced[forced < least] = 0
    rate = int(planner.page_out_budget_bytes) - taken.size_bytes
    swap = swap_room_bytes(observation, settings) - taken.size_bytes
    if min(max(lacking, int(forced.sum())), rate, swap) < least:
        return taken
    row_of = {each: row for row, each in enumerate(now.workloads.ids)}
    held_back = [reason for reason in taken.held_back if reason.code != "no-cold"]
    available = _available_bytes(now, pools, row_of)
    available = refused_left_out(now, planner, available, settings, held_back)
    by_partition = np.maximum(now.held_bytes - now.lower_bytes, 0) - now.sum_by_partition(taken.by_workload_bytes)
    is_above = now.held_bytes + growth.by_partition_bytes > sizes.size_bytes
    actions: list[SculptPool] = []
    given = taken.by_workload_bytes.copy()
    for pool in _coldest_first(now, pools, row_of, is_above):
        row = row_of[pool.workload]
        partition = int(now.workloads.partition_row[row])
        over = int(forced[partition])
        wanted = max(lacking, over)
        size = min(wanted, rate, swap, pool.cold_bytes, int(available[row]), int(by_partition[partition]))
        size = size // now.page_bytes * now.page_bytes
        if size < least:
            continue
        actions.append(
            SculptPool(
                partition=now.partitions.names[partition],
                workload=pool.workload,
                process=pool.process,
                pool=pool.pool,
                request=ColdZone(size_bytes=size, to=ColdTo.SWAP),
                reason=_why_cold(now, sizes, pool, row, size, lacking, over),
            )
        )
        given[row] += size
        available[row] -= size
        by_partition[partition] -= size
        forced[partition] = max(over - size, 0)
        lacking, rate, swap = lacking - size, rate - size, swap - size
    if not actions:
        return taken
    if lacking >= least:
        figures = {"lacking_bytes": float(lacking)}
        text = "{lacking_bytes} more should leave ahead, and no block is cold that may leave now"
        held_back.append(Reason(code="no-cold", text=text, figures=figures))
    return Taken(actions=(*taken.actions, *actions), by_workload_bytes=given, held_back=tuple(held_back))


def gather_hot(
    now: Situation, planner: PlannerState, taken: Taken, pools: Sequence[PoolSummary], settings: Settings
) -> tuple[SculptPool, ...]:
    """Return the pools whose hot regions are worth gathering: each once a minute at most, and none while room lacks."""
    is_asked = settings.plan.sculpt is Sculpt.ALL and settings.mode is Mode.APPLY and planner.abilities.gather
    if not is_asked or taken.actions or not any(one.hot_bytes for one in pools):
        return ()
    room = now.target_bytes - int(now.held_bytes.sum()) - growth_bytes(now)
    row_of = {each: row for row, each in enumerate(now.workloads.ids)}
    actions: list[SculptPool] = []
    for pool in sorted(pools, key=lambda each: (-each.gain_s_per_s, each.pool)):
        row = row_of.get(pool.workload, -1)
        rests = now.now_s - pool.gathered_at_s < GATHERED_EVERY_S
        if row < 0 or rests or pool.hot_bytes < REGION_BYTES or room <= 0 or pool.fills_bytes > room:
            continue
        partition = int(now.workloads.partition_row[row])
        if partition < 0 or now.held_bytes[partition] + pool.fills_bytes > now.ceiling_bytes[partition]:
            continue
        size = min(pool.hot_bytes, GATHERED_MOST_BYTES)
        figures = {
            "hot_bytes": float(pool.hot_bytes),
            "fills_bytes": float(pool.fills_bytes),
            "gain_ratio": pool.gain_s_per_s,
            "room_bytes": float(room),
        }
        text = (
            "{hot_bytes} of regions are hot and lie in small pages: gathered they save {gain_ratio} of a processor and "
            "fill {fills_bytes} of {room_bytes} of room"
        )
        actions.append(
            SculptPool(
                partition=now.partitions.names[partition],
                workload=pool.workload,
                process=pool.process,
                pool=pool.pool,
                request=HotZone(size_bytes=size),
                reason=Reason(code="hot-blocks", text=text, figures=figures),
            )
        )
        room -= pool.fills_bytes
    return tuple(actions)


def lacking_bytes(now: Situation) -> int:
    """Return how far all that is held and will be needed is above the target, whatever sizes allow.

    A size that is too small for a need is so because others hold what they do not use: that is what leaves here.
    """
    return max(int(now.held_bytes.sum()) + growth_bytes(now) - now.target_bytes, 0)


def growth_bytes(now: Situation) -> int:
    """Return what partitions will need beyond what they hold, as far as their ceilings let them."""
    columns = now.workloads
    wanted = np.where(columns.partition_row >= 0, np.maximum(columns.need_bytes - columns.held_bytes, 0), 0)
    return int(np.minimum(now.sum_by_partition(wanted), np.maximum(now.ceiling_bytes - now.held_bytes, 0)).sum())


def _available_bytes(now: Situation, pools: Sequence[PoolSummary], row_of: dict[WorkloadId, int]) -> Int64:
    """Return by workload what is cold in the pools of those that are busy, as far as experience allows."""
    available = np.zeros(len(now.workloads.ids), np.int64)
    for pool in pools:
        if pool.workload in row_of:
            available[row_of[pool.workload]] += pool.cold_bytes
    # Who idles is asked by free ahead, which knows when it is expected back.
    available[(now.workloads.partition_row < 0) | ~now.workloads.is_active] = 0
    return np.floor(available * now.workloads.page_out_allowed_ratio).astype(np.int64)


def _coldest_first(
    now: Situation, pools: Sequence[PoolSummary], row_of: dict[WorkloadId, int], is_above: Bool
) -> list[PoolSummary]:
    """Return the pools that have something to give: of partitions above their size, then the longest idle."""

    def rank(pool: PoolSummary) -> tuple[bool, float, float, float, str]:
        partition = int(now.workloads.partition_row[row_of[pool.workload]])
        price = pool.loss_ratio / pool.cold_bytes
        return not is_above[partition], -pool.idle_least_s, price, float(now.partitions.weights[partition]), pool.pool

    return sorted((each for each in pools if each.cold_bytes > 0 and each.workload in row_of), key=rank)


def _without(sizes: Int64, held: Int64, gone: Int64) -> Int64:
    """Return sizes less what is gone, of the part that is not held."""
    return sizes - np.minimum(np.maximum(sizes - held, 0), gone)


def _why_cold(
    now: Situation, sizes: Sizes, pool: PoolSummary, row: int, size_bytes: int, lacking: int, over_bytes: int
) -> Reason:
    partition = int(now.workloads.partition_row[row])
    figures = {
        "moved_bytes": float(size_bytes),
        "cold_bytes": float(pool.cold_bytes),
        "idle_s": pool.idle_least_s,
        "loss_ratio": pool.loss_ratio,
        "lacking_bytes": float(lacking),
        "target_bytes": float(now.target_bytes),
        "partition_held_bytes": float(now.held_bytes[partition]),
        "partition_size_bytes": float(sizes.size_bytes[partition]),
        "least_bytes": float(now.lower_bytes[partition]),
        "over_bytes": float(over_bytes),
    }
    if over_bytes > 0:
        text = (
            "holds {over_bytes} more than its partition may; of its blocks {cold_bytes} were not touched for {idle_s} "
            "and more, {moved_bytes} leave"
        )
        return Reason(code="above-ceiling", text=text, figures=figures)
    text = (
        "use is forecast {lacking_bytes} above the target of {target_bytes} and no more idles; of its blocks "
        "{cold_bytes} were not touched for {idle_s} and more, {moved_bytes} leave; {least_bytes} stay its own"
    )
    return Reason(code="cold-blocks", text=text, figures=figures)
