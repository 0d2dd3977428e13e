# SPDX-License-Identifier: Apache-2.0
"""The store as one Parquet file, and back: a row for each sample, and for each version of a model or summary.

Written so that other tools read it at once: workload, resolution, time, a column for each metric in its own unit, null
where nothing is known. A row of a version has `kind`, `made`, `content` and no metric. A file is checked as a whole
before the store is touched.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt.domain.series import METRICS, NAMES, RESOLUTIONS_S, Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.errors import MemsculptError, Refused, Unavailable
from memsculpt.profile.store import KINDS, Reader, Store

FORMAT = "1"
FORMAT_KEY = b"memsculpt.profile"
LATEST_S = 1 << 36  # the year 4147: places in the store have room for no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file holds, checked."""

    path: Path
    series: tuple[Series, ...]
    versions: tuple[tuple[WorkloadId, str, int, bytes], ...]  # workload, kind, made at, content


def need_pyarrow() -> None:
    """Raise Unavailable where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise Unavailable(
            place="Parquet", problem="needs pyarrow, which is not installed", fix="pip install 'memsculpt[parquet]'"
        )


def export(reader: Reader, path: Path, *, only: WorkloadId | None = None) -> dict[str, Any]:
    """Write the store, or one workload of it; return what was written. The file appears whole or not at all."""
    pyarrow, parquet = _pyarrow()
    schema = _schema(pyarrow)
    new = path.with_name(path.name + ".new")
    counts = {"sample_count": 0, "version_count": 0}
    try:
        with parquet.ParquetWriter(new, schema, compression="zstd") as writer:
            for table in _tables(pyarrow, schema, reader, only):
                counts["sample_count"] += table.num_rows - _versions_in(table)
                counts["version_count"] += _versions_in(table)
                writer.write_table(table)
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Refused(
            place=str(path),
            problem=f"cannot be written: {error.strerror or error}",
            fix="name a file that can be written",
        ) from error
    return {"file": str(path), **counts, "problems": reader.problems}


def read(path: Path) -> Content:
    """Read and check a file.

    Raises Refused where it cannot be read, is cut short or no Parquet, has other columns than ours (named), or holds
    what no store can.
    """
    pyarrow, parquet = _pyarrow()
    try:
        with path.open("rb"):  # pyarrow says of a file that is not there what it says of a broken one
            pass
    except OSError as error:
        fix = "name a file that can be read"
        raise Refused(place=str(path), problem=f"cannot be read: {error.strerror}", fix=fix) from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise Refused(place=str(path), problem=_broken(error), fix="export it anew") from error
    _check_columns(path, table.schema, _schema(pyarrow))
    return _content(path, table)


def put(content: Content, store: Store) -> dict[str, Any]:
    """Write a checked file's content into the store; return what was written."""
    store.insert(content.series)
    for workload, kind, made_s, what in content.versions:
        store.put(workload, kind, what, made_s=made_s)
    return {
        "file": str(content.path),
        "sample_count": sum(int(one.is_valid.any(axis=1).sum()) for one in content.series),
        "version_count": len(content.versions),
    }


