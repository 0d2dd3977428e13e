# SPDX-License-Identifier: Apache-2.0
"""Forecasts whose horizon has not passed yet, and what is learnt when it has."""

from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Float32, Float64, Int64
from memsculpt.forecast import conformal, mixture
from memsculpt.forecast.learners import LEARNERS
from memsculpt.forecast.memory import Slots

# How many forecasts of one horizon wait for their truth at a time: a minute's horizon is not scored every second.
PER_HORIZON = 8


@dataclass(slots=True, kw_only=True, eq=False)
class Pending:
    """One forecast of all workloads over one horizon."""

    horizon: int
    due_s: float
    slots: Int64
    generation: Int64
    need: Float64  # shape (n,): when it was made
    situation: Int64  # shape (n,): which weights it was mixed by
    by_expert: Float32  # shape (n, experts, levels)
    mixed: Float64  # shape (n, levels)
    moves: Bool  # shape (n,): the learners were asked
    noted: tuple[Float32, ...]  # by learner, shape (n, note_width)
    peak: Float64  # shape (n,): the truth so far
    counts: Bool  # shape (n,): not made during a start


@dataclass(slots=True, eq=False)
class Waiting:
    """All of them, and when each horizon was last asked for."""

    asked_at_s: list[float]
    forecasts: list[Pending] = field(default_factory=list[Pending])

    def is_due(self, horizon: int, horizon_s: float, now_s: float) -> bool:
        """Tell whether this tick's forecast over a horizon is kept: of the long ones only every few ticks' one is."""
        if now_s - self.asked_at_s[horizon] < horizon_s / PER_HORIZON:
            return False
        self.asked_at_s[horizon] = now_s
        return True

    def score(self, slots: Slots, at: Int64, need: Float64, levels: Float64, now_s: float, tolerance_s: float) -> None:
        """Follow the truth of what is pending, and learn from what is due."""
        by_slot = np.full(slots.capacity, np.nan)
        by_slot[at] = need
        waiting: list[Pending] = []
        for pending in self.forecasts:
            seen = by_slot[pending.slots]
            pending.peak = np.fmax(pending.peak, seen)
            if pending.due_s > now_s + tolerance_s:
                waiting.append(pending)
                continue
            usable = pending.counts & np.isfinite(seen) & (slots.generation[pending.slots] == pending.generation)
            if usable.any():
                _learn(slots, pending, usable, levels)
        self.forecasts = waiting


def _learn(slots: Slots, pending: Pending, usable: Bool, levels: Float64) -> None:
    rows, horizon = pending.slots[usable], pending.horizon
    truth, mixed = pending.peak[usable], pending.mixed[usable]
    by_expert = pending.by_expert[usable].astype(np.float64)
    risen = truth - pending.need[usable]  # the error of the last value: the scale on which others are judged
    settled = slots.settled_count[rows, horizon]
    pauses = np.isfinite(slots.onset_s[rows, -1])
    scale = conformal.learn_scale(slots.scale[rows, horizon], risen, settled, pauses)
    slots.scale[rows, horizon] = scale
    losses = mixture.pinball(by_expert, truth[:, np.newaxis], levels).mean(axis=2) / scale[:, np.newaxis]
    now = pending.situation[usable]
    slots.weights[rows, now, :, horizon] = mixture.learn_weights(
        slots.weights[rows, now, :, horizon], losses, slots.start_weights[now]
    )
    step = scale * conformal.step_ratio(settled, pauses)
    slots.offsets[rows, :, horizon] = conformal.learn_offsets(
        slots.offsets[rows, :, horizon], by_expert, truth[:, np.newaxis], levels, step[:, np.newaxis]
    )
    slots.correction[rows, horizon] = conformal.learn_offsets(
        slots.correction[rows, horizon], mixed, truth, levels, 0.5 * step
    )
    moved = pending.moves[usable]
    relative = (risen / slots.rise[rows, horizon]).astype(np.float32)[moved]
    for learner, own, noted in zip(LEARNERS, slots.own, pending.noted, strict=True):
        learner.settle(own, rows[moved], horizon, noted[usable][moved], relative)
    slots.follow_rises(rows, horizon, risen)
