# SPDX-License-Identifier: Apache-2.0
"""What each workload will need: quantiles of the peak over each horizon."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memsculpt.domain.arrays import Bool, Float64, Int64, freeze_columns
from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.workload import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecasts:
    """Quantiles of the peak of `Profiles.needed_bytes` from `made_at_s` until `made_at_s + horizon`.

    `quantiles_bytes` has shape (n_workloads, n_horizons, n_levels) and does not fall along the levels,
    nor along the horizons.
    """

    made_at_s: float
    ids: tuple[WorkloadId, ...]
    horizons_s: tuple[float, ...]
    levels: tuple[float, ...]
    quantiles_bytes: Float64
    historic_peak_bytes: Int64  # the most ever needed in steady state, shape (n_workloads,)
    startup_peak_bytes: Int64  # the most needed while starting; 0 when never seen
    is_warm: Bool  # enough history that the quantiles rest on this workload's own past
    leaders: tuple[str, ...]  # the expert that weighs most, for `explain`
    outlooks: Mapping[WorkloadId, WorkloadOutlook] = field(default_factory=dict[WorkloadId, WorkloadOutlook])  # hours

    def __post_init__(self) -> None:
        rows = len(self.ids)
        freeze_columns(self, ("historic_peak_bytes", "startup_peak_bytes", "is_warm"), (rows,))
        freeze_columns(self, ("quantiles_bytes",), (rows, len(self.horizons_s), len(self.levels)))
        if len(self.leaders) != rows:
            raise ValueError("Forecasts: ids and leaders differ in length")
