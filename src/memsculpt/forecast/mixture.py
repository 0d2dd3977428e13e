# SPDX-License-Identifier: Apache-2.0
"""Mix the experts' quantiles by how well each has done, per workload and horizon.

Exponentially weighted aggregation on the pinball loss with fixed share (Herbster and Warmuth, 1998:
"Tracking the best expert"): a weight never falls so low that an expert could not come back when the
regime changes. Losses are divided by the workload's own scale, so one learning rate serves all.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64

LEARNING_RATE = 2.0
SHARE = 0.02
CONFIDENCE = 20.0  # an expert that has found its pattern starts with this many times the weight


def initial_weights(rows: int, experts: int, horizons: int) -> Float64:
    """Return equal weights, shape (rows, experts, horizons)."""
    return np.full((rows, experts, horizons), 1.0 / experts)


def used_weights(weights: Float64, confident: Bool) -> Float64:
    """Return weights for mixing, shape (n, experts, horizons); `confident` has shape (n, experts)."""
    raised = weights * np.where(confident, CONFIDENCE, 1.0)[:, :, np.newaxis]
    return raised / raised.sum(axis=1, keepdims=True)


def mix(quantiles: Float64, weights: Float64) -> Float64:
    """Average quantiles of shape (n, experts, horizons, levels) by weights of shape (n, experts, horizons)."""
    return np.einsum("nehl,neh->nhl", quantiles, weights)


def learn_weights(weights: Float64, losses: Float64) -> Float64:
    """Return new weights, shape (n, experts), after scaled pinball losses of the same shape."""
    best = losses.min(axis=1, keepdims=True)
    updated = weights * np.exp(-LEARNING_RATE * np.minimum(losses - best, 5.0))
    updated /= updated.sum(axis=1, keepdims=True)
    return (1.0 - SHARE) * updated + SHARE / weights.shape[1]


def pinball(quantiles: Float64, truth: Float64, levels: Float64) -> Float64:
    """Return the pinball loss of quantiles of shape (..., levels) against truth of shape (...)."""
    miss = truth[..., np.newaxis] - quantiles
    return np.maximum(levels * miss, (levels - 1.0) * miss)
