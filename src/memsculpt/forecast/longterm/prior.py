# SPDX-License-Identifier: Apache-2.0
"""How candidates are weighed where no gate was trained: the same for every moment. Pure.

The weights were found as the gate's are, on public traces of 342 virtual machines (GWA-T-12, Shen, van Beek and Iosup,
2015), with all features held at 0, and rounded; what counted for less than a fiftieth was left out. docs/methods tells
how good this is.
"""

from collections.abc import Mapping

import numpy as np

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.gate import BETWEEN
from memsculpt.forecast.longterm.history import LEVELS, STEPS
from memsculpt.forecast.longterm.moment import Moment, path_place, peak_place
from memsculpt.forecast.longterm.spread import Law, respread

PEAK_WEIGHTS: tuple[Mapping[str, float], ...] = (
    {"near 0.5": 0.50, "beside 0.5": 0.34, "aged 0.5": 0.06, "now": 0.10},
    {"near 0.9": 0.43, "beside 0.9": 0.28, "aged 0.9": 0.17, "close 0.9": 0.08, "same time 0.9": 0.04},
    {
        "beside 0.99": 0.42,
        "beside 1": 0.19,
        "same time 0.99": 0.19,
        "near 1": 0.06,
        "aged 1": 0.06,
        "same time 0.97": 0.08,
    },
)
PEAK_LIFT = (0.01, 0.012, 0.03)  # of the logarithm
LAW = Law(pooled=0.3, evened=0.1, log_factor=0.3, replayed=1.0)
# By knot (gate.PATH_KNOTS): the weights of the candidates for the path.
PATH_WEIGHTS: tuple[Mapping[str, tuple[float, ...]], ...] = (
    {
        "near": (0.10, 0.20, 0.55, 0.65, 0.67, 0.78),
        "near change": (0.70, 0.45, 0.17, 0.07, 0.05, 0.02),
        "two hours": (0.15, 0.30, 0.24, 0.25, 0.26, 0.18),
        "hour mean": (0.05, 0.05, 0.04, 0.03, 0.02, 0.02),
    },
    {
        "near": (0.02, 0.03, 0.05, 0.10, 0.15, 0.25),
        "near change": (0.90, 0.75, 0.70, 0.65, 0.65, 0.55),
        "two hours": (0.03, 0.08, 0.15, 0.18, 0.13, 0.10),
        "hour mean": (0.05, 0.14, 0.10, 0.07, 0.07, 0.10),
    },
    {
        "near": (0.10, 0.06, 0.12, 0.12, 0.17, 0.24),
        "near change": (0.75, 0.75, 0.62, 0.55, 0.43, 0.32),
        "day": (0.05, 0.09, 0.14, 0.25, 0.33, 0.38),
        "two hours": (0.10, 0.10, 0.12, 0.08, 0.07, 0.06),
    },
)
PATH_SHIFT = (-0.015, 0.15, 0.33)  # in mean absolute changes


def apply(moment: Moment) -> tuple[Float64, Float64]:
    """Return quantiles of the peak, shape (levels,), and of the path, shape (levels, STEPS)."""
    peaks, paths = np.empty(len(LEVELS)), np.empty((len(LEVELS), STEPS))
    softened = moment.reference + moment.least
    ratios = np.log((np.maximum(moment.peaks, 0.0) + moment.least) / softened)
    for number in range(len(LEVELS)):
        mixed = sum(weight * ratios[peak_place(name)] for name, weight in PEAK_WEIGHTS[number].items())
        peaks[number] = np.exp(mixed + PEAK_LIFT[number]) * softened - moment.least
        path = np.full(STEPS, PATH_SHIFT[number] * moment.scale)
        for name, by_knot in PATH_WEIGHTS[number].items():
            path += np.array(by_knot) @ BETWEEN * moment.paths[path_place(name), number]
        paths[number] = path
    # Of what stands on plateaus the middle is where it stands: no mean of the past comes near it.
    paths[0] += moment.stays * (moment.paths[path_place("now"), 0] - paths[0])
    raised = np.maximum.accumulate(peaks)[np.newaxis]
    spread = respread(raised, np.array([moment.capacity]), np.array([moment.log_stretch]), LAW)
    return spread[0], np.maximum.accumulate(paths, axis=0)