def _pyarrow() -> tuple[Any, Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

    return pa, pq


def _schema(pyarrow: Any) -> Any:
    fields = [
        ("workload", pyarrow.binary()),  # as the kernel spells it: not always UTF-8
        ("resolution_s", pyarrow.int32()),
        ("time", pyarrow.timestamp("ms", tz="UTC")),  # Parquet has no coarser one
        *((name, pyarrow.float64()) for name in NAMES),
        ("kind", pyarrow.string()),
        ("content", pyarrow.binary()),
    ]
    return pyarrow.schema(fields, metadata={FORMAT_KEY: FORMAT.encode()})


def _tables(pyarrow: Any, schema: Any, reader: Reader, only: WorkloadId | None) -> Iterator[Any]:
    """Yield a table for each workload and resolution, then one for its versions."""
    for kept in reader.workloads():
        if only is not None and kept.id != only:
            continue
        for resolution_s in RESOLUTIONS_S:
            for series in reader.pieces(kept.id, resolution_s):
                rows = np.flatnonzero(series.is_valid.any(axis=1))
                yield _series_table(pyarrow, schema, series, rows)
        found = [
            (version, content)
            for newest in kept.versions
            for version in reader.versions(kept.id, newest.kind)
            if (content := reader.get(kept.id, version.kind, version.number)) is not None
        ]
        if found:
            yield _table(
                pyarrow,
                schema,
                kept.id,
                len(found),
                {
                    "time": pyarrow.array([one.made_s * 1000 for one, _ in found], pyarrow.timestamp("ms", tz="UTC")),
                    "kind": pyarrow.array([one.kind for one, _ in found], pyarrow.string()),
                    "content": pyarrow.array([content for _, content in found], pyarrow.binary()),
                },
            )


def _series_table(pyarrow: Any, schema: Any, series: Series, rows: Any) -> Any:
    columns: dict[str, Any] = {
        "resolution_s": pyarrow.array(np.full(len(rows), series.resolution_s, np.int32)),
        "time": pyarrow.array(series.times_s[rows] * 1000).cast(pyarrow.timestamp("ms", tz="UTC")),
    }
    for place, name in enumerate(NAMES):
        mask = ~series.is_valid[rows, place]
        columns[name] = pyarrow.array(series.values[rows, place], pyarrow.float64(), mask=mask)
    return _table(pyarrow, schema, series.workload, len(rows), columns)


def _table(pyarrow: Any, schema: Any, workload: WorkloadId, count: int, columns: dict[str, Any]) -> Any:
    columns["workload"] = pyarrow.array([os.fsencode(workload)] * count, pyarrow.binary())
    return pyarrow.table([columns.get(field.name, pyarrow.nulls(count, field.type)) for field in schema], schema=schema)


def _versions_in(table: Any) -> int:
    return table.num_rows - table["kind"].null_count


def _check_columns(path: Path, found: Any, wanted: Any) -> None:
    there = {field.name: field.type for field in found}
    missing = [field.name for field in wanted if field.name not in there]
    strange = [name for name in there if name not in wanted.names]
    wrong = [
        f"{field.name} is {there[field.name]} instead of {field.type}"
        for field in wanted
        if field.name in there and there[field.name] != field.type
    ]
    problems = [
        *([f"lacks {', '.join(missing)}"] if missing else []),
        *([f"has {', '.join(map(words.printable, strange))}, which is unknown here"] if strange else []),
        *wrong,
    ]
    if problems:
        raise Refused(
            place=str(path),
            problem=f"its columns are not those of an export: {'; '.join(problems)}",
            fix="docs/methods/profile-store.md lists the columns; `memsculpt profile export` writes them",
        )


def _content(path: Path, table: Any) -> Content:
    workloads = [None if one is None else bytes(one) for one in table["workload"].to_pylist()]
    if None in workloads:
        raise _wrong(path, workloads.index(None), "has no workload")
    kinds: list[str | None] = table["kind"].to_pylist()
    times = [None if one is None or one % 1000 else one // 1000 for one in table["time"].cast("int64").to_pylist()]
    resolutions = table["resolution_s"].to_pylist()
    groups: dict[tuple[bytes, int], list[int]] = {}
    versions: list[tuple[WorkloadId, str, int, bytes]] = []
    contents = table["content"]
    for row, (workload, kind, at_s, resolution_s) in enumerate(zip(workloads, kinds, times, resolutions, strict=True)):
        if at_s is None or not 0 <= at_s < LATEST_S:
            raise _wrong(path, row, "has no time of whole seconds in the years 1970 to 4147")
        if kind is None:
            if resolution_s not in RESOLUTIONS_S or at_s % resolution_s:
                raise _wrong(path, row, "has a resolution that is not kept, or a time that is no multiple of it")
            groups.setdefault((workload or b"", resolution_s), []).append(row)
            continue
        what = contents[row].as_py()
        if kind not in KINDS or what is None:
            raise _wrong(path, row, f"has a kind that is none of {', '.join(KINDS)}, or no content")
        versions.append((WorkloadId(os.fsdecode(workload or b"")), kind, at_s, what))
    columns = np.stack([_floats(table[name]) for name in NAMES], axis=1) if table.num_rows else np.empty((0, 0))
    moments = np.array(times, dtype=np.int64)
    series = [
        one
        for (workload, resolution_s), rows in groups.items()
        for one in _series(workload, resolution_s, moments[rows], columns[rows])
    ]
    return Content(path=path, series=tuple(series), versions=tuple(sorted(versions, key=lambda one: one[2])))


def _floats(column: Any) -> Any:
    return np.concatenate([np.empty(0), *(chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks)])


def _series(workload: bytes, resolution_s: int, times_s: Any, values: Any) -> Iterator[Series]:
    """Yield the samples as evenly spaced series, parted where a day and more is missing."""
    order = np.argsort(times_s, kind="stable")
    times_s, values = times_s[order], values[order]
    breaks = np.flatnonzero(np.diff(times_s) > max(86_400, resolution_s)) + 1
    for piece_times, piece in zip(np.split(times_s, breaks), np.split(values, breaks), strict=True):
        start_s = int(piece_times[0])
        places = (piece_times - start_s) // resolution_s
        whole = np.full((int(places[-1]) + 1, len(METRICS)), np.nan)
        whole[places] = piece
        is_valid = np.isfinite(whole)
        yield Series(
            workload=WorkloadId(os.fsdecode(workload)),
            resolution_s=resolution_s,
            start_s=start_s,
            values=np.where(is_valid, whole, 0.0),
            is_valid=is_valid,
        )


def _wrong(path: Path, row: int, problem: str) -> MemsculptError:
    return Refused(place=f"{path}, row {row}", problem=problem, fix="nothing was imported; mend the file")


def _broken(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"is cut short or no Parquet file: {words.printable(first)}"
