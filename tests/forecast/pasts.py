# SPDX-License-Identifier: Apache-2.0
"""Pasts as the engine hands them to experts and learners."""

import numpy as np
from hypothesis import strategies as st

from memsculpt.forecast.memory import N_ONSETS
from memsculpt.forecast.protocol import N_DRIVERS, Series

HORIZONS_S = (3.0, 10.0, 60.0)
HISTORY = 80


def past_of(ring: np.ndarray, *, now_s: float = 1000.0, rise: float = 1.0, cpu: float = 0.5, **more) -> Series:
    """What is known of workloads whose last points are `ring`, shape (n, HISTORY); `more` replaces columns."""
    count = len(ring)
    columns = {
        "now_s": now_s,
        "grid_s": 1.0,
        "need_bytes": ring[:, -1].copy(),
        "ring_bytes": ring,
        "known_count": np.full(count, float(HISTORY)),
        "growth_bytes_per_s": np.zeros(count),
        "is_active": np.ones(count, np.bool_),
        "onset_s": np.full((count, N_ONSETS), np.nan),
        "phase_peaks_bytes": np.full((count, N_ONSETS), np.nan),
        "season_s": np.full(count, np.nan),
        "step_s": 1.0,
        "change_bytes": np.ones(count),
        "mean_bytes": ring.mean(axis=1),
        "away_ratio": np.ones(count),
        "rise_bytes": np.full((count, len(HORIZONS_S)), rise),
        "drivers": np.full((count, N_DRIVERS), cpu),
    }
    return Series(**{**columns, **more})


@st.composite
def series(draw, count: int | None = None) -> Series:
    """Any past that the engine may hand over, also of no workload at all."""
    count = draw(st.integers(0, 5)) if count is None else count
    chance = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    now_s = draw(st.floats(0, 1e6))
    ring = chance.uniform(0, 1e9, (count, HISTORY)) * chance.integers(0, 2, (count, 1))
    onsets = now_s - np.cumsum(chance.uniform(0.1, 40.0, (count, N_ONSETS)), axis=1)[:, ::-1]
    known = chance.integers(0, N_ONSETS + 1, count)
    unknown = np.arange(N_ONSETS) < (N_ONSETS - known)[:, np.newaxis]
    change = 10.0 ** chance.uniform(4.8, 9.0, count)
    return past_of(
        ring,
        now_s=now_s,
        known_count=chance.integers(0, HISTORY + 1, count).astype(np.float64),
        growth_bytes_per_s=chance.uniform(0, 1e8, count) * chance.integers(0, 2, count),
        is_active=chance.random(count) < 0.5,
        onset_s=np.where(unknown, np.nan, onsets),
        phase_peaks_bytes=np.where(unknown, np.nan, chance.uniform(0, 1e9, (count, N_ONSETS))),
        season_s=np.where(chance.random(count) < 0.5, np.nan, chance.uniform(2.0, 60.0, count)),
        step_s=float(draw(st.integers(1, 10))),
        change_bytes=change,
        away_ratio=chance.uniform(1.0, 50.0, count),
        rise_bytes=10.0 ** chance.uniform(4.8, 9.0, (count, len(HORIZONS_S))),
        drivers=chance.random((count, N_DRIVERS)),
    )
