# SPDX-License-Identifier: Apache-2.0
"""Profiles built from a few columns, and workloads that pause and come back; sizes in MiB."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import MIB, ForecastSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast import Forecaster, step

SETTINGS = ForecastSettings()
LEVELS = SETTINGS.levels
AT_90, AT_99 = LEVELS.index(0.9), LEVELS.index(0.99)


def profiles(
    time_s: float,
    need: Sequence[float],
    *,
    elapsed_s: float = 1.0,
    ids: Sequence[str] | None = None,
    idle_s: Sequence[float] | None = None,
    growth: Sequence[float] | None = None,
    cpu: Sequence[float] | None = None,
    starting: bool = False,
    restarted: bool = False,
    killed: bool = False,
    hit: bool = False,
) -> Profiles:
    """What the profile room would say; `need` and `growth` (per second) in MiB, flags for every workload."""
    count = len(need)

    def column(value, scale=1.0):
        return np.zeros(count) if value is None else np.array(value, np.float64) * scale

    def flag(value):
        return np.full(count, value, np.bool_)

    def none():
        return np.zeros(count, np.int64)

    return Profiles(
        time_s=time_s,
        elapsed_s=elapsed_s,
        ids=tuple(WorkloadId(each) for each in (ids or [f"w{row:05}" for row in range(count)])),
        needed_bytes=np.round(column(need, MIB)).astype(np.int64),
        cold_bytes=none(),
        reclaimable_bytes=none(),
        working_set_bytes=none(),
        growth_bytes_per_s=column(growth, MIB),
        release_bytes_per_s=column(None),
        minor_faults_per_s=column(None),
        major_faults_per_s=column(None),
        refaults_per_s=column(None),
        cpu_ratio=np.ones(count) if cpu is None else column(cpu),
        io_bytes_per_s=column(None),
        some_stall_ratio=column(None),
        full_stall_ratio=column(None),
        idle_s=column(idle_s),
        age_s=column(None),
        is_starting=flag(starting),
        was_restarted=flag(restarted),
        was_oom_killed=flag(killed),
        hit_limit=flag(hit),
        process_idle_s=np.zeros(0),
    )


def run(seen: Iterable[Profiles], state: Forecaster | None = None) -> list[Forecasts]:
    """Forecasts after each of `seen`."""
    state = Forecaster() if state is None else state
    made = []
    for each in seen:
        state, forecasts = step(state, each, SETTINGS)
        made.append(forecasts)
    return made


def follow(series: Iterable[float], *, start_s: float = 0.4) -> list[Forecasts]:
    """Forecasts of one workload that never pauses, one point a second."""
    return run(profiles(start_s + tick, [need]) for tick, need in enumerate(series))


def mib(forecasts: Forecasts, *, row: int = 0, horizon: int = 0) -> np.ndarray:
    """The quantiles of one workload in MiB, shape (n_levels,)."""
    return forecasts.quantiles_bytes[row, horizon] / MIB


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One tick of a workload that pauses, and what it does then and next."""

    time_s: float
    profiles: Profiles
    phases_begun: int
    until_onset_s: float
    is_in_phase: bool
    idle_s: float


def phases(onsets_s: Sequence[float], duration_s: float, *, until_s: float, need: float = 450.0) -> list[Moment]:
    """Ticks of 1 s of a job that runs at `onsets_s` for `duration_s` and is idle between, as the profile sees it."""
    moments, last_run_s = [], -10.0
    for time_s in np.arange(0.4, until_s, 1.0).tolist():
        ran_s = sum(max(0.0, min(time_s, onset + duration_s) - max(time_s - 1.0, onset)) for onset in onsets_s)
        last_run_s = time_s if ran_s > 0.005 else last_run_s
        idle_s = time_s - last_run_s
        held = need if idle_s < 0.9 else 1.0
        moments.append(
            Moment(
                time_s=time_s,
                profiles=profiles(time_s, [held], idle_s=[idle_s], cpu=[ran_s]),
                phases_begun=sum(onset < time_s for onset in onsets_s),
                until_onset_s=min((onset for onset in onsets_s if onset > time_s), default=1e9) - time_s,
                is_in_phase=any(onset <= time_s <= onset + duration_s for onset in onsets_s),
                idle_s=idle_s,
            )
        )
    return moments
