# SPDX-License-Identifier: Apache-2.0
"""From ticks to the store: samples gather in memory, are flushed once an interval, and become chunks hour by hour.

Bounded on purpose. Second by second are kept the workloads that partitions name and, up to `fine_count`, the largest
others; everybody else in means and peaks of ten seconds. What is flushed is one transaction for all; turning an hour
into chunks is spread over the ticks that follow it, a few workloads each. Samples are placed by the Unix clock, which
is handed in; between two of its jumps they follow the host's monotonic one, so that an uneven tick makes neither gap
nor double.
"""

import json
import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.profile import Profiles
from memsculpt.domain.series import METRICS, RESOLUTIONS_S, SAMPLED, Series
from memsculpt.domain.settings import ProfileSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptStore, MemsculptError
from memsculpt.profile import codec
from memsculpt.profile.codec import MISSING
from memsculpt.profile.series import sample
from memsculpt.profile.store import Block, Store

log = logging.getLogger(__name__)

JUMP_S = 1.0  # as far as the Unix clock may leave the monotonic one before samples are placed anew
THIN_EVERY_S = 3600.0
TRUST_AFTER_S = 3600.0  # a clock that jumped by more than a minute is not believed to be right before
BIG_JUMP_S = 60.0
SUMMARISE_EVERY_S = 3600.0
MANY_TO_SEAL = 256  # one step a tick, and one more for each so many that wait
AT_ONCE = 16  # workloads that are quantised together: what it takes meanwhile is several times their samples
COARSE_S = RESOLUTIONS_S[1]
FINE_INTERVAL_MAX_S = 5.0  # at longer intervals most seconds would hold no sample


