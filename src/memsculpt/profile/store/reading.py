# SPDX-License-Identifier: Apache-2.0
"""Reading the store: who is in it, series at any of the resolutions, versions of models, and whether all is whole.

What is not yet an hour old stands in blocks, several workloads together in the two finest resolutions, as the writer
flushed it; the rest in chunks of one workload. A reader sees both as one series. A record whose checksum does not fit
counts as never written; it is told in `problems`, and stays in the file.
"""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsculpt.domain.series import METRICS, RESOLUTIONS_S, SAMPLED, Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptRecord, MemsculptError, UsageError
from memsculpt.profile import codec
from memsculpt.profile.codec import MISSING, Codes
from memsculpt.profile.store import file
from memsculpt.profile.store.file import GROUP, NAME, SPANS_S, parts_of, place_of
from memsculpt.profile.store.records import (
    BLOCK_HEAD,
    HOUR_S,
    decode_block,
    decode_chunk,
    folded,
    identity_checksum,
    merged_coarse,
    overlay,
    version_place,
    whole_number,
)

HOST = WorkloadId("host:")
"""What is kept for the host as a whole, such as a model for all workloads."""

KINDS = ("model", "prior", "heat", "phases")

SAMPLES_MOST = 2_000_000  # some 500 MB while they are read; three weeks of seconds
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the store holds of one workload."""

    id: WorkloadId
    first_s: int  # when it was first and last kept, to the hour or flush; Unix clock
    last_s: int
    stored_bytes: int
    versions: tuple["Version", ...]  # the newest of each kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a model or summary; `number` rises with time."""

    workload: WorkloadId
    kind: str
    number: int
    made_s: int
    stored_bytes: int


