# SPDX-License-Identifier: Apache-2.0
"""How far VMs are overcommitted, and how likely that is to hurt. Pure.

    ratio = what the VMs may reach together / capacity

The risk is the chance that their demands together exceed the capacity within the horizon, from the forecast's
quantiles, twice, because how demands go together is not known:

- `together`: all peak at the same level at once. The level at which the quantiles sum to the capacity, found by
  linear interpolation; the worst case for a sum that fits easily.
- `apart`: each for itself. The distributions are convolved on a grid of GRID cells.

Between two levels a quantile function is linear; above the highest it ends at what the VM may reach, below the lowest
it stays. What lies above the highest level is told as the chance that is left there, not less.
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.observation import Observation
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings

GRID = 1024
PARTS = 256  # of equal chance that each demand is cut into


@dataclass(frozen=True, slots=True, kw_only=True)
class Overcommit:
    """The VMs of the partitions as a whole."""

    vm_count: int
    reach_bytes: int  # guest memory in full, and QEMU's own
    capacity_bytes: int  # what is left for them: the partitions' capacity less what other workloads need
    ratio: float
    horizon_s: float
    together_ratio: float  # chance that the demands exceed the capacity if they peak together
    apart_ratio: float  # the same if each peaks for itself


def overcommit_of(
    observation: Observation, profiles: Profiles, forecasts: Forecasts, settings: Settings
) -> Overcommit | None:
    """Return how far the VMs of the partitions are overcommitted; None where there is none."""
    partition_of = dict(zip(observation.workloads.ids, observation.workloads.partitions, strict=True))
    vms = [one for one in observation.vms if partition_of.get(one.workload) is not None and one.ram_bytes]
    if not vms:
        return None
    # The nearest horizon: over a longer one peaks that come one after the other would count as if they met.
    horizon_s = settings.forecast.act_horizon_s
    column = forecasts.horizons_s.index(horizon_s)
    row_of = {one: row for row, one in enumerate(forecasts.ids)}
    names = {one.workload for one in vms}
    others = sum(
        int(need)
        for name, need in zip(profiles.ids, profiles.needed_bytes.tolist(), strict=True)
        if partition_of.get(name) is not None and name not in names
    )
    capacity = max(settings.capacity_of(observation.memory.total_bytes) - others, 1)
    reach: list[int] = []
    quantiles = np.zeros((len(vms), len(forecasts.levels)))
    for at, one in enumerate(vms):
        demand = profiles.guests.get(one.workload)
        reach.append(one.ram_bytes + (0 if demand is None else demand.overhead_bytes))
        row = row_of.get(one.workload)
        quantiles[at] = reach[at] if row is None else np.minimum(forecasts.quantiles_bytes[row, column], reach[at])
    most = np.array(reach, np.float64)
    return Overcommit(
        vm_count=len(vms),
        reach_bytes=sum(reach),
        capacity_bytes=capacity,
        ratio=sum(reach) / capacity,
        horizon_s=horizon_s,
        together_ratio=chance_together(forecasts.levels, quantiles, most, capacity),
        apart_ratio=chance_apart(forecasts.levels, quantiles, most, capacity),
    )


def chance_together(levels: tuple[float, ...], quantiles: Float64, most: Float64, capacity_bytes: float) -> float:
    """Return the chance that the sum of demands, shape (n_vms, n_levels), exceeds the capacity at one common level."""
    sums = np.append(quantiles.sum(axis=0), most.sum())
    if sums[0] > capacity_bytes:
        return 1.0
    if sums[-1] <= capacity_bytes:
        return 0.0
    known = np.append(np.array(levels), 1.0)
    # The last level at which they fit; sums do not fall along the levels.
    return float(1.0 - np.interp(capacity_bytes, *_rising(sums, known)))


def chance_apart(levels: tuple[float, ...], quantiles: Float64, most: Float64, capacity_bytes: float) -> float:
    """Return the chance that the sum exceeds the capacity if the demands are independent."""
    if float(most.sum()) <= capacity_bytes:
        return 0.0
    cell = capacity_bytes / GRID
    known = np.concatenate(([0.0], levels, [1.0]))
    middles = (np.arange(PARTS) + 0.5) / PARTS
    total = np.ones(1)
    for row in range(len(quantiles)):
        values = np.interp(middles, known, np.concatenate((quantiles[row, :1], quantiles[row], most[row : row + 1])))
        cells = np.minimum(np.ceil(values / cell), GRID + 1).astype(np.int64)
        one = np.bincount(cells, minlength=1) / PARTS
        total = np.convolve(total, one)
        # All that is above the capacity is one cell: it can only stay there.
        total = np.append(total[: GRID + 1], total[GRID + 1 :].sum()) if len(total) > GRID + 2 else total
    return float(total[GRID + 1 :].sum())


def _rising(sums: Float64, levels: Float64) -> tuple[Float64, Float64]:
    """Return the sums and, for each, the highest level that has it: `interp` wants them to rise."""
    last = np.append(np.diff(sums) > 0.0, True)
    return sums[last], levels[last]
