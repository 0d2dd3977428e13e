# SPDX-License-Identifier: Apache-2.0
"""Where pages lie when there is a slow node: cold ones there before the fast nodes are full, used ones back.

This is not about how much anybody holds, but about where: what lies on a slow node is memory as before, charged to its
workload and counted by its limit. So it answers one shortage only, that of fast memory. Left alone, the kernel gives
new pages of the slow node as soon as the fast ones are full, and those are the pages that are in use.

What is lacking of the partitions' capacity leaves for the swap as before (plan/zones.py), also from the slow node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from memsculpt.domain.observation import Observation
from memsculpt.domain.plan import Reason, SculptPool
from memsculpt.domain.pool import BLOCK_BYTES, ColdTo, ColdZone, PoolSummary, Promote
from memsculpt.domain.settings import Settings
from memsculpt.plan.reclaim import Taken
from memsculpt.plan.situation import Situation
from memsculpt.plan.state import PlannerState
from memsculpt.plan.zones import growth_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMoves:
    """What changes its node in this plan."""

    demoted: tuple[SculptPool, ...] = ()
    promoted: tuple[SculptPool, ...] = ()
    held_back: tuple[Reason, ...] = ()


def move_between_nodes(
    now: Situation,
    planner: PlannerState,
    observation: Observation,
    taken: Taken,
    pools: Sequence[PoolSummary],
    settings: Settings,
) -> NodeMoves:
    """Choose what goes to the slow node for lack of fast memory, and what comes back because it is in use.

    What this plan sends out of a workload is not moved besides: it would be chosen twice.
    """
    if not settings.plan.slow_node or not planner.abilities.slow_node:
        return NodeMoves()
    memory = observation.memory
    margin = int(settings.plan.margin_ratio * memory.fast_total_bytes)
    lacking = margin + growth_bytes(now) - memory.fast_spare_bytes
    served = {action.workload for action in taken.actions if isinstance(action, SculptPool)}
    free = [one for one in pools if one.workload not in served and _partition(now, one) >= 0]
    demoted, held_back = _demote(now, lacking, memory.slow_room_bytes, free, settings)
    gone = {action.process for action in demoted}
    staying = [one for one in free if one.process not in gone]
    promoted = _promote(now, memory.fast_spare_bytes - margin, planner, staying, settings)
    return NodeMoves(demoted=demoted, promoted=promoted, held_back=held_back)


def _demote(
    now: Situation, lacking: int, room: int, pools: Sequence[PoolSummary], settings: Settings
) -> tuple[tuple[SculptPool, ...], tuple[Reason, ...]]:
    least = settings.plan.min_move_bytes
    if lacking < least:
        return (), ()
    rate = int(settings.plan.page_out_bytes_per_s * settings.interval_s)
    actions: list[SculptPool] = []
    for pool in sorted(pools, key=lambda one: (-one.demotable_idle_s, one.pool)):
        size = min(lacking, room, rate, pool.demotable_bytes) // now.page_bytes * now.page_bytes
        if size < least:
            continue
        figures = {
            "moved_bytes": float(size),
            "demotable_bytes": float(pool.demotable_bytes),
            "idle_s": pool.demotable_idle_s,
            "lacking_bytes": float(lacking),
            "slow_room_bytes": float(room),
        }
        text = (
            "fast memory will lack {lacking_bytes}; of its blocks {demotable_bytes} were not touched for {idle_s} and "
            "more, {moved_bytes} go to the slow node, where they are used without a fault"
        )
        actions.append(
            _action(
                now,
                pool,
                ColdZone(size_bytes=size, to=ColdTo.SLOW_NODE),
                Reason(code="slow-node", text=text, figures=figures),
            )
        )
        lacking, room, rate = lacking - size, room - size, rate - size
    if actions or room >= least:
        return tuple(actions), ()
    figures = {"lacking_bytes": float(lacking), "slow_room_bytes": float(room)}
    text = "fast memory will lack {lacking_bytes}, and the slow node has room for {slow_room_bytes}"
    return (), (Reason(code="slow-node-full", text=text, figures=figures),)


def _promote(
    now: Situation, room: int, planner: PlannerState, pools: Sequence[PoolSummary], settings: Settings
) -> tuple[SculptPool, ...]:
    rate = min(int(planner.page_in_budget_bytes), int(settings.plan.page_in_bytes_per_s * settings.interval_s))
    actions: list[SculptPool] = []
    for pool in sorted(pools, key=lambda one: (-one.returned_bytes, one.pool)):
        size = min(pool.returned_bytes, room, rate) // BLOCK_BYTES * BLOCK_BYTES
        if size <= 0:
            continue
        figures = {"moved_bytes": float(size), "returned_bytes": float(pool.returned_bytes), "room_bytes": float(room)}
        text = (
            "{returned_bytes} that lie on the slow node are in use again, or due by their last return; {moved_bytes} "
            "come back into {room_bytes} of room"
        )
        actions.append(
            _action(now, pool, Promote(size_bytes=size), Reason(code="off-slow-node", text=text, figures=figures))
        )
        room, rate = room - size, rate - size
    return tuple(actions)


def _partition(now: Situation, pool: PoolSummary) -> int:
    if pool.workload not in now.workloads.ids:
        return -1
    return int(now.workloads.partition_row[now.workloads.ids.index(pool.workload)])


def _action(now: Situation, pool: PoolSummary, request: ColdZone | Promote, reason: Reason) -> SculptPool:
    return SculptPool(
        partition=now.partitions.names[_partition(now, pool)],
        workload=pool.workload,
        process=pool.process,
        pool=pool.pool,
        request=request,
        reason=reason,
    )
