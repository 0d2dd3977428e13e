# SPDX-License-Identifier: Apache-2.0
"""What experts and learners are: ways of looking ahead for all workloads at once.

An expert is a pure function from the stacked series to the peak that it expects. A learner also keeps something for
each workload, in arrays that the engine owns. Whatever it is, its errors are turned into quantiles by the mixture and
the calibration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float32, Float64, Int64

N_DRIVERS = 3

Kept: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""A learner's arrays by name, the leading dimension being slots."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """All workloads' past, stacked; n workloads, `history` grid points of `grid_s` seconds, newest last.

    The ring is filled with each workload's first value before it was known, so no gap needs a mask;
    `known_count` says how many points are real.
    """

    now_s: float
    grid_s: float
    need_bytes: Float64  # shape (n,): now
    ring_bytes: Float64  # shape (n, history)
    known_count: Float64  # shape (n,)
    growth_bytes_per_s: Float64  # shape (n,): what it allocates now
    is_active: Bool  # shape (n,)
    onset_s: Float64  # shape (n, N_ONSETS): when its last phases began, newest last; nan where none
    phase_peaks_bytes: Float64  # shape (n, N_ONSETS): the most each of these phases needed
    season_s: Float64  # shape (n,): the period found in the ring; nan where there is none
    step_s: float  # between this tick and the one before, whole grid steps
    change_bytes: Float64  # shape (n,): the usual change from tick to tick, never 0
    mean_bytes: Float64  # shape (n,): the slow mean
    away_ratio: Float64  # shape (n,): the usual distance from the slow mean, in usual changes
    rise_bytes: Float64  # shape (n, n_horizons): by how much the peak usually differs from the need, never 0
    drivers: Float64  # shape (n, N_DRIVERS): processor, input and output, faults, each squashed to 0 to 1


class Expert(Protocol):
    """One way of looking ahead."""

    name: str

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the expected peak until each horizon, in bytes, shape (n, n_horizons)."""
        ...

    def is_confident(self, series: Series) -> Bool:
        """Tell, shape (n,), where the expert has found what it looks for; it then starts with more weight."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a learner keeps of one workload: an array of this shape, what it begins with, and its type."""

    shape: tuple[int, ...]
    start: Any = 0.0
    dtype: type[np.floating] = np.float32


class Learner(Protocol):
    """A way of looking ahead that is learnt as it goes. `at` are the slots of the rows, shape (n,)."""

    name: str
    note_width: int

    def shapes(self, horizons: int) -> Mapping[str, Shape]:
        """Return what has to be kept of each workload, by name."""
        ...

    def advance(self, own: Kept, at: Int64, series: Series) -> None:
        """Take in the newest point. Called once a tick, not in an early tick that shares the one before's point."""
        ...

    def expect(self, own: Kept, at: Int64, series: Series, horizons_s: tuple[float, ...], levels: Float64) -> Float64:
        """Return the expected peak until each horizon, shape (n, n_horizons, 1), or (n, n_horizons, n_levels).

        Bytes, finite, not negative, falling neither along the horizons nor along the levels.
        """
        ...

    def note(self, own: Kept, at: Int64) -> Float32:
        """Return what has to be known again when the truth is, shape (n, note_width)."""
        ...

    def settle(self, own: Kept, at: Int64, horizon: int, noted: Float32, risen: Float32) -> None:
        """Learn by how much the peak rose over a horizon after `noted`, in usual rises, shape (n,)."""
        ...
