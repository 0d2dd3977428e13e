# SPDX-License-Identifier: Apache-2.0
"""What a workload will need in the next minutes to hours, as told from its kept history."""

from dataclasses import dataclass

from memsculpt.domain.arrays import Float64, freeze_columns
from memsculpt.domain.workload import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkloadOutlook:
    """Quantiles of what one workload needs (`Profiles.needed_bytes`), from `made_at_s` on."""

    id: WorkloadId
    made_at_s: float  # the host's clock
    interval_s: float  # between two points of the path
    history_s: float  # how long a history it rests on
    levels: tuple[float, ...]
    peak_s: float  # over how long `peak_bytes` is
    peak_bytes: Float64  # shape (n_levels,)
    path_bytes: Float64  # shape (n_levels, n_points)
    weighed_by: str  # "gate" where one was trained, else "prior"; then " and ARIMA(1,1,1)" or so, where that is better

    def __post_init__(self) -> None:
        count = len(self.levels)
        freeze_columns(self, ("peak_bytes",), (count,))
        freeze_columns(self, ("path_bytes",), (count, self.path_bytes.shape[-1]))
