# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to be looked at on the long term, and what a kept series becomes."""

import numpy as np
import pytest

from memsculpt.domain.series import METRICS, NAMES, Series
from memsculpt.forecast import longterm
from tests.forecast.longterm.test_gate import made
from tests.forecast.longterm.test_moment import wave


def kept(values, *, known=None, resolution_s=300):
    count = len(values)
    table = np.zeros((count, len(METRICS)))
    is_valid = np.zeros((count, len(METRICS)), bool)
    place = NAMES.index("needed_peak_bytes")
    table[:, place] = values
    is_valid[:, place] = True if known is None else known
    table[:, NAMES.index("cpu_ratio")] = np.arange(count) % 7
    is_valid[:, NAMES.index("cpu_ratio")] = True
    return Series(workload="w", resolution_s=resolution_s, start_s=0, values=table, is_valid=is_valid)


def test_everybody_has_a_turn_and_nobody_twice():
    asked, turns = {}, []
    for second in range(700):
        chosen = longterm.choose(asked, ["a", "b", "c"], float(second))
        if chosen is not None:
            turns.append(chosen)
            asked[chosen] = float(second)
    assert turns == ["a", "b", "c"] * 3
    assert longterm.choose({}, [], 0.0) is None


def test_a_series_becomes_an_outlook():
    series = kept(wave(2000) * 2**20)
    outlook = longterm.outlook_from(series, 1 << 40, None, 77.0)
    assert (outlook.id, outlook.made_at_s, outlook.weighed_by) == ("w", 77.0, "prior")
    assert (outlook.interval_s, outlook.peak_s, outlook.history_s) == (300.0, 3600.0, 600_000.0)
    assert outlook.peak_bytes.shape == (3,)
    assert outlook.path_bytes.shape == (3, 36)
    assert longterm.outlook_from(series, 1 << 40, made(), 0.0).weighed_by == "gate"
    capped = longterm.outlook_from(series, 64 << 20, None, 0.0)
    assert capped.peak_bytes.max() <= 64 << 20


def test_nothing_is_said_of_the_first_minutes():
    assert longterm.outlook_from(kept(np.full(2, 5.0)), 1 << 30, None, 0.0) is None
    known = np.zeros(500, bool)
    known[:2] = True
    assert longterm.outlook_from(kept(np.full(500, 5.0), known=known), 1 << 30, None, 0.0) is None
    with pytest.raises(ValueError, match="samples of 300 s"):
        longterm.outlook_from(kept(np.full(9, 5.0), resolution_s=60), 1 << 30, None, 0.0)
