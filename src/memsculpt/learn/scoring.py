# SPDX-License-Identifier: Apache-2.0
"""Every forecast is compared with what came, when its horizon has passed."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.profile import Profiles
from memsculpt.domain.workload import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiting:
    """A forecast whose horizon has not passed."""

    due_s: float
    ids: tuple[WorkloadId, ...]
    quantiles_bytes: Float64  # shape (n, n_levels)
    peak_bytes: Float64  # shape (n,): the highest need seen since; nan for a workload that went away
    counts: Bool  # shape (n,): not made during a start, which is another life


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What came due in this tick, one row a forecast of a workload."""

    ids: tuple[WorkloadId, ...]
    held: Bool  # shape (n, n_levels)
    pinball_bytes: Float64  # shape (n, n_levels)


def wait_for(forecasts: Forecasts, profiles: Profiles, horizon: int) -> Waiting:
    """Put a fresh forecast aside until its horizon has passed."""
    return Waiting(
        due_s=forecasts.made_at_s + forecasts.horizons_s[horizon],
        ids=forecasts.ids,
        quantiles_bytes=forecasts.quantiles_bytes[:, horizon],
        peak_bytes=np.zeros(len(forecasts.ids)),
        counts=~profiles.is_starting,
    )


def follow(waiting: Waiting, profiles: Profiles) -> Waiting:
    """Return the same forecast with this tick's need taken into account."""
    if waiting.ids == profiles.ids:
        needed = profiles.needed_bytes.astype(np.float64)
    else:
        row_of = {each: row for row, each in enumerate(profiles.ids)}
        found = [row_of.get(each) for each in waiting.ids]
        needed = np.array([np.nan if row is None else float(profiles.needed_bytes[row]) for row in found])
    return Waiting(
        due_s=waiting.due_s,
        ids=waiting.ids,
        quantiles_bytes=waiting.quantiles_bytes,
        peak_bytes=np.maximum(waiting.peak_bytes, needed),
        counts=waiting.counts,
    )


def score(waiting: Waiting, levels: tuple[float, ...]) -> Scored:
    """Compare a forecast that is due with the peak that came; rows that cannot be judged are left out."""
    rows = np.flatnonzero(waiting.counts & np.isfinite(waiting.peak_bytes))
    quantiles, peak = waiting.quantiles_bytes[rows], waiting.peak_bytes[rows, np.newaxis]
    miss, level = peak - quantiles, np.array(levels)
    return Scored(
        ids=tuple(waiting.ids[row] for row in rows.tolist()),
        held=peak <= quantiles,
        pinball_bytes=np.maximum(level * miss, (level - 1.0) * miss),
    )
