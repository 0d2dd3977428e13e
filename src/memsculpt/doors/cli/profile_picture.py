# SPDX-License-Identifier: Apache-2.0
"""The PNG of `profile show`: use told apart with the forecasts over it, then rates and stalls, over time."""

import datetime as dt
import io
from typing import Any

import matplotlib as mpl
import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.domain.series import Series
from memsculpt.domain.units import format_duration_s
from memsculpt.doors import words

mpl.use("agg")
import matplotlib.pyplot as plt

MIB = 1 << 20
_USE = (
    ("needed_bytes", "needed", "#1f5fa8"),
    ("cold_bytes", "cold", "#9db8d2"),
    ("reclaimable_bytes", "reclaimable", "#d9e2ea"),
)
_LINES = (
    ("needed_peak_bytes", "peak of needed", "#0b2f57", "-"),
    ("swapped_bytes", "swapped", "#a35bb0", "-"),
    ("forecast_median_bytes", "forecast, median", "#d9822b", "--"),
    ("forecast_high_bytes", "forecast, 99 %", "#c23b22", "--"),
)
_STALLS = (("cpu_ratio", "processor", "#4c8c4a"), ("some_stall_ratio", "stalled on memory", "#c23b22"))


def png(series: Series) -> bytes:
    """Return the picture as PNG."""
    pyplot: Any = plt  # its types are only partly told
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(12, 7), height_ratios=(3, 1), sharex=True, constrained_layout=True
    )
    try:
        times = [dt.datetime.fromtimestamp(at, tz=dt.UTC).astimezone() for at in series.times_s.tolist()]
        above.stackplot(
            times,
            *(np.nan_to_num(_column(series, name)) / MIB for name, _, _ in _USE),
            labels=[label for _, label, _ in _USE],
            colors=[colour for _, _, colour in _USE],
        )
        for name, label, colour, style in _LINES:
            column = _column(series, name)
            if np.isfinite(column).any():
                above.plot(times, column / MIB, style, color=colour, linewidth=1.2, label=label)
        above.set_ylabel("memory [MiB]")
        above.set_ylim(bottom=0.0)
        above.set_title(
            f"{words.shortened(series.workload, 70)}, every {format_duration_s(series.resolution_s)}", loc="left"
        )
        above.legend(loc="upper left", fontsize=8, frameon=False, ncols=4)
        for name, label, colour in _STALLS:
            below.plot(times, _column(series, name) * 100.0, color=colour, linewidth=1.0, label=label)
        below.set_ylabel("share of time [%]")
        below.set_ylim(bottom=0.0)
        below.legend(loc="upper left", fontsize=8, frameon=False, ncols=2)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        return content.getvalue()
    finally:
        pyplot.close(figure)


def _column(series: Series, name: str) -> Float64:
    values, is_known = series.column(name)
    return np.where(is_known, values, np.nan)
