# SPDX-License-Identifier: Apache-2.0
"""Bounds held at the last moment, whatever the plan says: what a tick may page, and room that did not come free.

The planner keeps the same budgets; these are the second lock on the door. A plan also counts on its first half: it
grows by what it frees. Where less came free, growing stops short by as much, so that the sum never exceeds the host.
"""

from dataclasses import dataclass

from memsculpt.domain.observation import HostMemory
from memsculpt.domain.settings import PlanSettings
from memsculpt.domain.units import UNLIMITED_BYTES

ENOUGH_RATIO = 0.9
"""A page-out asks for "up to" so much and pages come and go meanwhile; nine tenths of it count as all."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """What one tick may still page; mutable, made anew for each tick."""

    page_out_bytes: int = UNLIMITED_BYTES
    cache_bytes: int = UNLIMITED_BYTES  # page cache that may be dropped: at the same rate, whatever the swap holds
    slow_bytes: int = UNLIMITED_BYTES  # to a slow node, at the same rate again
    page_in_bytes: int = UNLIMITED_BYTES
    balloon_bytes: int = UNLIMITED_BYTES  # what guests may be asked to give
    short_bytes: int = 0  # freed less than the plan counted on
    withheld_bytes: int = 0  # limits came down by less than the plan counted on

    @classmethod
    def for_tick(cls, settings: PlanSettings, memory: HostMemory, interval_s: float) -> "Budget":
        """Return what the rates allow in `interval_s`, and the swap's fill in all."""
        fill_bytes = int(settings.swap_fill_max_ratio * memory.swap_total_bytes)
        used_bytes = memory.swap_total_bytes - memory.swap_free_bytes
        rate_bytes = int(settings.page_out_bytes_per_s * interval_s)
        return cls(
            page_out_bytes=min(rate_bytes, max(0, fill_bytes - used_bytes)),
            cache_bytes=rate_bytes,
            slow_bytes=min(rate_bytes, memory.slow_room_bytes),
            page_in_bytes=int(settings.page_in_bytes_per_s * interval_s),
            balloon_bytes=int(settings.shrink_bytes_per_s * interval_s),
        )

    def grant_page_out(self, asked_bytes: int) -> int:
        """Return how much of it may be paged out."""
        return min(asked_bytes, self.page_out_bytes)

    def grant_cache(self, asked_bytes: int) -> int:
        """Return how much page cache may be dropped."""
        return min(asked_bytes, self.cache_bytes)

    def dropped(self, done_bytes: int) -> None:
        """Count page cache that was dropped; nobody grows into it, so less than asked is no shortfall."""
        self.cache_bytes = max(0, self.cache_bytes - done_bytes)

    def grant_slow(self, asked_bytes: int) -> int:
        """Return how much of it may go to a slow node."""
        return min(asked_bytes, self.slow_bytes)

    def demoted(self, done_bytes: int) -> None:
        """Count what went to a slow node; nobody's use falls by it, so less than asked is no shortfall."""
        self.slow_bytes = max(0, self.slow_bytes - done_bytes)

    def grant_page_in(self, asked_bytes: int) -> int:
        """Return how much of it may be paged in: within the rate, and less what was not freed for it."""
        return max(0, min(asked_bytes, self.page_in_bytes) - self.short_bytes)

    def grant_balloon(self, asked_bytes: int) -> int:
        """Return how much guests may still be asked to give."""
        return min(asked_bytes, self.balloon_bytes)

    def ballooned(self, asked_bytes: int) -> None:
        """Count what a guest was asked to give."""
        self.balloon_bytes = max(0, self.balloon_bytes - asked_bytes)

    def grant_raise(self, asked_bytes: int) -> int:
        """Return how much of a limit's raise is covered by limits that came down."""
        return max(0, asked_bytes - self.withheld_bytes)

    def paged_out(self, *, asked_bytes: int, done_bytes: int) -> None:
        """Count a page-out or reclaim; `asked_bytes` is what the plan wanted, not what the budget left of it."""
        self.page_out_bytes = max(0, self.page_out_bytes - done_bytes)
        self.short_bytes += max(0, int(asked_bytes * ENOUGH_RATIO) - done_bytes)

    def paged_in(self, *, asked_bytes: int, granted_bytes: int, done_bytes: int) -> None:
        """Count a page-in; what was held back because of a shortfall has paid for it."""
        self.page_in_bytes = max(0, self.page_in_bytes - done_bytes)
        self.short_bytes = max(0, self.short_bytes - (asked_bytes - granted_bytes))

    def promoted(self, done_bytes: int) -> None:
        """Count what came back from a slow node: nobody's use rises by it, so it waits for no room."""
        self.page_in_bytes = max(0, self.page_in_bytes - done_bytes)

    def lowered(self, *, asked_bytes: int, done_bytes: int) -> None:
        """Count a limit that came down."""
        self.withheld_bytes += max(0, asked_bytes - done_bytes)

    def raised(self, *, asked_bytes: int, granted_bytes: int) -> None:
        """Count a limit that went up by less than asked."""
        self.withheld_bytes = max(0, self.withheld_bytes - (asked_bytes - granted_bytes))
