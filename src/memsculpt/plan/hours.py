# SPDX-License-Identifier: Apache-2.0
"""What the outlooks of hours tell the planner: who will want more soon, and whose pages are missed latest. Pure.

Sizes follow the forecast of seconds. Of an outlook two things count: the highest peak that it thinks likely becomes a
part of the tail by which spare memory is shared, so that it goes to who will grow; and how long most of what a workload
holds is not expected to be needed puts the donors in order, far beyond the minute that the forecast of seconds sees.
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.workload import WorkloadId

LEVEL = 0.9
STALE_S = 900.0  # an outlook is made anew every five minutes; an older one has lost its workload's history


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hours:
    """Columns by workload, shape (n,); 0 where there is no outlook."""

    peak_bytes: Int64  # the highest quantile of the next hour's peak
    unneeded_s: Float64  # as long as the path stays below half of what is held; 0: not longer than the forecast sees


def look(ids: tuple[WorkloadId, ...], held_bytes: Int64, forecasts: Forecasts, now_s: float) -> Hours:
    """Return what the outlooks say of each workload."""
    peak, unneeded = np.zeros(len(ids), np.int64), np.zeros(len(ids))
    if forecasts.outlooks:
        beyond_s = forecasts.horizons_s[-1]
        for row, one in enumerate(ids):
            outlook = forecasts.outlooks.get(one)
            if outlook is None or not 0.0 <= now_s - outlook.made_at_s <= STALE_S:
                continue
            peak[row] = int(outlook.peak_bytes[-1])
            quiet_s = _quiet_s(outlook, float(held_bytes[row]), now_s)
            unneeded[row] = quiet_s if quiet_s > beyond_s else 0.0
    return Hours(peak_bytes=peak, unneeded_s=unneeded)


def _quiet_s(outlook: WorkloadOutlook, held_bytes: float, now_s: float) -> float:
    """Return for how long from now on the path stays below half of what is held."""
    column = next((at for at, level in enumerate(outlook.levels) if level >= LEVEL), len(outlook.levels) - 1)
    path = outlook.path_bytes[column]
    passed_s = now_s - outlook.made_at_s
    ahead = path[int(passed_s / outlook.interval_s) :]
    above = np.flatnonzero(2.0 * ahead > held_bytes)
    steps = int(above[0]) if above.size else len(ahead)
    # The first point ahead is the end of the interval under way.
    return max(steps * outlook.interval_s - passed_s % outlook.interval_s, 0.0)
