# SPDX-License-Identifier: Apache-2.0
"""From a tick's results to the row of samples that is kept of each workload, and from fine samples to coarse ones."""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.profile import Profiles
from memsculpt.domain.series import METRICS, SAMPLED, Fold

_MEDIAN, _HIGH = 0.5, 0.99
_PEAK_OF = 0  # needed_bytes


def sample(
    observation: Observation,
    profiles: Profiles,
    heat: WorkloadHeat | None,
    forecasts: Forecasts | None,
    *,
    horizon_s: float,
) -> Float64:
    """Return this tick's samples, shape (n_workloads, SAMPLED), NaN for what is not known.

    Rates of the first tick are not known; neither are readings that the host says it lacks. Forecasts are those over
    `horizon_s`.
    """
    seen = observation.workloads
    rows = np.full((len(seen.ids), SAMPLED), np.nan)
    has_rates = profiles.elapsed_s > 0.0
    columns: dict[str, Float64 | Int64] = {
        "needed_bytes": profiles.needed_bytes,
        "cold_bytes": profiles.cold_bytes,
        "reclaimable_bytes": profiles.reclaimable_bytes,
        "working_set_bytes": profiles.working_set_bytes,
        "anon_bytes": seen.anon_bytes,
        "file_bytes": seen.file_bytes,
        "shmem_bytes": seen.shmem_bytes,
        "swapped_bytes": seen.swapped_bytes,
    }
    if has_rates:
        columns |= {
            "growth_bytes_per_s": profiles.growth_bytes_per_s,
            "release_bytes_per_s": profiles.release_bytes_per_s,
            "minor_faults_per_s": profiles.minor_faults_per_s,
            "major_faults_per_s": profiles.major_faults_per_s,
            "refaults_per_s": np.where(seen.has_refaults, profiles.refaults_per_s, np.nan),
            "cpu_ratio": profiles.cpu_ratio,
            "io_bytes_per_s": np.where(seen.has_io, profiles.io_bytes_per_s, np.nan),
            "some_stall_ratio": np.where(seen.has_pressure, profiles.some_stall_ratio, np.nan),
            "full_stall_ratio": np.where(seen.has_pressure, profiles.full_stall_ratio, np.nan),
        }
    for place, metric in enumerate(METRICS[:SAMPLED]):
        column = columns.get(metric.name)
        if column is not None:
            rows[:, place] = column
    _add_heat(rows, heat, seen.ids)
    _add_forecasts(rows, forecasts, seen.ids, horizon_s)
    return rows


def _add_heat(rows: Float64, heat: WorkloadHeat | None, ids: tuple[str, ...]) -> None:
    if heat is None or not heat.ids:
        return
    row_of = {identity: row for row, identity in enumerate(ids)}
    place = next(number for number, one in enumerate(METRICS) if one.name == "hot_bytes")
    for number, identity in enumerate(heat.ids):
        row = row_of.get(identity)
        if row is not None:
            rows[row, place] = heat.hot_bytes[number]


def _add_forecasts(rows: Float64, forecasts: Forecasts | None, ids: tuple[str, ...], horizon_s: float) -> None:
    if forecasts is None or forecasts.ids != ids or horizon_s not in forecasts.horizons_s:
        return
    quantiles = forecasts.quantiles_bytes[:, forecasts.horizons_s.index(horizon_s), :]
    levels = np.asarray(forecasts.levels)
    for name, level in (("forecast_median_bytes", _MEDIAN), ("forecast_high_bytes", _HIGH)):
        place = next(number for number, one in enumerate(METRICS) if one.name == name)
        rows[:, place] = quantiles[:, int(np.abs(levels - level).argmin())]


def fold(values: Float64, is_valid: Bool, factor: int) -> Float64:
    """Return samples `factor` times as long, NaN where nothing is known; shape (n_samples / factor, n_metrics).

    Takes shape (n_samples, SAMPLED), the finest, or (n_samples, n_metrics); `factor` divides n_samples, or the last
    sample stands for what there is of it. Means leave out what is not known.
    """
    samples, width = values.shape
    count = -(-samples // factor)
    padded = np.full((count * factor, len(METRICS)), np.nan)
    padded[:samples, :width] = np.where(is_valid, values, np.nan)
    if width == SAMPLED:
        padded[:, SAMPLED] = padded[:, _PEAK_OF]
    blocks = padded.reshape(count, factor, len(METRICS))
    is_known = np.isfinite(blocks)
    known_count = is_known.sum(axis=1)
    means = np.where(is_known, blocks, 0.0).sum(axis=1) / np.maximum(known_count, 1)
    peaks: Float64 = np.where(is_known, blocks, -np.inf).max(axis=1)
    is_peak = np.array([one.fold is Fold.PEAK for one in METRICS])
    return np.where(known_count > 0, np.where(is_peak, peaks, means), np.nan)
