# SPDX-License-Identifier: Apache-2.0
"""What is kept of a workload over time: twenty metrics, in several resolutions.

A metric's number is its place in `METRICS`. It is part of the stored format, so metrics are added at the end and never
change their meaning; docs/methods/profile-store.md explains each.
"""

from dataclasses import dataclass
from enum import StrEnum

from memsculpt.domain.arrays import Bool, Float64, Int64, freeze_columns
from memsculpt.domain.workload import WorkloadId

PAGE_BYTES = 4096


class Fold(StrEnum):
    """What a coarser sample tells of the finer ones in it."""

    MEAN = "mean"
    PEAK = "peak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a workload over time, and how exactly it is kept.

    Values below `2 ** (bits + 1)` units are kept to the unit; above, with a relative error of `2 ** -(bits + 1)` at
    most.
    """

    name: str
    unit: float
    bits: int
    fold: Fold = Fold.MEAN


def _size(name: str, fold: Fold = Fold.MEAN) -> Metric:
    """Return a size: to the page up to 4 MiB, above to one in a thousand."""
    return Metric(name=name, unit=float(PAGE_BYTES), bits=9, fold=fold)


def _rate(name: str, unit: float) -> Metric:
    """Return a rate or a share: to the unit up to 128 units, above to 0.8 %."""
    return Metric(name=name, unit=unit, bits=6)


METRICS: tuple[Metric, ...] = (
    _size("needed_bytes"),
    _size("cold_bytes"),
    _size("reclaimable_bytes"),
    _size("working_set_bytes"),
    _size("anon_bytes"),
    _size("file_bytes"),
    _size("shmem_bytes"),
    _size("swapped_bytes"),
    _size("hot_bytes"),
    _size("forecast_median_bytes"),
    _size("forecast_high_bytes"),
    _rate("growth_bytes_per_s", 4096.0),
    _rate("release_bytes_per_s", 4096.0),
    _rate("minor_faults_per_s", 0.1),
    _rate("major_faults_per_s", 0.1),
    _rate("refaults_per_s", 0.1),
    _rate("cpu_ratio", 0.001),
    _rate("io_bytes_per_s", 4096.0),
    _rate("some_stall_ratio", 0.0001),
    _rate("full_stall_ratio", 0.0001),
    _size("needed_peak_bytes", Fold.PEAK),  # from the second resolution on: in the first it is `needed_bytes`
)
SAMPLED = len(METRICS) - 1
"""How many are sampled; the rest comes of folding."""

NAMES: tuple[str, ...] = tuple(one.name for one in METRICS)
RESOLUTIONS_S: tuple[int, ...] = (1, 10, 60, 300, 3600)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Evenly spaced samples of one workload: `values[i]` covers `resolution_s` from `start_s + i * resolution_s` on.

    `values` has shape (n_samples, n_metrics) in the order of `METRICS`, 0 where `is_valid`, of the same shape, is
    False: nothing was measured then. Times are seconds of the Unix clock.
    """

    workload: WorkloadId
    resolution_s: int
    start_s: int
    values: Float64
    is_valid: Bool

    def __post_init__(self) -> None:
        freeze_columns(self, ("values", "is_valid"), (len(self.values), len(METRICS)))

    @property
    def times_s(self) -> Int64:
        """When each sample begins, shape (n_samples,)."""
        import numpy as np

        return self.start_s + np.arange(len(self.values), dtype=np.int64) * self.resolution_s

    def column(self, name: str) -> tuple[Float64, Bool]:
        """Return one metric's values and which of them are valid, shape (n_samples,). Raises ValueError."""
        place = NAMES.index(name)
        return self.values[:, place], self.is_valid[:, place]