class Recorder:
    """Gathers samples and writes them; used by one thread. A store that cannot be written is told of, never raised."""

    def __init__(
        self,
        folder: str,
        settings: ProfileSettings,
        *,
        clock_s: Callable[[], float],
        interval_s: float = 1.0,
    ) -> None:
        """Make a recorder; `clock_s` is the Unix clock. The store is opened here, or later when it can be."""
        self._folder = folder
        self._settings = settings
        self._clock_s = clock_s
        self._fine_count = settings.fine_count if interval_s <= FINE_INTERVAL_MAX_S else 0
        self._fine = _Grid(RESOLUTIONS_S[0], SAMPLED)
        self._coarse = _Grid(COARSE_S, len(METRICS))
        self._chosen: frozenset[WorkloadId] = frozenset()
        self._begin_s = -(1 << 40)  # of the interval that is gathered now
        self._anchor: tuple[float, float] | None = None  # Unix and monotonic time that belong together
        self._untrusted_until_s = 0.0
        self._thinned_at_s: float | None = None
        self._to_seal: list[tuple[int, int]] = []
        self._to_thin: list[int] = []
        self._sealing_hour = -1
        self._summarised_at_s = -SUMMARISE_EVERY_S
        self._store: Store | None = None
        self.problem = ""
        self._open()

    @property
    def store(self) -> Store | None:
        """The store, while it can be written: models and summaries are kept there."""
        return self._store

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should hear: why nothing is kept, what was set aside, which records were broken."""
        store = self._store
        return (
            *([f"profiles are not kept: {self.problem}"] if self.problem else []),
            *(store.notes if store is not None else []),
            *(f"profile store: {one}; it counts as never written" for one in (store.problems if store else [])[:3]),
        )

    def observe(
        self,
        observation: Observation,
        profiles: Profiles,
        heat: WorkloadHeat | None,
        forecasts: Forecasts,
        *,
        horizon_s: float,
    ) -> None:
        """Take a tick's results: samples of all workloads, and once an hour a summary of each one's heat."""
        seen = observation.workloads
        rows = sample(observation, profiles, heat, forecasts, horizon_s=horizon_s)
        is_named = np.fromiter((one is not None for one in seen.partitions), np.bool_, len(seen.ids))
        self.record(seen.ids, rows, is_named=is_named, now_s=observation.time_s)
        if heat is not None and heat.ids and observation.time_s - self._summarised_at_s >= SUMMARISE_EVERY_S:
            self._summarised_at_s = observation.time_s
            made_s = self._place(observation.time_s)
            for identity, content in summaries(heat):
                self._attempt(lambda store, one=identity, what=content: _put(store, one, "heat", what, made_s))

    def history(self, workload: WorkloadId, resolution_s: int) -> Series | None:
        """Return the last four weeks of a workload; None where nothing is kept, or can be read."""
        found: list[Series] = []
        self._attempt(lambda store: found.append(store.last(workload, resolution_s)))
        return found[0] if found and len(found[0].values) else None

    def kept(self, workload: WorkloadId, kind: str) -> bytes | None:
        """Return the newest version of what is kept of a workload; None where there is none, or it cannot be read."""
        found: list[bytes | None] = []
        self._attempt(lambda store: found.append(store.get(workload, kind)))
        return found[0] if found else None

    def newest(self, kind: str, most: int) -> list[tuple[WorkloadId, bytes]]:
        """Return the newest record of a kind of each workload, of those seen last; none where nothing can be read."""
        found: list[tuple[WorkloadId, bytes]] = []
        self._attempt(lambda store: found.extend(store.newest(kind, most)))
        return found

    def keep(self, workload: WorkloadId, kind: str, content: bytes, *, now_s: float) -> None:
        """Keep a new version of a record of a workload, made at `now_s` of the host's monotonic clock."""
        made_s = self._place(now_s)
        self._attempt(lambda store: _put(store, workload, kind, content, made_s))

    def record(self, ids: tuple[WorkloadId, ...], rows: Float64, *, is_named: Bool, now_s: float) -> None:
        """Take a tick's samples, shape (n_workloads, SAMPLED), NaN where not known; flush when the interval is over.

        `is_named` tells which workloads belong to partitions; `now_s` is the host's monotonic clock.
        """
        slot_s = self._place(now_s)
        length_s = max(int(self._settings.flush_s), COARSE_S) // COARSE_S * COARSE_S
        if not self._begin_s <= slot_s < self._begin_s + length_s:
            self.flush()
            self._begin_s = slot_s // length_s * length_s
            self._chosen = self._choose(ids, rows, is_named)
            self._fine.begin(self._begin_s, length_s)
            self._coarse.begin(self._begin_s, length_s)
        else:
            self._work(slot_s, now_s)
        is_fine = np.fromiter((one in self._chosen for one in ids), np.bool_, len(ids))
        self._fine.add(slot_s, ids, rows, is_fine)
        self._coarse.add(slot_s, ids, rows, ~is_fine)

    def flush(self) -> None:
        """Write what was gathered. Where that fails it is given up, so that memory stays bounded."""
        blocks = [block for grid in (self._fine, self._coarse) if (block := grid.take()) is not None]
        if self._store is None:
            self._open()
        if self._store is not None and blocks:
            self._attempt(lambda store: store.append(blocks))

    def close(self) -> None:
        """Write what was gathered, and let go of the store."""
        self.flush()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _place(self, now_s: float) -> int:
        """Return the second of the Unix clock that a tick at `now_s` belongs to."""
        clock_s = max(self._clock_s(), 0.0)
        if self._anchor is not None:
            placed_s = self._anchor[0] + (now_s - self._anchor[1])
            if abs(clock_s - placed_s) <= JUMP_S:
                return int(self._anchor[0]) + round(now_s - self._anchor[1])
            if abs(clock_s - placed_s) > BIG_JUMP_S:
                self._untrusted_until_s = now_s + TRUST_AFTER_S
        self._anchor = (clock_s, now_s)
        return int(clock_s)

    def _choose(self, ids: tuple[WorkloadId, ...], rows: Float64, is_named: Bool) -> frozenset[WorkloadId]:
        """Return who is kept second by second in the interval that begins."""
        if self._fine_count == 0:
            return frozenset()
        size = np.nan_to_num(rows[:, :SAMPLED][:, _SIZES], nan=0.0, posinf=0.0, neginf=0.0).sum(axis=1)
        order: list[int] = np.lexsort((-size, ~is_named))[: self._fine_count].tolist()
        return frozenset(ids[row] for row in order)

    def _work(self, slot_s: int, now_s: float) -> None:
        """Do a little of what is due: chunks of the hours that are over, then thinning."""
        store = self._store
        if store is None:
            return
        if slot_s // 3600 != self._sealing_hour and slot_s % 3600 >= self._settings.flush_s:
            self._sealing_hour = slot_s // 3600
            self._attempt(lambda store: self._to_seal.extend(store.unsealed(slot_s)))
        if self._to_seal:
            for hour, team in [self._to_seal.pop(0) for _ in range(1 + len(self._to_seal) // MANY_TO_SEAL)]:
                self._attempt(lambda store, hour=hour, team=team: store.seal(hour, team))
            return
        if self._thinned_at_s is None:
            self._thinned_at_s = now_s
        is_due = now_s - self._thinned_at_s >= THIN_EVERY_S
        if is_due and now_s >= self._untrusted_until_s:
            self._thinned_at_s = now_s
            self._to_thin = list(RESOLUTIONS_S)
        keep_s = self._settings.keep_by_resolution()
        if len(self._to_thin) > 1:
            resolution_s = self._to_thin.pop()
            self._attempt(lambda store: store.thin_series(slot_s, resolution_s, keep_s[resolution_s]))
        elif self._to_thin:
            self._to_thin.clear()
            self._attempt(lambda store: store.thin(slot_s, keep_s, self._settings.size_max_bytes, resolutions_s=(1,)))

    def _open(self) -> None:
        try:
            self._store = Store.open_to_write(self._folder, now_s=self._clock_s())
        except MemsculptError as error:
            self._tell(error)
        else:
            self._tell(None)
            self._sealing_hour = -1
            self._to_seal.clear()

    def _attempt(self, work: Callable[[Store], None]) -> None:
        store = self._store
        if store is None:
            return
        try:
            work(store)
        except CorruptStore as error:
            try:
                store.set_aside(error, self._clock_s())
            except MemsculptError as worse:
                store.close()
                self._store = None
                self._tell(worse)
            else:
                log.warning("%s", store.notes[-1])
                self._to_seal.clear()
        except MemsculptError as error:
            self._tell(error)
        else:
            self._tell(None)

    def _tell(self, error: MemsculptError | None) -> None:
        """Log once when the store cannot be written, and once when it can be again."""
        problem = "" if error is None else f"{error.place}: {error.problem}"
        if problem and not self.problem:
            log.warning("profiles are not kept: %s", problem)
        if self.problem and not problem:
            log.warning("profiles are kept again")
        self.problem = problem


def summaries(heat: WorkloadHeat) -> list[tuple[WorkloadId, bytes]]:
    """Return what is kept of each sensed workload's heat, as JSON."""
    return [
        (
            identity,
            json.dumps(
                {
                    "source": heat.source,
                    "resident_bytes": int(heat.resident_bytes[row]),
                    "hot_bytes": int(heat.hot_bytes[row]),
                    "idle_bytes": int(heat.idle_bytes[row]),
                    "windows_s": list(heat.windows_s),
                    "working_set_bytes": [None if np.isnan(one) else int(one) for one in heat.working_set_bytes[row]],
                }
            ).encode(),
        )
        for row, identity in enumerate(heat.ids)
    ]


def _put(store: Store, workload: WorkloadId, kind: str, content: bytes, made_s: int) -> None:
    store.put(workload, kind, content, made_s=made_s)


_SIZES = [
    number
    for number, one in enumerate(METRICS[:SAMPLED])
    if one.name in {"anon_bytes", "file_bytes", "shmem_bytes", "swapped_bytes"}
]


class _Grid:
    """Sums and counts by workload and slot of one interval."""

    def __init__(self, step_s: int, width: int) -> None:
        self._step_s = step_s
        self._width = width
        self._begin_s = 0
        self._slots = 0
        self._row_of: dict[WorkloadId, int] = {}
        self._last: tuple[tuple[WorkloadId, ...], bytes, Int64, Int64] | None = None
        self._clear()

    def begin(self, begin_s: int, length_s: int) -> None:
        """Start an interval."""
        self._begin_s = begin_s
        self._slots = length_s // self._step_s
        self._clear()

    def add(self, slot_s: int, ids: tuple[WorkloadId, ...], rows: Float64, is_ours: Bool) -> None:
        """Add the rows that are ours to their slot."""
        if not is_ours.any():
            return
        sources, targets = self._rows_for(ids, is_ours)
        new = rows[sources]
        is_known = np.isfinite(new)
        filled = np.where(is_known, new, 0.0)
        slot = (slot_s - self._begin_s) // self._step_s
        self._sums[targets, slot] += filled
        self._counts[targets, slot] += is_known
        if self._width > SAMPLED:
            peaks = np.where(is_known[:, 0], filled[:, 0], -np.inf)
            self._peaks[targets, slot] = np.maximum(self._peaks[targets, slot], peaks)

    def take(self) -> Block | None:
        """Return what was gathered, and be empty; None for nothing."""
        if not self._row_of or not self._counts.any():
            self._clear()
            return None
        codes = np.empty((len(self._row_of), self._slots, self._width), np.int32)
        for first in range(0, len(codes), AT_ONCE):
            codes[first : first + AT_ONCE] = self._codes(slice(first, min(first + AT_ONCE, len(codes))))
        block = Block(resolution_s=self._step_s, start_s=self._begin_s, ids=tuple(self._row_of), codes=codes)
        self._clear()
        return block if (block.codes != MISSING).any() else None

    def _codes(self, rows: slice) -> codec.Codes:
        counts = self._counts[rows]
        values = np.full((*counts.shape[:2], self._width), np.nan)
        values[:, :, :SAMPLED] = np.where(counts > 0, self._sums[rows] / np.maximum(counts, 1), np.nan)
        if self._width > SAMPLED:
            values[:, :, SAMPLED] = np.where(counts[:, :, 0] > 0, self._peaks[rows], np.nan)
        return codec.quantise(values)

    def _rows_for(self, ids: Sequence[WorkloadId], is_ours: Bool) -> tuple[Int64, Int64]:
        """Return the rows of `ids` that are ours, and where they stand here; new ones get a place."""
        key = is_ours.tobytes()
        if self._last is not None and self._last[0] == ids and self._last[1] == key:
            return self._last[2], self._last[3]
        sources = np.flatnonzero(is_ours)
        for row in sources.tolist():
            self._row_of.setdefault(ids[row], len(self._row_of))
        targets = np.array([self._row_of[ids[row]] for row in sources.tolist()], dtype=np.int64)
        missing = len(self._row_of) - len(self._sums)
        if missing > 0:
            missing += len(self._row_of) // 8  # so that one more each tick does not copy everything each tick
            shape = (missing, self._slots, SAMPLED)
            self._sums = np.concatenate([self._sums, np.zeros(shape, np.float32)])
            self._counts = np.concatenate([self._counts, np.zeros(shape, np.uint16)])
            self._peaks = np.concatenate([self._peaks, np.full(shape[:2], -np.inf, np.float32)])
        self._last = (tuple(ids), key, sources, targets)
        return sources, targets

    def _clear(self) -> None:
        self._row_of = {}
        self._last = None
        self._sums: npt.NDArray[np.float32] = np.zeros((0, self._slots, SAMPLED), np.float32)
        self._counts: npt.NDArray[np.uint16] = np.zeros((0, self._slots, SAMPLED), np.uint16)
        self._peaks: npt.NDArray[np.float32] = np.full((0, self._slots), -np.inf, np.float32)
