# SPDX-License-Identifier: Apache-2.0
"""Looks through the memory of a trust group's VMs, a little in every tick, to tell what merging would save.

Twice over each page, with a rest between: what changes meanwhile is not merged by the kernel. Contents are hashed with
a secret of this process and dropped (profile/duplicates.py).
"""

import os
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from memsculpt import profile
from memsculpt.domain.arrays import Int64
from memsculpt.domain.sharing import GroupGain, Merging
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import Instance
from memsculpt.host.protocol import Host

PAGE_BYTES = 4096
CALL_PAGES = 512  # 2 MiB: read and hashed while it is in a processor's cache
REST_S = 20.0  # between the two looks: about what KSM takes between two scans


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A VM's memory."""

    vm: VmId
    process: Instance
    ranges: Int64  # [start, end) in its process, shape (n, 2)


class Sweeping:
    """One group's memory on its way through. Not for two threads at once."""

    def __init__(self, host: Host, places: tuple[Place, ...], *, rest_s: float = REST_S) -> None:
        """Begin; nothing is read before `go_on`."""
        self.places = places
        self._host, self._rest_s = host, rest_s
        salt = profile.salt_from(os.urandom(2 * PAGE_BYTES))
        self._sweep = profile.begin_sweep(tuple(one.vm for one in places), salt)
        self._to_list = deque(places)
        self._parts: deque[tuple[Place, Int64]] = deque()
        self._listed_pages = self._done_pages = 0
        self._rests_until_s: float | None = None
        self._again = False
        self.mergeable_pages: dict[VmId, int] = {}

    @property
    def looked_ratio(self) -> float:
        """Return how far it is; both looks count as a half, though the second reads less."""
        if self._to_list or not self._listed_pages:
            return 0.0
        part = self._done_pages / self._listed_pages
        return min(0.5 + part / 2 if self._again else part / 2, 1.0)

    def go_on(self, now_s: float, budget_s: float, merging: Merging) -> GroupGain | None:
        """Go on for so much processor time; return the gain when all was looked at twice.

        Raises Vanished when a VM has ended: then it has to be begun anew.
        """
        end_s = time.thread_time() + budget_s
        while time.thread_time() < end_s:
            if self._to_list:
                self._list(self._to_list.popleft())
            elif self._parts:
                place, wanted = self._parts.popleft()
                pages = self._host.page_contents(place.process, wanted)
                self._done_pages += int((wanted[:, 1] - wanted[:, 0]).sum()) // PAGE_BYTES
                take = profile.see_again if self._again else profile.take_in
                self._sweep = take(self._sweep, place.vm, pages)
            elif self._again:
                return profile.estimate_gain(
                    self._sweep,
                    most_sharing=merging.most_sharing,
                    uses_zero_pages=merging.uses_zero_pages,
                    at_s=now_s,
                )
            elif self._rests_until_s is None:
                self._rests_until_s = now_s + self._rest_s
            elif now_s < self._rests_until_s:
                return None
            else:
                self._begin_again()
        return None

    def _list(self, place: Place) -> None:
        runs = self._host.mergeable_runs(place.process, place.ranges)
        self.mergeable_pages[place.vm] = int((runs[:, 1] - runs[:, 0]).sum()) // PAGE_BYTES
        self._add(place, runs)

    def _begin_again(self) -> None:
        self._again, self._listed_pages, self._done_pages = True, 0, 0
        for place in self.places:
            addresses = profile.to_see_again(self._sweep, place.vm)
            edges = np.flatnonzero(np.diff(addresses, prepend=-PAGE_BYTES) != PAGE_BYTES)
            counts = np.diff(np.append(edges, len(addresses)))
            starts = addresses[edges]
            self._add(place, np.stack((starts, starts + counts * PAGE_BYTES), axis=1))

    def _add(self, place: Place, runs: Int64) -> None:
        """Cut runs into parts of at most CALL_PAGES, of many short runs or a piece of a long one."""
        size = CALL_PAGES * PAGE_BYTES
        part: list[tuple[int, int]] = []
        room = size
        for start, end in runs.tolist():
            at = start
            while at < end:
                stop = min(end, at + room)
                part.append((at, stop))
                room -= stop - at
                at = stop
                if room == 0:
                    self._parts.append((place, np.array(part, np.int64)))
                    part, room = [], size
        if part:
            self._parts.append((place, np.array(part, np.int64)))
        self._listed_pages += int((runs[:, 1] - runs[:, 0]).sum()) // PAGE_BYTES
