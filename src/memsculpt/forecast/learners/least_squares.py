# SPDX-License-Identifier: Apache-2.0
"""Recursive least squares with forgetting, for many workloads at once.

Source: Haykin, "Adaptive Filter Theory", chapter on the RLS algorithm. The gain depends on inputs alone, so it can be
computed when they are seen and used when their truth is known. Where nothing new is seen, forgetting lets the inverse
correlation grow without bound and one surprise then throws the coefficients anywhere ("wind-up"); it therefore stops
where the trace has reached a bound (constant-trace RLS: Astrom and Wittenmark, "Adaptive Control", section 11.5).
Inverse correlations are doubles and updated symmetrically: in single precision they lose their sign within minutes.
"""

import numpy as np

from memsculpt.domain.arrays import Float32, Float64

START = 1.0  # on the diagonal: the smaller, the longer the coefficients stay at what they began with


def begin(width: int) -> Float64:
    """Return the inverse correlation that one begins with, shape (width, width)."""
    return START * np.eye(width)


def gain(inverse: Float64, inputs: Float32, forgetting: float) -> tuple[Float32, Float64]:
    """Return the gain of each row's inputs, shape (n, width), and the inverse correlations after them.

    `inverse` has shape (n, width, width), `inputs` (n, width) and should be of the order of 1.
    """
    seen = np.matmul(inverse, inputs[:, :, np.newaxis])[:, :, 0]
    spread = forgetting + np.einsum("nw,nw->n", seen, inputs)
    scaled = seen / np.sqrt(spread)[:, np.newaxis]
    inverse = inverse - scaled[:, :, np.newaxis] * scaled[:, np.newaxis, :]
    trace = np.einsum("nww->n", inverse)
    inverse *= np.where(trace < START * inputs.shape[1], 1.0 / forgetting, 1.0)[:, np.newaxis, np.newaxis]
    return (seen / spread[:, np.newaxis]).astype(np.float32), inverse


def learn(coefficients: Float32, gains: Float32, inputs: Float32, target: Float32) -> Float32:
    """Return the coefficients, shape (n, width), after one truth each, shape (n,)."""
    error = target - np.einsum("nw,nw->n", coefficients, inputs)
    return np.asarray(coefficients + gains * error[:, np.newaxis])
