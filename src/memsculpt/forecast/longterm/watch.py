# SPDX-License-Identifier: Apache-2.0
"""Which workload is looked at next on the long term, and how its kept series becomes an outlook. Pure.

An outlook costs some 20 ms with reading its history, so there is one at most in a tick, and of each workload one every
five minutes: for as many as a machine's partitions hold that is far below a hundredth of a processor.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.series import NAMES, Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast.longterm.choice import Choice
from memsculpt.forecast.longterm.gate import Gate
from memsculpt.forecast.longterm.history import LEVELS, PEAK_STEPS, History, cleaned
from memsculpt.forecast.longterm.outlook import look_ahead

RESOLUTION_S = 300
REFRESH_S = 300.0
# Where there is nothing yet, it is looked for again after this long.
RETRY_S = 60.0
POINTS_LEAST = 3  # a quarter of an hour: before that nothing is said
VALUE = "needed_peak_bytes"
COVARIATES = ("cpu_ratio", "io_bytes_per_s", "major_faults_per_s", "some_stall_ratio", "growth_bytes_per_s")


def choose(asked_at_s: Mapping[WorkloadId, float], ids: Iterable[WorkloadId], now_s: float) -> WorkloadId | None:
    """Return whose turn it is: who has waited longest, if that is long enough; None: nobody's.

    `asked_at_s` is when each was last asked for, RETRY_S - REFRESH_S earlier where nothing came of it.
    """
    waiting = [(asked_at_s.get(one, float("-inf")), one) for one in ids]
    due = [entry for entry in waiting if now_s - entry[0] >= REFRESH_S]
    return min(due)[1] if due else None


def history_from(series: Series, capacity_bytes: int, covariates: Iterable[str]) -> History:
    """Return a kept series of RESOLUTION_S as the forecaster takes it; NaN where nothing was measured.

    Raises ValueError for another resolution.
    """
    if series.resolution_s != RESOLUTION_S:
        raise ValueError(f"an outlook is made from samples of {RESOLUTION_S} s, not of {series.resolution_s}")
    values, is_valid = series.column(VALUE)
    beside: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for name in covariates:
        if name not in NAMES:
            continue
        column, is_known = series.column(name)
        beside[name] = np.where(is_known, column, np.nan)
    return History(
        values=np.where(is_valid, values, np.nan),
        covariates=beside,
        step=series.start_s // RESOLUTION_S + len(values) - 1,
        interval_s=float(RESOLUTION_S),
        capacity=float(capacity_bytes),
    )


def outlook_from(
    series: Series, capacity_bytes: int, gate: Gate | None, now_s: float, choice: Choice | None = None
) -> WorkloadOutlook | None:
    """Return the outlook at the end of a series of RESOLUTION_S; None while it is too short to say anything.

    With a choice, a model that was fitted to this workload has its part in the path. Raises ValueError for another
    resolution.
    """
    history = history_from(series, capacity_bytes, COVARIATES if gate is None else gate.covariates)
    if int(np.isfinite(history.values).sum()) < POINTS_LEAST:
        return None
    found = look_ahead(history, gate)
    weighed_by = "prior" if gate is None else "gate"
    mixed = None if choice is None else choice.apply(found, cleaned(history), history.step)
    if choice is not None and mixed is not None:
        found, weighed_by = mixed, f"{weighed_by} and {choice.form}"
    return WorkloadOutlook(
        id=series.workload,
        made_at_s=now_s,
        interval_s=float(RESOLUTION_S),
        history_s=float(len(history.values) * RESOLUTION_S),
        levels=LEVELS,
        peak_s=float(PEAK_STEPS * RESOLUTION_S),
        peak_bytes=found.peak.copy(),
        path_bytes=found.path.copy(),
        weighed_by=weighed_by,
    )
