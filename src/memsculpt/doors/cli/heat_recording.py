# SPDX-License-Identifier: Apache-2.0
"""What `heat` has seen, for its table, its picture and its JSON."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.pages import Cleared, Touches
from memsculpt.host import sources
from memsculpt.profile import heat


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One look: touched pages by row since the frame before."""

    at_s: float  # since the beginning
    starts: Int64
    touched: npt.NDArray[np.uint16]
    modules: tuple[heat.ModuleTouches, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Recording:
    """What was seen."""

    pid: int
    source: str
    grain: str
    interval_s: float = 0.0
    touches: Touches | None = None  # of the whole time
    latest: Touches | None = None  # of the last frame
    state: heat.HeatState | None = None
    cleared: Cleared
    frames: list[Frame] = field(default_factory=list[Frame])
    ended: str = ""  # why it was shorter than asked
    better: tuple[sources.Passed, ...] = ()
