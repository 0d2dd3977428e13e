# SPDX-License-Identifier: Apache-2.0
"""What an expert is: a pure function from the stacked series of all workloads to the peak it expects.

The seam for a larger engine: an expert sees only `Series`, and its errors are turned into quantiles by
the mixture and the calibration, whatever it is.
"""

from dataclasses import dataclass
from typing import Protocol

from memsculpt.domain.arrays import Bool, Float64


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


class Expert(Protocol):
    """One way of looking ahead."""

    name: str

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the expected peak until each horizon, in bytes, shape (n, n_horizons)."""
        ...

    def is_confident(self, series: Series) -> Bool:
        """Tell, shape (n,), where the expert has found what it looks for; it then starts with more weight."""
        ...
