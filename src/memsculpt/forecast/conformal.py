# SPDX-License-Identifier: Apache-2.0
"""Quantiles that come true whatever the model does: offsets that are tracked online.

Quantile tracking (Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift", 2021; the step
sized by the recent scores as in Angelopoulos, Candes and Tibshirani, "Conformal PID Control", 2023): after
each truth the offset of level a moves by `step * (1 - a)` down when the quantile held and by `step * a` up
when it did not. Over any long stretch the share of quantiles that held is then a, whatever the series does.
"""

import numpy as np

from memsculpt.domain.arrays import Float64

STEP = 0.05  # of the recent largest error
SCORE_DECAY = 0.99
# Before anything is known: how far above the point each level starts, as a share of it. Wide, not wild.
PRIOR_SPREAD_RATIO = 0.1


def initial_offsets(need_bytes: Float64, levels: Float64) -> Float64:
    """Return offsets for workloads never seen, shape (n, levels): 0 at the median, a tenth of the need at the top."""
    share = np.maximum(levels - 0.5, 0.0) / 0.5
    return need_bytes[:, np.newaxis] * PRIOR_SPREAD_RATIO * share**2


def learn_offsets(offsets: Float64, quantiles: Float64, truth: Float64, levels: Float64, scale: Float64) -> Float64:
    """Move offsets of shape (..., levels) after truth of shape (...); `scale` has truth's shape or broadcasts."""
    held = truth[..., np.newaxis] <= quantiles
    step = STEP * scale[..., np.newaxis]
    return offsets + step * np.where(held, levels - 1.0, levels)


def learn_scale(scale: Float64, error: Float64) -> Float64:
    """Follow the largest recent error, shape kept."""
    return np.maximum(np.abs(error), SCORE_DECAY * scale)
