# SPDX-License-Identifier: Apache-2.0
"""bench forecasting: what it judges by is what it says, and its rival is no straw man."""

import numpy as np
import pytest

from memsculpt_bench import forecasting

pytestmark = pytest.mark.timeout(60)


def test_series_change_half_way_and_are_the_same_for_a_seed():
    """Every series has another level or scatter after the change; equal seeds give equal series."""
    need = forecasting.series(3)

    assert need.shape == (forecasting.TICKS, 6 * len(forecasting._KINDS))
    assert (need >= 1.0).all()
    np.testing.assert_array_equal(need, forecasting.series(3))
    before, after = need[: forecasting.CHANGE_AT], need[forecasting.CHANGE_AT :]
    changed = np.abs(before.mean(axis=0) - after.mean(axis=0)) + np.abs(before.std(axis=0) - after.std(axis=0))
    assert (changed > 2.0).all()


def test_the_rival_holds_what_it_says():
    """The last value with tracked offsets covers nine peaks of ten as well: it is beaten in width, not in honesty."""
    need = forecasting.series(1, each=2)[: forecasting.CHANGE_AT]
    quantiles = forecasting._tracked_last_value(need)
    peak = np.lib.stride_tricks.sliding_window_view(need[1:], forecasting.HORIZON, axis=0).max(axis=-1)
    held = peak <= quantiles[: len(peak), :, forecasting.AT_90]

    assert 0.87 <= held[forecasting.WARM :].mean() <= 0.95
