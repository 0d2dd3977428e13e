# SPDX-License-Identifier: Apache-2.0
"""Last value: the peak to come is what is needed now. Hard to beat on plateaus, and the fallback of all."""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64
from memsculpt.forecast.protocol import Series


class LastValue:
    """The need of now, at every horizon."""

    name = "last value"

    def expect_peak(self, series: Series, horizons_s: tuple[float, ...]) -> Float64:
        """Return the present need, shape (n, n_horizons)."""
        return np.repeat(series.need_bytes[:, np.newaxis], len(horizons_s), axis=1)

    def is_confident(self, series: Series) -> Bool:
        """Never more than the others."""
        return np.zeros(len(series.need_bytes), np.bool_)
