# SPDX-License-Identifier: Apache-2.0
"""Writing the store: blocks as they are flushed, chunks when an hour is over, versions, and thinning by age and size.

Each public call is one transaction: killed at any point, the file holds all of it or nothing.
"""

import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsculpt.domain.series import RESOLUTIONS_S, SAMPLED, Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptStore, UsageError
from memsculpt.profile import codec
from memsculpt.profile.codec import MISSING, Codes
from memsculpt.profile.store import file
from memsculpt.profile.store.file import GROUP, NAME, SPANS_S, Owner, parts_of, place_of
from memsculpt.profile.store.reading import KINDS, Reader
from memsculpt.profile.store.records import (
    HOUR_S,
    encode_block,
    encode_chunk,
    folded,
    identity_checksum,
    merged_coarse,
    overlay,
    version_place,
    whole_number,
)
from memsculpt.profile.store.thinning import versions_to_keep

_FUTURE_S = 86_400  # samples further ahead were stamped by a clock that was wrong
_FREE_PAGES = 2000  # given back to the disk in one go at most


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Samples of several workloads as they were flushed.

    `codes` has shape (n_workloads, n_samples, n_metrics): SAMPLED metrics at the finest resolution, all at the second.
    """

    resolution_s: int  # one of the two finest
    start_s: int
    ids: tuple[WorkloadId, ...]
    codes: Codes


class Store(Reader):
    """The store of a state folder, written by this process alone until `close`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, owner: Owner, notes: Sequence[str]) -> None:
        """Take what `open` found."""
        super().__init__(path, connection)
        self.notes: list[str] = list(notes)  # what people should hear once: a broken store was set aside
        self._owner = owner
        self._keys: dict[WorkloadId, int] = {}

    @classmethod
    def open_to_write(cls, folder: str | os.PathLike[str], *, now_s: float) -> "Store":
        """Own the store of a state folder, which is made where it is absent; a broken one is set aside first.

        `now_s` is the Unix clock. Raises Refused when another process writes it or it is of a newer memsculpt;
        MemsculptError where folder or disk do not let it.
        """
        path = Path(folder) / NAME
        try:
            owner = Owner(path.parent)
        except OSError as error:
            raise file.unwritable(path, error.strerror or repr(error)) from error
        notes: list[str] = []
        try:
            try:
                connection = file.open_to_write(path)
            except CorruptStore as error:
                notes.append(_set_aside(path, error, now_s))
                connection = file.open_to_write(path)
        except BaseException:
            owner.release()
            raise
        return cls(path, connection, owner, notes)

    def set_aside(self, error: CorruptStore, now_s: float) -> None:
        """Rename the store, which broke while it was open, and begin a fresh one; `notes` tells. Raises as `open`."""
        self._connection.close()
        self._keys.clear()
        self.notes.append(_set_aside(self.path, error, now_s))
        self._connection = file.open_to_write(self.path)

    def close(self) -> None:
        """Fold the log into the file, and let others write."""
        try:
            super().close()
        finally:
            self._owner.release()

    def append(self, blocks: Iterable[Block]) -> None:
        """Write flushed samples; they are there for good when this returns."""
        with self._transaction() as run:
            for block in blocks:
                keys = np.array([self._key_for(one, block.start_s) for one in block.ids], dtype=np.int64)
                for hour, piece_s, codes in _by_hour(block):
                    for team in sorted(set((keys // GROUP).tolist())):
                        rows = np.flatnonzero(keys // GROUP == team)
                        rows = rows[(codes[rows] != MISSING).any(axis=(1, 2))]
                        if not rows.size:
                            continue
                        members: list[int] = keys[rows].tolist()
                        content = encode_block(
                            RESOLUTIONS_S.index(block.resolution_s), piece_s, members, codes[rows], hour
                        )
                        run("INSERT INTO block (hour, team, content) VALUES (?, ?, ?)", hour, team, content)

    def unsealed(self, now_s: int) -> list[tuple[int, int]]:
        """Return (hour, team) of the blocks whose hour is not the present one: what `seal` is to be called with."""
        rows = self._rows("SELECT DISTINCT hour, team FROM block WHERE hour <> ? ORDER BY hour, team", now_s // HOUR_S)
        return [(whole_number(hour), whole_number(team)) for hour, team in rows]

    def seal(self, hour: int, team: int) -> None:
        """Turn an hour's blocks of a team into chunks of each workload at all resolutions."""
        with self._transaction() as run:
            broken_before = self._broken_count
            assembled = self._assembled(hour, team)
            if self._broken_count > broken_before:
                rows = self._rows("SELECT number, content FROM block WHERE hour = ? AND team = ?", hour, team)
                for number, content in list(rows):
                    if self._block(whole_number(number), hour, content) is None:
                        self._move_broken("block", whole_number(number), content, hour * HOUR_S)
            for key, (fine, coarse) in assembled.items():
                if fine is not None:
                    self._overlay_chunks(0, key, hour * HOUR_S, fine)
                merged = merged_coarse(fine, coarse)
                if merged is not None:
                    for resolution in range(1, len(RESOLUTIONS_S)):
                        factor = RESOLUTIONS_S[resolution] // RESOLUTIONS_S[1]
                        self._overlay_chunks(resolution, key, hour * HOUR_S, folded(merged, factor))
                run("UPDATE workload SET last_s = max(last_s, ?) WHERE key = ?", (hour + 1) * HOUR_S, key)
            run("DELETE FROM block WHERE hour = ? AND team = ?", hour, team)

    def insert(self, series: Iterable[Series]) -> None:
        """Write whole series, as an import does; what was there for the same time is overwritten where it is known."""
        with self._transaction():
            for one in series:
                resolution = RESOLUTIONS_S.index(one.resolution_s)
                codes = codec.quantise(np.where(one.is_valid, one.values, np.nan))
                codes = codes[:, :SAMPLED] if resolution == 0 else codes
                key = self._key_for(one.workload, one.start_s)
                self._touch(key, one.start_s, one.start_s + len(codes) * one.resolution_s)
                self._overlay_chunks(resolution, key, one.start_s, codes)

    def put(self, workload: WorkloadId, kind: str, content: bytes, *, made_s: int) -> int:
        """Keep a new version of a model or summary, of one of KINDS; return its number."""
        if kind not in KINDS:
            raise UsageError(place=f"kind {kind}", problem="is none that is kept", fix=f"one of {', '.join(KINDS)}")
        packed = codec.pack(content, place=version_place(workload, kind))
        with self._transaction() as run:
            key = self._key_for(workload, made_s)
            self._touch(key, made_s, made_s)
            done = run(
                "INSERT INTO version (workload, kind, made_s, content) VALUES (?, ?, ?, ?)", key, kind, made_s, packed
            )
            return int(done.lastrowid or 0)

    def thin(
        self,
        now_s: int,
        keep_s: Mapping[int, float],
        size_max_bytes: int,
        *,
        resolutions_s: Sequence[int] = RESOLUTIONS_S,
    ) -> None:
        """Let go of what is too old, by resolution in `keep_s`; then of what does not fit, the finest and oldest first.

        `now_s` has to be trusted: the caller does not thin while its clock has just jumped. `resolutions_s` are those
        whose series are thinned; the others were already, by `thin_series`.
        """
        for each in resolutions_s:
            self.thin_series(now_s, each, keep_s[each])
        longest_s = int(max(keep_s.values()))
        with self._transaction() as run:
            self._thin_versions(run, now_s)
            self._thin_workloads(run, now_s - longest_s)
            run("DELETE FROM broken WHERE found_s < ?", now_s - longest_s)
        self._shrink(size_max_bytes)

    def thin_series(self, now_s: int, resolution_s: int, keep_s: float) -> None:
        """Let go of the series of one resolution that are older than `keep_s`, or far ahead of the clock."""
        resolution = RESOLUTIONS_S.index(resolution_s)
        span_s = SPANS_S[resolution]
        oldest, newest = max(int(now_s - keep_s) // span_s, 0), (now_s + _FUTURE_S) // span_s
        with self._transaction() as run:
            for key in self._all_keys():
                first, final = place_of(resolution, key, 0), place_of(resolution, key, 0x7FFFFFF)
                run("DELETE FROM chunk WHERE place BETWEEN ? AND ?", first, place_of(resolution, key, oldest) - 1)
                run("DELETE FROM chunk WHERE place BETWEEN ? AND ?", place_of(resolution, key, newest) + 1, final)

    def size_bytes(self) -> int:
        """Return what the file holds, without pages that are free in it."""
        (pages,), (free,), (page_bytes,) = (
            next(self._rows(f"PRAGMA {name}")) for name in ("page_count", "freelist_count", "page_size")
        )
        return (whole_number(pages) - whole_number(free)) * whole_number(page_bytes)

    @contextmanager
    def _transaction(self) -> "Generator[Callable[..., sqlite3.Cursor]]":
        def run(statement: str, *values: object) -> sqlite3.Cursor:
            return self._connection.execute(statement, values)

        try:
            run("BEGIN IMMEDIATE")
            try:
                yield run
                run("COMMIT")
            except BaseException:
                self._keys.clear()  # those that were given out in this transaction are not there
                with suppress(sqlite3.Error):  # the error that is on its way says more
                    run("ROLLBACK")
                raise
        except file.BROKEN_ERRORS as error:
            raise file.translated(self.path, error) from error

    def _key_for(self, workload: WorkloadId, at_s: int) -> int:
        known = self._keys.get(workload)
        if known is not None:
            return known
        if not self._keys:
            self._keys = {identity: key for key, identity in self._ids().items()}
            if workload in self._keys:
                return self._keys[workload]
        content = os.fsencode(workload)
        # A row of this name whose checksum does not fit has a key that nothing can be trusted to belong to.
        self._connection.execute("DELETE FROM workload WHERE id = ?", (content,))
        (highest,) = next(self._rows("SELECT coalesce(max(key), 0) FROM workload"))
        key = whole_number(highest) + 1
        self._connection.execute(
            "INSERT INTO workload (key, id, first_s, last_s, checksum) VALUES (?, ?, ?, ?, ?)",
            (key, content, at_s, at_s, identity_checksum(key, content)),
        )
        self._keys[workload] = key
        return key

    def _all_keys(self) -> list[int]:
        return [whole_number(key) for (key,) in self._rows("SELECT key FROM workload")]

    def _touch(self, key: int, first_s: int, last_s: int) -> None:
        self._connection.execute(
            "UPDATE workload SET first_s = min(first_s, ?), last_s = max(last_s, ?) WHERE key = ?",
            (first_s, last_s, key),
        )

    def _overlay_chunks(self, resolution: int, key: int, start_s: int, codes: Codes) -> None:
        step_s, span_s = RESOLUTIONS_S[resolution], SPANS_S[resolution]
        size = span_s // step_s
        known = np.flatnonzero((codes != MISSING).any(axis=1))
        if not known.size:
            return
        chunks = range((start_s + int(known[0]) * step_s) // span_s, (start_s + int(known[-1]) * step_s) // span_s + 1)
        for chunk in chunks:
            place = place_of(resolution, key, chunk)
            whole = np.full((size, codes.shape[1]), MISSING, np.int32)
            for (content,) in self._rows("SELECT content FROM chunk WHERE place = ?", place):
                before = self._chunk(place, content)
                if before is None:
                    self._move_broken("chunk", place, content, start_s)
                else:
                    overlay(whole, 0, before[1], before[0], 1)
            overlay(whole, chunk * span_s, codes, start_s, step_s)
            inside = np.flatnonzero((whole != MISSING).any(axis=1))
            if inside.size:
                first = int(inside[0])
                content = encode_chunk(first, np.ascontiguousarray(whole[first : int(inside[-1]) + 1]), place)
                self._connection.execute(
                    "INSERT INTO chunk (place, content) VALUES (?, ?) "
                    "ON CONFLICT (place) DO UPDATE SET content = excluded.content",
                    (place, content),
                )

    def _move_broken(self, origin: str, place: int, content: object, found_s: int) -> None:
        """Put a broken record aside within the file, so that what takes its place does not destroy it."""
        self._connection.execute(
            "INSERT INTO broken (origin, place, content, found_s) VALUES (?, ?, ?, ?)",
            (origin, place, content if isinstance(content, bytes) else b"", found_s),
        )

    def _thin_versions(self, run: Callable[..., sqlite3.Cursor], now_s: int) -> None:
        by_kind: dict[tuple[int, str], list[tuple[int, int]]] = {}
        for number, key, kind, made_s in self._rows(
            "SELECT number, workload, kind, made_s FROM version ORDER BY number"
        ):
            by_kind.setdefault((whole_number(key), str(kind)), []).append((whole_number(number), whole_number(made_s)))
        for rows in by_kind.values():
            stays = versions_to_keep([made_s for _, made_s in rows], now_s)
            for (number, _), keep in zip(rows, stays, strict=True):
                if not keep:
                    run("DELETE FROM version WHERE number = ?", number)

    def _thin_workloads(self, run: Callable[..., sqlite3.Cursor], oldest_s: int) -> None:
        """Forget workloads of which nothing has been kept for as long as anything is."""
        gone = "SELECT key FROM workload WHERE last_s < ?"
        run(f"DELETE FROM version WHERE workload IN ({gone})", oldest_s)  # noqa: S608  a constant
        run("DELETE FROM workload WHERE last_s < ?", oldest_s)
        self._keys.clear()

    def _shrink(self, size_max_bytes: int) -> None:
        """Delete chunks, the finest and oldest first, until the file is within its bound; give free pages back."""
        excess_bytes = self.size_bytes() - size_max_bytes
        for resolution in range(len(RESOLUTIONS_S)):
            if excess_bytes <= 0:
                break
            first, final = place_of(resolution, 0, 0), place_of(resolution + 1, 0, 0) - 1
            rows = self._rows("SELECT place, length(content) FROM chunk WHERE place BETWEEN ? AND ?", first, final)
            sized = [
                (parts_of(whole_number(place))[2], whole_number(place), whole_number(size)) for place, size in rows
            ]
            sized.sort()
            with self._transaction() as run:
                for _, place, size in sized:
                    if excess_bytes <= 0:
                        break
                    run("DELETE FROM chunk WHERE place = ?", place)
                    excess_bytes -= size + 16
        try:  # `execute` would go one step, which is one page
            self._connection.executescript(f"PRAGMA incremental_vacuum({_FREE_PAGES})")
        except file.BROKEN_ERRORS as error:
            raise file.translated(self.path, error) from error


def _by_hour(block: Block) -> Iterable[tuple[int, int, Codes]]:
    """Part a block where an hour ends: (hour, start, codes)."""
    samples = block.codes.shape[1]
    at = 0
    while at < samples:
        start_s = block.start_s + at * block.resolution_s
        hour = start_s // HOUR_S
        until = min(samples, at + -(-((hour + 1) * HOUR_S - start_s) // block.resolution_s))
        yield hour, start_s, block.codes[:, at:until]
        at = until


def _set_aside(path: Path, error: CorruptStore, now_s: float) -> str:
    try:
        return file.set_aside(path, error.problem, now_s)
    except OSError as problem:
        raise file.unwritable(path, problem.strerror or repr(problem)) from problem
