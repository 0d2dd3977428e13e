# SPDX-License-Identifier: Apache-2.0
"""A table of recorded series, from a Parquet file: `series_id`, `step`, a value, and what was measured beside it.

The one place where the forecaster's room reads a file, because `backtest.fit` is called with a folder; pyarrow is
loaded here alone, by commands and workers.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.errors import Unavailable, UsageError

ID, STEP = "series_id", "step"
# What is taken of a table that `profile export` wrote.
EXPORT_RESOLUTION_S, EXPORT_VALUE = 300, "needed_peak_bytes"
VALUES = ("value", "needed_peak_bytes", "mem_used_mib", "mem_util", "mem_pct", "memory_bytes", "needed_bytes")
CAPACITY_STEPS = 288
DISTINCT_LEAST = 10
GRID_MOST = 20  # steps for each row: a table with more holes than that is numbered wrongly


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedSeries:
    """One series on a regular grid; columns of shape (n,), gaps filled with what was before."""

    name: str
    steps: Int64
    values: Float64
    is_known: Bool
    capacity: Float64  # the largest of the trailing 288 steps
    covariates: Mapping[str, Float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedTable:
    """A file's series, and what their values are called."""

    value: str
    covariates: tuple[str, ...]
    series: tuple[RecordedSeries, ...]


def read_table(path: str, value: str | None = None, capacity: str | None = None) -> RecordedTable:
    """Read a Parquet file; `capacity` names a column, or is a number. Raises UsageError, or Unavailable."""
    try:
        pa: Any = importlib.import_module("pyarrow")  # Any: its types are only partly told
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise Unavailable(
            place=path,
            problem="reading Parquet needs pyarrow, which is not installed",
            fix="pip install memsculpt[parquet]",
        ) from error
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            place=path,
            problem=f"is no whole Parquet file: {str(error).splitlines()[0]}",
            fix="name a table with the columns series_id, step and a value; was it copied to its end?",
        ) from error
    table = _from_export(pa, table)
    names: list[str] = table.column_names
    chosen = _value_column(path, names, value)
    limit = _limit(path, names, capacity)
    is_number: dict[str, bool] = {
        name: pa.types.is_floating(kind) or pa.types.is_integer(kind)
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
    }
    for name in (STEP, chosen):
        if not is_number[name]:
            raise UsageError(
                place=f"{path}, column {name}",
                problem=f"holds {table.schema.field(name).type}, not numbers",
                fix="name another one",
            )
    numbers = tuple(name for name in names if is_number[name] and name not in {ID, STEP, chosen, limit})
    ordered = table.sort_by([(ID, "ascending"), (STEP, "ascending")])
    ids: list[Any] = ordered.column(ID).to_pylist()
    wanted = (STEP, chosen, *numbers, *((limit,) if isinstance(limit, str) else ()))
    columns = {
        name: np.asarray(
            ordered.column(name).combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64
        )
        for name in wanted
    }
    edges = [0, *(row for row in range(1, len(ids)) if ids[row] != ids[row - 1]), len(ids)]
    series = tuple(
        _series(path, str(ids[low]), {name: one[low:high] for name, one in columns.items()}, chosen, numbers, limit)
        for low, high in pairwise(edges)
        if high > low
    )
    return RecordedTable(value=chosen, covariates=numbers, series=series)


def is_there(path: str) -> bool:
    """Tell whether there is such a file."""
    fs: Any = importlib.import_module("pyarrow.fs")
    return bool(fs.LocalFileSystem().get_file_info(path).type == fs.FileType.File)


def usable(series: Sequence[RecordedSeries], known_least: int) -> Iterator[RecordedSeries]:
    """Yield the series that can be scored: long enough, and not constant."""
    for one in series:
        known = one.values[one.is_known]
        if len(known) >= known_least and len(np.unique(known)) >= DISTINCT_LEAST:
            yield one


def _from_export(pa: Any, table: Any) -> Any:
    """Return what `memsculpt profile export` wrote as a table of series, at 5 minutes; another table as it is."""
    if not {"workload", "resolution_s", "time"} <= set(table.column_names):
        return table
    pc: Any = importlib.import_module("pyarrow.compute")
    kept = table.filter(pc.equal(table.column("resolution_s"), EXPORT_RESOLUTION_S))
    milliseconds = kept.column("time").cast(pa.int64())
    columns: dict[str, Any] = {
        ID: [one.decode("utf-8", "surrogateescape") for one in kept.column("workload").to_pylist()],
        STEP: pc.divide(milliseconds, EXPORT_RESOLUTION_S * 1000),
    }
    for name in kept.column_names:
        if name == EXPORT_VALUE or name.endswith(("_per_s", "_ratio")):
            columns[name] = kept.column(name)
    return pa.table(columns)


