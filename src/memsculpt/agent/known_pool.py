# SPDX-License-Identifier: Apache-2.0
"""What the sculptor keeps of one pool from tick to tick, and how what was done goes into it. Moves nothing itself."""

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import numpy as np

from memsculpt import learn, plan, profile
from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import Touches
from memsculpt.domain.pool import (
    INCOMPRESSIBLE,
    Blocks,
    PoolSummary,
    SculptDone,
    SculptRequest,
    SculptStats,
    Zone,
)
from memsculpt.domain.workload import Instance, WorkloadId


@dataclass(slots=True)
class OpenSculpt:
    """A sculpt whose window has not passed."""

    kind: type[SculptRequest]
    done: SculptDone
    before: tuple[float, float, float]
    since: learn.Reading | None  # the first after it: what the sculpt itself took is not held against it


@dataclass(slots=True)
class KnownPool:
    """What is known of one pool. `stats` holds sums over its life, and the last sculpt's figures."""

    workload: WorkloadId
    process: Instance
    id: str
    blocks: Blocks | None = None
    readings: deque[learn.Reading] = field(default_factory=deque[learn.Reading])
    open: list[OpenSculpt] = field(default_factory=list[OpenSculpt])
    mistakes: Counter[type[SculptRequest]] = field(default_factory=Counter[type[SculptRequest]])
    refused_until_s: dict[type[SculptRequest], float] = field(default_factory=dict[type[SculptRequest], float])
    stats: SculptStats = field(default_factory=lambda: SculptStats(pool=""))
    told: SculptStats | None = None  # what was last said of it, of ...
    told_of: tuple[object, ...] = ()  # ... these
    paged_out_at_s: float = -math.inf
    gathered_at_s: float = -math.inf
    gone_bytes: int = 0  # sent out and not brought back by sculpts
    summary: PoolSummary | None = None
    summed_at_s: float = -math.inf
    slow_seen_at_s: float = -math.inf
    rests_until_s: float = -math.inf  # nothing of it is planned before
    # By stretch: since when looks come in quick succession, and what they saw since then.
    merged: dict[tuple[int, int], tuple[float, Touches | None]] = field(
        default_factory=dict[tuple[int, int], tuple[float, Touches | None]]
    )

    def note(self, done: SculptDone) -> None:
        """Put what was done into the blocks' zones and the pool's sums."""
        blocks, order = self.blocks, done.order
        if blocks is not None:
            # A block of which only a part leaves stays what it is.
            zones = (
                (order.leave, Zone.COLD),
                (order.demote, Zone.COLD),
                (order.collapse, Zone.HOT),
                (order.promote, Zone.WARM),
                (order.come, Zone.PREFETCH),
            )
            for ranges, zone in zones:
                blocks = profile.with_zone(blocks, blocks.rows_within(ranges), zone)
            if done.left_bytes:  # or it would be chosen again before the next look
                left, stays = profile.with_left(blocks, order.leave), blocks.rows_within(done.incompressible)
                present = np.where(stays, blocks.present, left.present)
                blocks = replace(left, present=present, swapped=np.where(stays, blocks.swapped, left.swapped))
            self.blocks = profile.with_flag(blocks, blocks.rows_within(done.incompressible), INCOMPRESSIBLE)
        self.gone_bytes = max(0, self.gone_bytes + done.left_bytes - done.came_bytes)
        if not order.part_bytes:
            self.stats = replace(
                self.stats,
                resident_before_bytes=done.resident_before_bytes,
                resident_after_bytes=done.resident_after_bytes,
                huge_before_bytes=done.huge_before_bytes,
                huge_after_bytes=done.huge_after_bytes,
                longest_run_before_bytes=done.longest_run_before_bytes,
                longest_run_after_bytes=done.longest_run_after_bytes,
            )
        stats = self.stats
        self.stats = replace(
            stats,
            moved_bytes=stats.moved_bytes + done.moved_bytes,
            collapsed_bytes=stats.collapsed_bytes + done.collapsed_bytes,
            split_bytes=stats.split_bytes + done.split_bytes,
            paged_out_bytes=stats.paged_out_bytes + done.left_bytes,
            brought_in_bytes=stats.brought_in_bytes + done.came_bytes,
            to_slow_node_bytes=stats.to_slow_node_bytes + done.demoted_bytes,
            from_slow_node_bytes=stats.from_slow_node_bytes + done.promoted_bytes,
            cpu_s=stats.cpu_s + done.cpu_s,
            duration_s=done.duration_s,
            problems=done.problems,
        )

    def note_slow(self, runs: Int64) -> None:
        """Take note of which pages lie on a slow node now."""
        if self.blocks is not None:
            self.blocks = profile.with_slow(self.blocks, runs)
            self.stats = replace(self.stats, on_slow_node_bytes=plan.slow_bytes(self.blocks))

    def rates(self) -> tuple[float, float, float]:
        """Return what `learn.rates` tells of the time that the readings span; NaN before the second."""
        if len(self.readings) < 2:
            return math.nan, math.nan, math.nan
        return learn.rates(self.readings[0], self.readings[-1])

    def loss_ratio(self, fault_s: float) -> float:
        """Return the share of time that is lost to its faults at so many seconds each; 0 while that is not known."""
        faults_per_s = self.rates()[0]
        return 0.0 if math.isnan(faults_per_s) else faults_per_s * fault_s

    @property
    def cpu_ratio(self) -> float:
        """Return of how many processors it makes use; 0 while that is not known."""
        ratio = self.rates()[2]
        return 0.0 if math.isnan(ratio) else ratio
