# SPDX-License-Identifier: Apache-2.0
"""The engine's stacked arrays: one slot a workload, kept for a while after the workload is gone.

The arrays are owned by the forecaster and change in place: copying them every tick would cost more than
the forecast. `open_slots` is the only way in, so a reused slot is always clean.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.workload import WorkloadId

N_ONSETS = 8
KEEP_GONE_S = 900.0

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
    "offsets",
    "weights",
    "correction",
    "scale",
)


class Slots:
    """Arrays by slot; the leading dimension is the capacity, which doubles when it is full."""

    def __init__(self, *, history: int, experts: int, horizons: int, levels: int) -> None:
        self.history, self.experts, self.horizons, self.levels = history, experts, horizons, levels
        self.of: dict[WorkloadId, int] = {}
        self.free: list[int] = []
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
        self.offsets: Float64 = np.empty((0, experts, horizons, levels))
        self.weights: Float64 = np.empty((0, experts, horizons))
        self.correction: Float64 = np.empty((0, horizons, levels))
        self.scale: Float64 = np.empty((0, horizons))

    def open_slots(self, ids: Sequence[WorkloadId], need: Float64, now_s: float, prior: Float64) -> Int64:
        """Return the slot of each workload, making clean ones for those never seen; shape (n,).

        `prior` holds the first offsets, shape (n, levels).
        """
        fresh = [row for row, each in enumerate(ids) if each not in self.of]
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
        self.offsets[slot] = prior
        self.weights[slot] = 1.0 / self.experts
        self.correction[slot] = 0.0
        self.scale[slot] = 0.05 * need + float(1 << 20)
        self.was_starting[slot] = 0

    def begin_steady(self, slots: Int64, need: Float64, prior: Float64) -> None:
        """Forget the start's series and errors when steady state begins; peaks and phases are kept."""
        self.ring[slots] = need[:, np.newaxis]
        self.known_count[slots] = 0
        self.offsets[slots] = prior[:, np.newaxis, np.newaxis, :]
        self.correction[slots] = 0.0
        self.scale[slots] = (0.05 * need + float(1 << 20))[:, np.newaxis]

    def _drop_gone(self, now_s: float) -> None:
        gone = [each for each, slot in self.of.items() if now_s - self.seen_at_s[slot] > KEEP_GONE_S]
        for each in gone:
            self.free.append(self.of.pop(each))

    def _grow(self) -> None:
        more = max(32, self.capacity)
        for name in _ARRAYS:
            value: npt.NDArray[Any] = getattr(self, name)
            setattr(self, name, np.concatenate((value, np.zeros((more, *value.shape[1:]), value.dtype))))
        self.free.extend(range(self.capacity + more - 1, self.capacity - 1, -1))
        self.capacity += more