class Reader:
    """A store opened for reading. Raises MemsculptError with the file's name where SQLite fails; see `file`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Take a connection; `open` is the way to get one."""
        self.path = path
        self._broken_count = 0
        self.problems: list[str] = []  # records that counted as never written, as they were met
        self._connection = connection

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Reader":
        """Open the store of a state folder; a writer may be at work. Raises Unavailable, Refused, CorruptStore."""
        path = Path(folder) / NAME
        return cls(path, file.open_to_read(path))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def workloads(self) -> list[Kept]:
        """Return who is in the store, by identity."""
        sizes = {
            key: sum(
                whole_number(size or 0)
                for resolution in range(len(RESOLUTIONS_S))
                for (size,) in self._rows(
                    "SELECT sum(length(content)) FROM chunk WHERE place BETWEEN ? AND ?", *_range(resolution, key)
                )
            )
            for key in self._ids()
        }
        times = {
            whole_number(key): (whole_number(first), whole_number(last))
            for key, first, last in self._rows("SELECT key, first_s, last_s FROM workload")
        }
        recent_s = self._recent_ends_s()
        newest: dict[WorkloadId, dict[str, Version]] = {}
        for one in self._versions():
            newest.setdefault(one.workload, {})[one.kind] = one
        return sorted(
            (
                Kept(
                    id=identity,
                    first_s=times[key][0],
                    last_s=max(times[key][1], recent_s.get(key, 0)),
                    stored_bytes=sizes[key],
                    versions=tuple(newest.get(identity, {}).values()),
                )
                for key, identity in self._ids().items()
            ),
            key=lambda kept: kept.id,
        )

    def last(self, workload: WorkloadId, resolution_s: int, count: int = 8064, *, until_s: int | None = None) -> Series:
        """Return the newest samples, `count` at most, of those that begin before `until_s`; none for who is unknown.

        Values have shape (n_samples, n_metrics), a mask says which are known. 8,064 samples of 5 min are four weeks.
        Raises UsageError for a resolution that is not kept.
        """
        end_s = self.newest_s(workload, resolution_s)
        if end_s is None:
            return self.read(workload, resolution_s, 0, 0)
        end_s = end_s if until_s is None else min(end_s, until_s)
        return _from_first_known(self.read(workload, resolution_s, max(end_s - count * resolution_s, 0), end_s))

    def newest_s(self, workload: WorkloadId, resolution_s: int) -> int | None:
        """Return when the newest known sample of a workload ends; None where nothing is known. Raises UsageError."""
        resolution = _place_among(resolution_s)
        key = self._key_of(workload)
        bound_s = None if key is None else self._newest_bound_s(key, resolution)
        if bound_s is None:
            return None
        found = self.read(workload, resolution_s, max(bound_s - SPANS_S[resolution], 0), bound_s)
        known = np.flatnonzero(found.is_valid.any(axis=1))
        return found.start_s + int(known[-1] + 1) * resolution_s if known.size else bound_s

    def read(self, workload: WorkloadId, resolution_s: int, begin_s: int, end_s: int) -> Series:
        """Return the samples of [begin_s, end_s), widened to whole samples; what is not known is masked.

        Raises UsageError for a resolution that is not kept, or more than SAMPLES_MOST.
        """
        resolution = _place_among(resolution_s)
        begin_s = max(begin_s, 0) // resolution_s * resolution_s
        count = max(-(-(end_s - begin_s) // resolution_s), 0)
        if count > SAMPLES_MOST:
            raise UsageError(
                place=f"{count} samples of {workload}",
                problem=f"are more than {SAMPLES_MOST} at once",
                fix="ask for a shorter span or a coarser resolution",
            )
        codes = np.full((count, len(METRICS)), MISSING, np.int32)
        key = self._key_of(workload)
        if key is not None and count:
            for start_s, chunk in self._chunks(resolution, key, begin_s, begin_s + count * resolution_s):
                overlay(codes, begin_s, chunk, start_s, resolution_s)
            recent = self._recent(resolution, key, begin_s, begin_s + count * resolution_s)
            for start_s, piece in recent:
                overlay(codes, begin_s, piece, start_s, resolution_s)
        values, is_valid = codec.restore(codes)
        return Series(workload=workload, resolution_s=resolution_s, start_s=begin_s, values=values, is_valid=is_valid)

    def pieces(self, workload: WorkloadId, resolution_s: int) -> Iterator[Series]:
        """Yield everything there is of a workload at a resolution, a stretch of time after the other."""
        resolution = _place_among(resolution_s)
        key = self._key_of(workload)
        if key is None:
            return
        span_s = SPANS_S[resolution]
        rows = self._rows("SELECT place FROM chunk WHERE place BETWEEN ? AND ?", *_range(resolution, key))
        spans = {parts_of(whole_number(place))[2] for (place,) in rows}
        hours = self._rows("SELECT DISTINCT hour FROM block WHERE team = ?", key // GROUP)
        spans |= {whole_number(hour) * HOUR_S // span_s for (hour,) in hours}
        for span in sorted(spans):
            found = self.read(workload, resolution_s, span * span_s, (span + 1) * span_s)
            if found.is_valid.any():
                yield _from_first_known(found)

    def versions(self, workload: WorkloadId, kind: str) -> list[Version]:
        """Return the versions that are kept, oldest first."""
        return [one for one in self._versions() if one.workload == workload and one.kind == kind]

    def get(self, workload: WorkloadId, kind: str, number: int | None = None) -> bytes | None:
        """Return the newest version of a model or summary, or one by its number; None where there is none.

        A newest version that is broken counts as never written: the one before it is returned, and `problems` tells.
        """
        key = self._key_of(workload)
        rows = self._rows(
            "SELECT number, content FROM version WHERE workload = ? AND kind = ? ORDER BY number DESC",
            -1 if key is None else key,
            kind,
        )
        for found, content in rows:
            if number is not None and found != number:
                continue
            whole = self._unpacked(whole_number(found), kind, workload, content)
            if whole is not None:
                return whole
        return None

    def newest(self, kind: str, most: int) -> list[tuple[WorkloadId, bytes]]:
        """Return the newest readable version of a kind of each workload, of at most `most`: those made last."""
        made: dict[WorkloadId, int] = {one.workload: one.number for one in self._versions() if one.kind == kind}
        last = sorted(made, key=lambda one: made[one], reverse=True)[:most]
        return [(one, content) for one in last if (content := self.get(one, kind)) is not None]

    def check(self) -> list[str]:
        """Return everything that is broken: structure first, then records. Reads the whole file."""
        try:
            problems = file.structure_problems(self._connection)
        except file.BROKEN_ERRORS as error:
            return [str(file.translated(self.path, error).problem)]
        if problems:
            return problems
        before = len(self.problems)
        for place, content in self._rows("SELECT place, content FROM chunk"):
            self._chunk(whole_number(place), content)
        for number, hour, content in self._rows("SELECT number, hour, content FROM block"):
            self._block(whole_number(number), whole_number(hour), content)
        for one in self._versions():
            self.get(one.workload, one.kind, one.number)
        moved = next(self._rows("SELECT count(*) FROM broken"))[0]
        problems = list(dict.fromkeys(self.problems[before:]))
        if moved:
            problems.append(f"{moved} broken records were put aside into the table `broken` while the agent ran")
        return problems

    def _rows(self, statement: str, *values: object) -> Iterator[tuple[object, ...]]:
        try:
            yield from self._connection.execute(statement, values)
        except (*file.BROKEN_ERRORS, OverflowError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> MemsculptError:
        if isinstance(error, file.BROKEN_ERRORS):
            return file.translated(self.path, error)
        return file.unwritable(self.path, str(error))

    def _ids(self) -> dict[int, WorkloadId]:
        """Return every workload by its key. A row whose checksum does not fit is left out and told."""
        found: dict[int, WorkloadId] = {}
        for key, content, checksum in self._rows("SELECT key, id, checksum FROM workload"):
            if not isinstance(content, bytes) or checksum != identity_checksum(whole_number(key), content):
                self._tell(f"workload {key}: the checksum of its name does not fit")
                continue
            found[whole_number(key)] = WorkloadId(os.fsdecode(content))
        return found

    def _key_of(self, workload: WorkloadId) -> int | None:
        content = os.fsencode(workload)
        for key, checksum in self._rows("SELECT key, checksum FROM workload WHERE id = ?", content):
            if checksum == identity_checksum(whole_number(key), content):
                return whole_number(key)
            self._tell(f"workload {key}: the checksum of its name does not fit")
        return None

    def _newest_bound_s(self, key: int, resolution: int) -> int | None:
        """Return a time after the newest sample, at most a chunk or an hour after it."""
        newest = next(
            self._rows("SELECT max(place) FROM chunk WHERE place BETWEEN ? AND ?", *_range(resolution, key)), (None,)
        )[0]
        hour = next(self._rows("SELECT max(hour) FROM block WHERE team = ?", key // GROUP), (None,))[0]
        ends = [
            *([(parts_of(whole_number(newest))[2] + 1) * SPANS_S[resolution]] if newest is not None else []),
            *([(whole_number(hour) + 1) * HOUR_S] if hour is not None else []),
        ]
        return max(ends, default=None)

    def _chunks(self, resolution: int, key: int, begin_s: int, end_s: int) -> Iterator[tuple[int, Codes]]:
        span_s = SPANS_S[resolution]
        first, final = place_of(resolution, key, begin_s // span_s), place_of(resolution, key, (end_s - 1) // span_s)
        for place, content in self._rows("SELECT place, content FROM chunk WHERE place BETWEEN ? AND ?", first, final):
            found = self._chunk(whole_number(place), content)
            if found is not None:
                start, codes = found
                yield parts_of(whole_number(place))[2] * span_s + start * RESOLUTIONS_S[resolution], codes

    def _chunk(self, place: int, content: object) -> tuple[int, Codes] | None:
        """Return the number of the first sample and the codes of a chunk; None, and told, where it is broken."""
        resolution, key, number = parts_of(place)
        name = f"chunk {number} of workload {key} at {RESOLUTIONS_S[resolution] if resolution < 5 else '?'} s"
        try:
            return decode_chunk(content, place, name)
        except CorruptRecord as error:
            self._tell(f"{error.place}: {error.problem}")
            return None

    def _recent(self, resolution: int, key: int, begin_s: int, end_s: int) -> Iterator[tuple[int, Codes]]:
        """Return what stands in blocks yet, at the resolution, piece by piece, coarse before fine."""
        first, final = begin_s // HOUR_S, (end_s - 1) // HOUR_S
        hours = self._rows(
            "SELECT DISTINCT hour FROM block WHERE team = ? AND hour BETWEEN ? AND ? ORDER BY 1",
            key // GROUP,
            first,
            final,
        )
        for (hour,) in list(hours):
            fine, coarse = self._assembled(whole_number(hour), key // GROUP).get(key, (None, None))
            if resolution == 0:
                if fine is not None:
                    yield whole_number(hour) * HOUR_S, fine
                continue
            merged = merged_coarse(fine, coarse)
            if merged is not None:
                yield whole_number(hour) * HOUR_S, folded(merged, RESOLUTIONS_S[resolution] // RESOLUTIONS_S[1])

    def _recent_ends_s(self) -> dict[int, int]:
        """Return by workload's key when its newest block ends; reads the heads only."""
        ends_s: dict[int, int] = {}
        size = BLOCK_HEAD.size + 4 * GROUP
        for (content,) in self._rows("SELECT substr(content, 1, ?) FROM block", size):
            if not isinstance(content, bytes) or len(content) < size:
                continue  # as `_block` will tell when it is read
            head: tuple[int, int, int, int] = BLOCK_HEAD.unpack_from(content)
            resolution, start_s, samples, count = head
            if resolution < len(RESOLUTIONS_S) and count <= GROUP:
                keys: list[int] = np.frombuffer(content, "<u4", count, BLOCK_HEAD.size).tolist()
                end_s = start_s + samples * RESOLUTIONS_S[resolution]
                for key in keys:
                    ends_s[key] = max(ends_s.get(key, 0), end_s)
        return ends_s

    def _assembled(self, hour: int, team: int) -> dict[int, tuple[Codes | None, Codes | None]]:
        """Return by workload's key an hour's samples of the two finest resolutions, from the blocks of a team."""
        found: dict[int, list[Codes | None]] = {}
        rows = self._rows("SELECT number, content FROM block WHERE hour = ? AND team = ? ORDER BY number", hour, team)
        for number, content in rows:
            block = self._block(whole_number(number), hour, content)
            if block is None:
                continue
            resolution, start_s, keys, codes = block
            step_s = RESOLUTIONS_S[resolution]
            width = SAMPLED if resolution == 0 else len(METRICS)
            for row, key in enumerate(keys):
                pair = found.setdefault(key, [None, None])
                whole = pair[resolution]
                if whole is None:
                    whole = pair[resolution] = np.full((HOUR_S // step_s, width), MISSING, np.int32)
                overlay(whole, hour * HOUR_S, codes[row], start_s, step_s)
        return {key: (pair[0], pair[1]) for key, pair in found.items()}

    def _block(self, number: int, hour: int, content: object) -> tuple[int, int, list[int], Codes] | None:
        """Return resolution, start, keys and codes, shape (n_workloads, n_samples, n_metrics), of a block."""
        try:
            return decode_block(content, hour, f"block {number}")
        except CorruptRecord as error:
            self._broken_count += 1
            self._tell(f"{error.place}: {error.problem}")
            return None

    def _versions(self) -> list[Version]:
        ids = self._ids()
        rows = self._rows("SELECT number, workload, kind, made_s, length(content) FROM version ORDER BY number")
        return [
            Version(
                workload=ids[whole_number(key)],
                kind=str(kind),
                number=whole_number(number),
                made_s=whole_number(made_s),
                stored_bytes=whole_number(size),
            )
            for number, key, kind, made_s, size in rows
            if key in ids
        ]

    def _unpacked(self, number: int, kind: str, workload: WorkloadId, content: object) -> bytes | None:
        try:
            return codec.unpack(
                content if isinstance(content, bytes) else b"",
                place=version_place(workload, kind),
                name=f"version {number} of {kind} of {workload}",
            )
        except CorruptRecord as error:
            self._tell(f"{error.place}: {error.problem}")
            return None

    def _tell(self, problem: str) -> None:
        if problem not in self.problems and len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


def _from_first_known(found: Series) -> Series:
    known = np.flatnonzero(found.is_valid.any(axis=1))
    first = int(known[0]) if known.size else len(found.values)
    return Series(
        workload=found.workload,
        resolution_s=found.resolution_s,
        start_s=found.start_s + first * found.resolution_s,
        values=found.values[first:].copy(),
        is_valid=found.is_valid[first:].copy(),
    )


def _place_among(resolution_s: int) -> int:
    if resolution_s not in RESOLUTIONS_S:
        raise UsageError(
            place=f"resolution {resolution_s} s",
            problem="is none that is kept",
            fix=f"name one of {', '.join(map(str, RESOLUTIONS_S))}",
        )
    return RESOLUTIONS_S.index(resolution_s)


def _range(resolution: int, key: int) -> tuple[int, int]:
    return place_of(resolution, key, 0), place_of(resolution, key, 0x7FFFFFF)
