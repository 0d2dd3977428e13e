# SPDX-License-Identifier: Apache-2.0
"""Quantiles that come true whatever the model does: offsets that are tracked online.

Quantile tracking (Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift", 2021; the step
sized by the recent scores as in Angelopoulos, Candes and Tibshirani, "Conformal PID Control", 2023): after
each truth the offset of level a moves by `step * (1 - a)` down when the quantile held and by `step * a` up
when it did not. Over any long stretch the share of quantiles that held is then a, whatever the series does.

Steps begin large, so that a guess is soon forgotten, and shrink to a floor, so that a change of regime is followed
(Angelopoulos, Barber and Bates, "Online conformal prediction with decaying step sizes", 2024).
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64

# Of the recent largest error, at the first truth and in the long run.
STEP_FIRST, STEP_LAST = 0.07, 0.03
STEP_HALVED_AFTER = 20.0  # truths
# Of a workload that pauses, whose errors are whole phases: what one of them added must be gone before the next.
STEP_OF_PAUSING = 0.045
# What a truth takes off the largest error remembered, at first (then it is but a guess) and in the long run.
FADE_FIRST, FADE_LAST = 0.5, 0.01
FADE_HALVED_AFTER = 10.0
# Before anything is known: how far above the point each level starts, as a share of it. Wide, not wild.
PRIOR_SPREAD_RATIO = 0.1
PRIOR_KEPT = 0.9  # of the prior, at each truth: after 44 of them a hundredth is left


def initial_offsets(need_bytes: Float64, levels: Float64) -> Float64:
    """Return offsets for workloads never seen, shape (n, levels): 0 at the median, a tenth of the need at the top."""
    share = np.maximum(levels - 0.5, 0.0) / 0.5
    return need_bytes[:, np.newaxis] * PRIOR_SPREAD_RATIO * share**2


def prior_left(settled_count: Float64) -> Float64:
    """Return how much of a prior's spread still counts, shape kept."""
    return np.asarray(PRIOR_KEPT**settled_count)


def step_ratio(settled_count: Float64, pauses: Bool) -> Float64:
    """Return the step in recent largest errors, by how many truths have been seen; shape kept."""
    shrinking = np.maximum(STEP_FIRST / (1.0 + settled_count / STEP_HALVED_AFTER), STEP_LAST)
    return np.where(pauses, STEP_OF_PAUSING, shrinking)


def learn_offsets(offsets: Float64, quantiles: Float64, truth: Float64, levels: Float64, step: Float64) -> Float64:
    """Move offsets of shape (..., levels) after truth of shape (...); `step` is in bytes and broadcasts with truth."""
    held = truth[..., np.newaxis] <= quantiles
    return offsets + step[..., np.newaxis] * np.where(held, levels - 1.0, levels)


def learn_scale(scale: Float64, error: Float64, settled_count: Float64, pauses: Bool) -> Float64:
    """Follow the largest recent error, shape kept; the whole phase that was one is not forgotten between phases."""
    fade = np.maximum(FADE_FIRST / (1.0 + settled_count / FADE_HALVED_AFTER), FADE_LAST)
    fade = np.where(pauses, FADE_LAST, fade)
    return np.maximum(np.abs(error), (1.0 - fade) * scale)
