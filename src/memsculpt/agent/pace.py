# SPDX-License-Identifier: Apache-2.0
"""How far apart the ticks of an agent are that only watches: as configured, or as its budget allows.

A tick costs more the more there is to see, and who only watches may look less often. Who acts, or has partitions to
plan for, keeps the configured interval whatever it costs: it must be there when something happens.
Pressure, and whoever asks something of the agent, calls a tick at once, however far apart they are.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from memsculpt.domain.settings import Mode, Settings

STEP_RATIO = 0.5  # of the interval: ticks are so many of these apart, so that they do not waver with every measurement
TICKS_LEAST, TICKS_MOST = 4, 32  # of which the cost is the mean; some write, or read in full, what most do not
STARTING_TICKS = 3  # the first ones learn what is there
AIM_RATIO = 0.9  # of the budget: what the ticks to come cost more than those that were
BACK_RATIO = 0.85  # nearer again only where that would stay below this share of the aim


class Pace:
    """Follows what the agent uses; one thread."""

    def __init__(self, settings: Settings, used_s: Callable[[], float] = time.process_time) -> None:
        """Begin as configured; `used_s` tells the processor time of the whole agent so far, in seconds."""
        self.interval_s = settings.interval_s
        self._step_s = STEP_RATIO * settings.interval_s
        # What comes true within the first horizon is scored by ticks inside it.
        most_s = max(settings.interval_s, settings.forecast.horizons_s[0])
        self._most_s = math.floor(most_s / self._step_s) * self._step_s
        self._least_s = settings.interval_s
        self._aim_ratio = AIM_RATIO * settings.budget_ratio
        self._used_s = used_s
        self._marks_s: deque[float] = deque(maxlen=TICKS_MOST + 1)
        self._ticks_count = 0
        self._is_bound = settings.budget_ratio > 0.0 and settings.mode is Mode.OBSERVE and not settings.partitions

    @property
    def note(self) -> str:
        """What people are told of it; "" while it is as configured."""
        if self.interval_s <= self._least_s:
            return ""
        return (
            f"it looks every {self.interval_s:g} s, not every {self._least_s:g} s, to stay within its budget of "
            f"processor time (fix: budget in [agent])"
        )

    def follow(self) -> float:
        """Take note that a tick has ended; return how long after its begin the next one is to begin, in seconds."""
        if not self._is_bound:
            return self.interval_s
        self._ticks_count += 1
        if self._ticks_count > STARTING_TICKS:
            self._marks_s.append(self._used_s())
        if len(self._marks_s) > TICKS_LEAST:
            tick_s = (self._marks_s[-1] - self._marks_s[0]) / (len(self._marks_s) - 1)
            wanted_s = tick_s / self._aim_ratio
            if wanted_s > self.interval_s or wanted_s < BACK_RATIO * (self.interval_s - self._step_s):
                self._settle(wanted_s)
        return self.interval_s

    def _settle(self, wanted_s: float) -> None:
        """Take the next step that is long enough; what was measured at another pace counts no more."""
        found_s = math.ceil(wanted_s / self._step_s) * self._step_s
        found_s = min(max(found_s, self._least_s), self._most_s)
        if found_s != self.interval_s:
            self.interval_s = found_s
            self._marks_s.clear()
