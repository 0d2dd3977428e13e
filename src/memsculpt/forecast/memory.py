# SPDX-License-Identifier: Apache-2.0
"""The engine's stacked arrays: one slot a workload, kept for a while after the workload is gone.

The arrays are owned by the forecaster and change in place: copying them every tick would cost more than
the forecast. `open_slots` is the only way in, so a reused slot is always clean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast import mixture
from memsculpt.forecast.protocol import Learner, Shape

N_ONSETS = 8
KEEP_GONE_S = 900.0
LEAST_CHANGE_BYTES, LEAST_CHANGE_RATIO = 64.0 * 1024, 1e-4
CHANGE_WEIGHT, MEAN_WEIGHT = 0.02, 0.015  # a minute, a little more

_ARRAYS = (
    "seen_at_s",
    "generation",
    "ring",
    "known_count",
    "was_idle",
    "was_starting",
    "onset_s",
    "phase_peaks",
    "season_s",
    "historic_peak",
    "startup_peak",
    "alarm_bytes",
    "prior",
    "offsets",
    "weights",
    "correction",
    "scale",
    "change",
    "mean",
    "away",
    "rise",
    "tick_count",
    "settled_count",
)


class Slots:
    """Arrays by slot; the leading dimension is the capacity, which doubles when it is full.

    `experts` counts all that say something, `learners` are those of them that keep something.
    """

    def __init__(
        self,
        *,
        history: int,
        experts: int,
        horizons: int,
        levels: int,
        learners: Sequence[Learner] = (),
        specialists: tuple[int, ...] = (),
    ) -> None:
        self.history, self.experts, self.horizons, self.levels = history, experts, horizons, levels
        self.of: dict[WorkloadId, int] = {}
        self.free: list[int] = []
        self.fresh_rows: list[int] = []  # of the last call of open_slots
        self.capacity = 0
        self.seen_at_s: Float64 = np.empty(0)
        self.generation: Int64 = np.empty(0, np.int64)
        self.ring: Float64 = np.empty((0, history))
        self.known_count: Float64 = np.empty(0)
        self.was_idle: Int64 = np.empty(0, np.int64)
        self.was_starting: Int64 = np.empty(0, np.int64)
        self.onset_s: Float64 = np.empty((0, N_ONSETS))
        self.phase_peaks: Float64 = np.empty((0, N_ONSETS))
        self.season_s: Float64 = np.empty(0)
        self.historic_peak: Float64 = np.empty(0)
        self.startup_peak: Float64 = np.empty(0)
        self.alarm_bytes: Float64 = np.empty(0)
        self.prior: Float64 = np.empty((0, horizons, levels))
        self.offsets: Float64 = np.empty((0, experts, horizons, levels))
        self.start_weights = mixture.starting_weights(experts, specialists)
        self.weights: Float64 = np.empty((0, len(self.start_weights), experts, horizons))
        self.correction: Float64 = np.empty((0, horizons, levels))
        self.scale: Float64 = np.empty((0, horizons))
        self.change: Float64 = np.empty(0)
        self.mean: Float64 = np.empty(0)
        self.away: Float64 = np.empty(0)
        self.rise: Float64 = np.empty((0, horizons))
        self.tick_count: Float64 = np.empty(0)
        self.settled_count: Float64 = np.empty((0, horizons))
        self._shapes: list[Mapping[str, Shape]] = [one.shapes(horizons) for one in learners]
        self.own: list[dict[str, npt.NDArray[Any]]] = [
            {name: np.empty((0, *one.shape), one.dtype) for name, one in shapes.items()} for shapes in self._shapes
        ]

    def open_slots(self, ids: Sequence[WorkloadId], need: Float64, now_s: float, prior: Float64) -> Int64:
        """Return the slot of each workload, making clean ones for those never seen; shape (n,).

        `prior` holds the first offsets, shape (n, levels).
        """
        fresh = self.fresh_rows = [row for row, each in enumerate(ids) if each not in self.of]
        if fresh:
            self._drop_gone(now_s)
            while len(self.free) < len(fresh):
                self._grow()
            for row in fresh:
                slot = self.free.pop()
                self.of[ids[row]] = slot
                self._clean(slot, float(need[row]), prior[row])
        slots = np.fromiter((self.of[each] for each in ids), dtype=np.int64, count=len(ids))
        self.seen_at_s[slots] = now_s
        return slots

    def _clean(self, slot: int, need: float, prior: Float64) -> None:
        self.generation[slot] += 1
        self.ring[slot] = need
        self.known_count[slot] = 0
        self.was_idle[slot] = 0
        self.onset_s[slot] = np.nan
        self.phase_peaks[slot] = np.nan
        self.season_s[slot] = np.nan
        self.historic_peak[slot] = 0.0
        self.startup_peak[slot] = 0.0
        self.alarm_bytes[slot] = 0.0
        self.offsets[slot] = 0.0
        self.prior[slot] = prior
        self.weights[slot] = self.start_weights[:, :, np.newaxis]
        self.correction[slot] = 0.0
        self.was_starting[slot] = 0
        self._forget(np.array([slot]), np.array([need]))

    def begin_steady(self, slots: Int64, need: Float64, prior: Float64) -> None:
        """Forget the start's series and errors when steady state begins; peaks and phases are kept."""
        self.ring[slots] = need[:, np.newaxis]
        self.known_count[slots] = 0
        self.offsets[slots] = 0.0
        self.prior[slots] = prior[:, np.newaxis, :]
        self.correction[slots] = 0.0
        self._forget(slots, need)

    def _forget(self, slots: Int64, need: Float64) -> None:
        """Begin anew with everything that errors and changes are measured by, and with what was learnt."""
        self.scale[slots] = (0.05 * need + float(1 << 20))[:, np.newaxis]
        self.change[slots] = LEAST_CHANGE_BYTES
        self.mean[slots] = need
        self.away[slots] = LEAST_CHANGE_BYTES
        self.rise[slots] = LEAST_CHANGE_BYTES
        self.tick_count[slots] = 0.0
        self.settled_count[slots] = 0.0
        for shapes, arrays in zip(self._shapes, self.own, strict=True):
            for name, one in shapes.items():
                arrays[name][slots] = one.start

    def follow_changes(self, at: Int64, before: Float64, need: Float64) -> None:
        """Follow usual change, slow mean and distance from it, at one more tick; the first ticks count evenly."""
        self.tick_count[at] += 1.0
        fast = np.maximum(1.0 / self.tick_count[at], CHANGE_WEIGHT)
        # Nothing smaller is told apart: pages come and go in every process.
        least = np.maximum(LEAST_CHANGE_BYTES, LEAST_CHANGE_RATIO * need)
        self.change[at] = np.maximum(self.change[at] + fast * (np.abs(need - before) - self.change[at]), least)
        slow = np.maximum(1.0 / self.tick_count[at], MEAN_WEIGHT)
        self.mean[at] += slow * (need - self.mean[at])
        self.away[at] = np.maximum(
            self.away[at] + slow * (np.abs(need - self.mean[at]) - self.away[at]), self.change[at]
        )

    def moves(self, at: Int64) -> Bool:
        """Tell which workloads' need has changed lately by more than pages that come and go, shape (n,)."""
        return np.asarray(self.change[at] > np.maximum(LEAST_CHANGE_BYTES, LEAST_CHANGE_RATIO * self.ring[at, -1]))

    def follow_rises(self, at: Int64, horizon: int, risen: Float64) -> None:
        """Follow how much the peak over a horizon usually differs from the need."""
        self.settled_count[at, horizon] += 1.0
        weight = np.maximum(1.0 / self.settled_count[at, horizon], CHANGE_WEIGHT)
        rise = self.rise[at, horizon]
        self.rise[at, horizon] = np.maximum(rise + weight * (np.abs(risen) - rise), LEAST_CHANGE_BYTES)

    def _drop_gone(self, now_s: float) -> None:
        gone = [each for each, slot in self.of.items() if now_s - self.seen_at_s[slot] > KEEP_GONE_S]
        for each in gone:
            self.free.append(self.of.pop(each))

    def _grow(self) -> None:
        more = max(32, self.capacity)
        for name in _ARRAYS:
            value: npt.NDArray[Any] = getattr(self, name)
            setattr(self, name, np.concatenate((value, np.zeros((more, *value.shape[1:]), value.dtype))))
        for arrays in self.own:
            for name, one in arrays.items():
                arrays[name] = np.concatenate((one, np.zeros((more, *one.shape[1:]), one.dtype)))
        self.free.extend(range(self.capacity + more - 1, self.capacity - 1, -1))
        self.capacity += more
