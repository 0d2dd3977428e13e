# SPDX-License-Identifier: Apache-2.0
"""Changes in a workload's processor time and I/O: what may announce a phase. Pure."""

import math
from dataclasses import dataclass, replace

# A change: this many mean deviations, and this share of the mean, from what was usual.
DEVIATIONS = 4.0
SHARE = 0.5
WEIGHT = 0.2  # of a new value in what is usual
CALM_S = 1.0  # two changes of a kind within it are one
KEPT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What is usual of one figure, and when it last rose or fell."""

    floor: float  # differences below it mean nothing
    mean: float = float("nan")
    deviation: float = 0.0
    rises_s: tuple[float, ...] = ()
    falls_s: tuple[float, ...] = ()
    rise_count: int = 0
    fall_count: int = 0


def read(level: Level, value: float, at_s: float) -> Level:
    """Return the level after one more reading."""
    if math.isnan(level.mean):
        return replace(level, mean=value)
    difference = value - level.mean
    is_change = abs(difference) > max(DEVIATIONS * level.deviation, SHARE * abs(level.mean), level.floor)
    if not is_change:
        return replace(
            level,
            mean=level.mean + WEIGHT * difference,
            deviation=level.deviation + WEIGHT * (abs(difference) - level.deviation),
        )
    # What is usual begins anew at the new value: a level that stays is one change, not many.
    moved = replace(level, mean=value, deviation=0.5 * level.deviation)
    if difference > 0.0:
        is_new = not level.rises_s or at_s - level.rises_s[-1] > CALM_S
        return replace(moved, rises_s=_kept(level.rises_s, at_s, is_new=is_new), rise_count=level.rise_count + is_new)
    is_new = not level.falls_s or at_s - level.falls_s[-1] > CALM_S
    return replace(moved, falls_s=_kept(level.falls_s, at_s, is_new=is_new), fall_count=level.fall_count + is_new)


def _kept(times_s: tuple[float, ...], at_s: float, *, is_new: bool) -> tuple[float, ...]:
    return (*times_s, at_s)[-KEPT:] if is_new else times_s