def _value_column(path: str, names: Sequence[str], value: str | None) -> str:
    missing = [name for name in (ID, STEP) if name not in names]
    if missing:
        raise UsageError(
            place=path,
            problem=f"has no column {' and no column '.join(missing)}; it has {', '.join(names)}",
            fix="rename its columns: series_id, step, and one with the values",
        )
    if value is not None:
        if value not in names:
            raise UsageError(
                place=f"{path}, --value {value}", problem="is no column of it", fix=f"one of {', '.join(names)}"
            )
        return value
    for name in (*VALUES, *(name for name in names if name not in {ID, STEP})):
        if name in names:
            return name
    raise UsageError(place=path, problem="has no column with values", fix="add one, or name it with --value")


def _limit(path: str, names: Sequence[str], capacity: str | None) -> str | float | None:
    if capacity is None:
        return next((name for name in names if name in {"capacity", "mem_cap_mib"}), None)
    if capacity in names:
        return capacity
    try:
        return float(capacity)
    except ValueError:
        raise UsageError(
            place=f"{path}, --capacity {capacity}",
            problem="is neither a column of it nor a number",
            fix=f"one of {', '.join(names)}, or for example 100",
        ) from None


def _series(
    path: str,
    name: str,
    columns: Mapping[str, Float64],
    value: str,
    covariates: Sequence[str],
    limit: str | float | None,
) -> RecordedSeries:
    columns = _on_grid(path, name, columns)
    values = columns[value]
    is_known: Bool = np.isfinite(values) & (values >= 0.0)
    if isinstance(limit, str):  # where the capacity is 0 the machine is off, and its value stale
        column = columns[limit]
        is_known = is_known & (column > 0.0)
        capacity = _trailing_maximum(np.where(column > 0.0, column, np.nan))
        values = np.minimum(values, capacity)
    else:
        most = float(np.nanmax(values, initial=0.0)) if limit is None else limit
        capacity = np.full(len(values), most if most > 0.0 else 1.0)
    return RecordedSeries(
        name=name,
        steps=columns[STEP].astype(np.int64),
        values=filled(np.where(is_known, values, np.nan)),
        is_known=is_known,
        capacity=capacity,
        covariates={one: filled(columns[one]) for one in covariates},
    )


def _on_grid(path: str, name: str, columns: Mapping[str, Float64]) -> Mapping[str, Float64]:
    """Return the columns with a row for every step: what is missing is not known; of doubles the last counts."""
    steps = columns[STEP]
    if not np.isfinite(steps).all():
        raise UsageError(
            place=f"{path}, series {name}", problem="has rows without a step", fix="give every row its step"
        )
    numbers = steps.astype(np.int64)
    if (np.diff(numbers) == 1).all():
        return columns
    count = int(numbers[-1] - numbers[0]) + 1
    if count > GRID_MOST * len(numbers):
        raise UsageError(
            place=f"{path}, series {name}",
            problem=f"has {len(numbers)} rows on {count} steps",
            fix="number the steps of its grid one after the other",
        )
    found: dict[str, Float64] = {}
    for column, values in columns.items():
        whole = np.full(count, np.nan)
        whole[numbers - numbers[0]] = values
        found[column] = whole
    found[STEP] = np.arange(numbers[0], numbers[0] + count, dtype=np.float64)
    return found


def filled(values: Float64) -> Float64:
    """Return the values with each gap filled by what was before it, at the beginning by what comes; 0 without any."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(len(values))
    place = np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)
    return values[known[place]]


def _trailing_maximum(values: Float64) -> Float64:
    known = np.where(np.isfinite(values), values, -np.inf)
    padded = np.concatenate([np.full(CAPACITY_STEPS - 1, -np.inf), known])
    most = np.lib.stride_tricks.sliding_window_view(padded, CAPACITY_STEPS).max(axis=1)
    return np.maximum(filled(np.where(np.isfinite(most), most, np.nan)), 1e-9)
