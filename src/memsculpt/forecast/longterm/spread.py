# SPDX-License-Identifier: Apache-2.0
"""How far above the median the top quantile of a peak lies, after all that is known is weighed. Pure.

A 0.99 quantile is estimated from the few highest peaks, a 0.9 quantile from many: the spread of the top is therefore a
geometric mean of its own and of the 0.9 quantile's (a noisy estimate pooled with a steady one that goes up and down
with it; in the spirit of Efron and Morris, "Stein's estimation rule and its competitors", 1973). A spread that is wide
in shares of the capacity is narrowed a little, and a narrow one widened: of all workloads together the same share is
exceeded, with less memory given. The price is that wide ones are exceeded somewhat more often than narrow ones;
docs/methods/long-term.md has both figures. Last comes what the replay of this workload's past asks for (replay.py).
"""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Float64

USUAL_RATIO = 0.1  # of the capacity: a spread that is neither narrowed nor widened
LEAST_RATIO = 1e-3  # of the capacity: the least spread that is weighed
MOST_TURN = 3.0  # bound of each logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How the spread of the 0.99 quantile is found from what the candidates say."""

    pooled: float  # weight of the 0.9 quantile's spread in the geometric mean, 0 to 1
    evened: float  # power of the spread in shares of capacity that it is divided by, from 0 on
    log_factor: float  # logarithm of a factor for all, so that 1 % is exceeded
    replayed: float  # how much of the replay's logarithm is followed, 0 to 1

    def __post_init__(self) -> None:
        """Refuse what would turn a spread around."""
        if not (0.0 <= self.pooled <= 1.0 and 0.0 <= self.evened < 1.0 and 0.0 <= self.replayed <= 1.0):
            raise ValueError(f"not a law of spreads: {self}")


PLAIN = Law(pooled=0.0, evened=0.0, log_factor=0.0, replayed=0.0)


def respread(peaks: Float64, capacity: Float64, log_stretch: Float64, law: Law) -> Float64:
    """Return quantiles of peaks with the top spread by the law; shape (n, levels), the others (n,), peaks' unit.

    What lies below the top is kept, but for not being above it.
    """
    middle = peaks[:, 0]
    least = LEAST_RATIO * capacity
    top, ninth = peaks[:, -1] - middle, peaks[:, -2] - middle
    shape = np.clip(np.log((ninth + least) / (top + least)), -MOST_TURN, MOST_TURN)
    width = np.clip(np.log((top + least) / capacity / USUAL_RATIO), -MOST_TURN, MOST_TURN)
    turn = law.pooled * shape - law.evened * width + law.log_factor + law.replayed * log_stretch
    raised = middle + top * np.exp(turn)
    return np.column_stack([np.minimum(peaks[:, :-1], raised[:, np.newaxis]), raised])
