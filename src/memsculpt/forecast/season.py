# SPDX-License-Identifier: Apache-2.0
"""Find periods: of phases by the times at which they begin, of smooth rhythms by autocorrelation."""

import numpy as np

from memsculpt.domain.arrays import Bool, Float64

LEAST_CORRELATION = 0.5
LEAST_VARIATION_RATIO = 0.02
LEAST_POINTS = 16


def find_seasons(ring: Float64, known_count: Float64, grid_s: float) -> Float64:
    """Return the strongest period of each series in seconds, shape (n,); nan where there is none.

    `ring` has shape (n, history), newest last. A period counts when it was seen at least twice, when its
    autocorrelation is a local maximum above `LEAST_CORRELATION`, and when the series varies at all. It is
    refined between grid points by a parabola through the maximum.
    """
    result = np.full(len(ring), np.nan)
    for row in np.flatnonzero(known_count >= 2 * LEAST_POINTS):
        length = int(min(known_count[row], ring.shape[1]))
        part = ring[row, -length:]
        spread = part.std()
        if spread <= LEAST_VARIATION_RATIO * max(part.mean(), 1.0):
            continue
        correlation = _autocorrelation(part - part.mean())
        most = length // 2
        inner = correlation[2:most]
        is_peak = (inner > correlation[1 : most - 1]) & (inner >= correlation[3 : most + 1])
        is_peak &= inner > LEAST_CORRELATION
        peaks = np.flatnonzero(is_peak)
        if peaks.size:
            # Multiples of a period correlate as well: the first that comes near the best is the period.
            best = inner[peaks].max()
            lag = int(peaks[inner[peaks] >= 0.9 * best][0]) + 2
            result[row] = (lag + _vertex(correlation[lag - 1 : lag + 2])) * grid_s
    return result


def _autocorrelation(centred: Float64) -> Float64:
    size = 1 << (2 * len(centred) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    full = np.fft.irfft(spectrum * np.conj(spectrum), size)[: len(centred)]
    # The share that overlaps shrinks with the lag; without this every period would look weak.
    unbiased = full / np.arange(len(centred), 0, -1)
    return unbiased / max(unbiased[0], 1e-12)


def _vertex(around: Float64) -> float:
    curve = around[0] - 2.0 * around[1] + around[2]
    return 0.0 if curve >= 0.0 else float(0.5 * (around[0] - around[2]) / curve)


def note_onsets(
    onset_s: Float64, peaks: Float64, began: Bool, began_at_s: Float64, need: Float64, is_active: Bool
) -> tuple[Float64, Float64]:
    """Append phases that began now, and raise the peak of those under way; shapes (n, N_ONSETS)."""
    shifted = np.concatenate((onset_s[:, 1:], began_at_s[:, np.newaxis]), axis=1)
    onset_s = np.where(began[:, np.newaxis], shifted, onset_s)
    fresh = np.concatenate((peaks[:, 1:], need[:, np.newaxis]), axis=1)
    peaks = np.where(began[:, np.newaxis], fresh, peaks)
    running = is_active & np.isfinite(onset_s[:, -1])
    peaks[:, -1] = np.where(running, np.fmax(peaks[:, -1], need), peaks[:, -1])
    return onset_s, peaks
