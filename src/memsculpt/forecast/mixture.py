# SPDX-License-Identifier: Apache-2.0
"""Mix the experts' quantiles by how well each has done, per workload, horizon and situation.

Exponentially weighted aggregation on the pinball loss with fixed share (Herbster and Warmuth, 1998: "Tracking the best
expert"): a weight never falls so low that an expert could not come back when the regime changes. Its loss over any
stretch is that of the best expert of the stretch and a term that grows with the logarithm of their number and with how
often the best one changes. Losses are divided by the workload's own scale, so one learning rate serves all.

Some experts are specialists: they tell when they have found what they look for, and only then mean more than the last
value (Freund, Schapire, Singer and Warmuth, "Using and combining predictors that specialize", 1997). So each set of
specialists that is awake has weights of its own, learnt only when it is, which begin with the specialists ahead.
"""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64

LEARNING_RATE = 6.0
SHARE = 0.005
CONFIDENCE = 20.0  # a specialist that has found its pattern begins with this many times the weight


def starting_weights(experts: int, specialists: tuple[int, ...]) -> Float64:
    """Return what each situation begins with, shape (situations, experts): 2 to the number of specialists."""
    weights = np.ones((1 << len(specialists), experts))
    for bit, expert in enumerate(specialists):
        weights[np.arange(len(weights)) >> bit & 1 == 1, expert] = CONFIDENCE
    return weights / weights.sum(axis=1, keepdims=True)


def situation_of(confident: Bool) -> Int64:
    """Return in which situation each row is, shape (n,); `confident` has shape (n, specialists)."""
    return np.asarray(confident @ (1 << np.arange(confident.shape[1])), np.int64)


def trusted(weights: Float64, expert: int, rows: Bool) -> Float64:
    """Return weights of shape (n, experts, horizons) in which an expert counts CONFIDENCE times as much in some rows.

    For what the losses of a few horizons cannot show: that a phase which failed to come is over.
    """
    raised = weights.copy()
    raised[rows, expert] *= CONFIDENCE
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def mix(quantiles: Float64, weights: Float64) -> Float64:
    """Average quantiles of shape (n, experts, horizons, levels) by weights of shape (n, experts, horizons)."""
    return np.einsum("nehl,neh->nhl", quantiles, weights)


def learn_weights(weights: Float64, losses: Float64, start: Float64) -> Float64:
    """Return new weights, shape (n, experts), after scaled pinball losses; `start` is what they began with."""
    best = losses.min(axis=1, keepdims=True)
    updated = weights * np.exp(-LEARNING_RATE * np.minimum(losses - best, 5.0))
    updated /= updated.sum(axis=1, keepdims=True)
    return (1.0 - SHARE) * updated + SHARE * start


def pinball(quantiles: Float64, truth: Float64, levels: Float64) -> Float64:
    """Return the pinball loss of quantiles of shape (..., levels) against truth of shape (...)."""
    miss = truth[..., np.newaxis] - quantiles
    return np.maximum(levels * miss, (levels - 1.0) * miss)
