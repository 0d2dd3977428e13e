# SPDX-License-Identifier: Apache-2.0
"""The heavy half of `profile`: each word below it, from the options to what is printed."""

import argparse
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memsculpt.domain.series import METRICS, RESOLUTIONS_S, Series
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.cli import options, preparing
from memsculpt.errors import CorruptStore, UsageError
from memsculpt.profile import diff
from memsculpt.profile.store import Kept, Reader, Store, find_set_aside

# A span is shown in the finest resolution that gives about so many samples.
SHOWN_SAMPLES = 20_000
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
RHYTHM_METRIC = "needed_bytes"
NAMED_MOST = 5


def folder_of(parsed: argparse.Namespace) -> Path:
    """Return the state folder that the options name. Raises ConfigError."""
    if parsed.state is not None:
        return Path(parsed.state)
    return Path(preparing.read_settings(parsed.config, is_named=parsed.config is not None).state)


@contextmanager
def opened(parsed: argparse.Namespace) -> Generator[Reader]:
    """Open the store for reading."""
    reader = Reader.open(folder_of(parsed))
    try:
        yield reader
    finally:
        reader.close()


def show_list(parsed: argparse.Namespace) -> int:
    """Print who is in the store."""
    with opened(parsed) as reader:
        told = {
            "store": {"path": str(reader.path), "size_bytes": reader.path.stat().st_size},
            "workloads": [view_kept(one) for one in reader.workloads()],
            "set_aside": [str(one) for one in find_set_aside(reader.path.parent)],
            "problems": reader.problems,
        }
    options.show(told, _list_words, as_json=parsed.json)
    return 0


def show_one(parsed: argparse.Namespace) -> int:
    """Print, and draw, one workload's series."""
    if parsed.png is not None:
        check_picture(parsed.png)
    with opened(parsed) as reader:
        workload = find(reader, parsed.workload)
        resolution_s = _resolution(parsed)
        series = reader.last(workload, resolution_s, int(parsed.span // resolution_s))
        weeks = reader.last(workload, 300)
        problems = list(reader.problems)
    if parsed.png is not None:
        from memsculpt.doors.cli import profile_picture

        parsed.png.write_bytes(profile_picture.png(series))
    told: dict[str, Any] = {
        "workload": words.text_of(workload),
        "resolution_s": resolution_s,
        "start_s": series.start_s,
        "sample_count": len(series.values),
        "summary": {name: asdict(one) for name, one in diff.summarize(series).items()},
        "hours_of_week": _numbers(diff.hours_of_week(weeks, RHYTHM_METRIC, offset_s=_offset_s())),
        "metrics": _columns(series) if parsed.json else {},
        "problems": problems,
    }
    options.show(told, _show_words, as_json=parsed.json)
    return 0


def show_diff(parsed: argparse.Namespace) -> int:
    """Print what changed between two spans, or between two workloads."""
    back_s = parsed.span if parsed.back is None else parsed.back
    with opened(parsed) as reader:
        workload = find(reader, parsed.workload)
        other = workload if parsed.other is None else find(reader, parsed.other)
        resolution_s = _resolution(parsed)
        end_s = reader.newest_s(workload, resolution_s) or 0
        after = reader.read(workload, resolution_s, int(end_s - parsed.span), end_s)
        before_end_s = end_s if parsed.other is not None else int(end_s - back_s)
        before = reader.read(other, resolution_s, int(before_end_s - parsed.span), before_end_s)
    told: dict[str, Any] = {
        "resolution_s": resolution_s,
        "before": _side(before),
        "after": _side(after),
        "metrics": [asdict(one) for one in diff.compare(before, after)],
    }
    options.show(told, _diff_words, as_json=parsed.json)
    return 0


def export(parsed: argparse.Namespace) -> int:
    """Write a Parquet file."""
    from memsculpt.doors.cli import profile_parquet

    profile_parquet.need_pyarrow()
    with opened(parsed) as reader:
        chosen = None if parsed.workload is None else find(reader, parsed.workload)
        told = profile_parquet.export(reader, parsed.file, only=chosen)
    options.show(
        told,
        lambda one: f"wrote {one['sample_count']} samples and {one['version_count']} versions to {one['file']}",
        as_json=parsed.json,
    )
    return 0


def take(parsed: argparse.Namespace) -> int:
    """Read a Parquet file into the store."""
    from memsculpt.doors.cli import profile_parquet

    profile_parquet.need_pyarrow()
    content = profile_parquet.read(parsed.file)  # checked as a whole before the store is touched
    store = Store.open_to_write(folder_of(parsed), now_s=time.time())
    try:
        told = profile_parquet.put(content, store)
        told["notes"] = list(store.notes)
    finally:
        store.close()
    options.show(
        told,
        lambda one: "\n".join(
            [
                f"took {one['sample_count']} samples and {one['version_count']} versions from {one['file']}",
                *one["notes"],
            ]
        ),
        as_json=parsed.json,
    )
    return 0


def check(parsed: argparse.Namespace) -> int:
    """Verify every page and checksum; 1 when something is broken."""
    folder = folder_of(parsed)
    try:
        with opened(parsed) as reader:
            problems = reader.check()
            path = reader.path
    except CorruptStore as error:
        problems, path = [error.problem], Path(error.place)
    aside = [str(one) for one in find_set_aside(folder)]
    told = {"path": str(path), "whole": not problems, "problems": problems, "set_aside": aside}
    options.show(told, _check_words, as_json=parsed.json)
    return 1 if problems else 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": show_list,
    "show": show_one,
    "diff": show_diff,
    "export": export,
    "import": take,
    "check": check,
}


def find(reader: Reader, name: str) -> WorkloadId:
    """Return the workload of that name, or the only one of whose name it is a part. Raises UsageError."""
    known = {words.text_of(one.id): one.id for one in reader.workloads()}
    if name in known:
        return known[name]
    fitting = [text for text in known if name in text]
    if len(fitting) == 1:
        return known[fitting[0]]
    some = ", ".join(map(words.printable, fitting[:NAMED_MOST])) + (", ..." if len(fitting) > NAMED_MOST else "")
    raise UsageError(
        place=f"workload {name}",
        problem=f"fits {len(fitting)} of those in the store: {some}" if fitting else "is not in the store",
        fix="memsculpt profile list shows the names",
    )


def check_picture(path: Path) -> None:
    """Raise Unavailable without matplotlib, MemsculptError where the picture could not be kept."""
    from memsculpt.doors.cli.heat_watch import check_picture as can_be_drawn

    can_be_drawn(path)


def view_kept(one: Kept) -> dict[str, Any]:
    """Return a workload of the list, for programs."""
    return {
        "id": words.text_of(one.id),
        "first_s": one.first_s,
        "last_s": one.last_s,
        "stored_bytes": one.stored_bytes,
        "versions": [{"kind": each.kind, "number": each.number, "made_s": each.made_s} for each in one.versions],
    }


def _resolution(parsed: argparse.Namespace) -> int:
    if parsed.resolution is None:
        return next((one for one in RESOLUTIONS_S if parsed.span / one <= SHOWN_SAMPLES), RESOLUTIONS_S[-1])
    if parsed.resolution not in RESOLUTIONS_S:
        fix = "1s, 10s, 1min, 5min or 1h"
        raise UsageError(place="--resolution", problem="is none that is kept", fix=fix)
    return int(parsed.resolution)


def _offset_s() -> int:
    return time.localtime().tm_gmtoff


def _numbers(values: Any) -> list[float | None]:
    return [None if np.isnan(one) else float(one) for one in values]


def _columns(series: Series) -> dict[str, list[float | None]]:
    return {
        one.name: _numbers(np.where(series.is_valid[:, place], series.values[:, place], np.nan))
        for place, one in enumerate(METRICS)
        if series.is_valid[:, place].any()
    }


def _side(series: Series) -> dict[str, Any]:
    end_s = series.start_s + len(series.values) * series.resolution_s
    return {"workload": words.text_of(series.workload), "start_s": series.start_s, "end_s": end_s}


def shown(name: str, value: float | None) -> str:
    """Print a metric's value for people."""
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_bytes_per_s"):
        return f"{format_bytes(value)}/s"
    return words.percent(value) if name.endswith("_ratio") else f"{value:.1f}/s"


def _list_words(told: dict[str, Any]) -> str:
    rows = [
        (
            words.shortened(one["id"], 60),
            _moment(one["first_s"]),
            _moment(one["last_s"]),
            format_bytes(one["stored_bytes"]),
            ", ".join(f"{each['kind']} {each['number']}" for each in one["versions"]),
        )
        for one in told["workloads"]
    ]
    heads = ("WORKLOAD", "SINCE", "UNTIL", "STORED", "VERSIONS")
    lines = [
        words.table(heads, rows, left=3, paint=words.paints()),
        "",
        f"{len(rows)} workloads, {format_bytes(told['store']['size_bytes'])} in {told['store']['path']}",
        *(f"set aside, broken: {one}" for one in told["set_aside"]),
        *(f"note: {one}" for one in told["problems"]),
    ]
    return "\n".join(lines)


def _show_words(told: dict[str, Any]) -> str:
    rows = [
        (
            name,
            *(shown(name, one[which]) for which in ("last", "median", "high", "peak")),
            words.percent(one["known_ratio"], 0),
        )
        for name, one in told["summary"].items()
        if one["known_ratio"] > 0.0
    ]
    span_s = told["sample_count"] * told["resolution_s"]
    lines = [
        (
            f"{words.printable(told['workload'])}: {format_duration_s(span_s)} until "
            f"{_moment(told['start_s'] + span_s)}, every {format_duration_s(told['resolution_s'])}"
        ),
        words.table(("METRIC", "LAST", "MEDIAN", "99 %", "PEAK", "KNOWN"), rows, paint=words.paints()),
    ]
    hours = [(value, number) for number, value in enumerate(told["hours_of_week"]) if value is not None]
    if len(hours) >= 24:
        most, least = max(hours), min(hours)
        lines.append(
            f"by hour of the week it needs most on {_hour(most[1])} ({format_bytes(most[0])} in the mean) "
            f"and least on {_hour(least[1])} ({format_bytes(least[0])})"
        )
    return "\n".join([*lines, *(f"note: {one}" for one in told["problems"])])


def _diff_words(told: dict[str, Any]) -> str:
    rows = [
        (
            one["metric"],
            shown(one["metric"], one["before"]["median"]),
            shown(one["metric"], one["after"]["median"]),
            "" if one["change_ratio"] is None else f"{one['change_ratio'] * 100:+.0f} %",
            shown(one["metric"], one["before"]["peak"]),
            shown(one["metric"], one["after"]["peak"]),
            "stands out" if one["stands_out"] else "",
        )
        for one in told["metrics"]
    ]
    sides = [
        (
            f"{name}  {words.printable(told[side]['workload'])}, {_moment(told[side]['start_s'])} to "
            f"{_moment(told[side]['end_s'])}"
        )
        for name, side in (("before", "before"), ("after ", "after"))
    ]
    heads = ("METRIC", "MEDIAN BEFORE", "AFTER", "CHANGE", "PEAK BEFORE", "AFTER", "")
    return "\n".join([*sides, words.table(heads, rows, paint=words.paints())])


def _check_words(told: dict[str, Any]) -> str:
    lines = [f"broken: {words.printable(one)}" for one in told["problems"]] or [f"{told['path']} is whole"]
    return "\n".join([*lines, *(f"set aside, broken: {one}" for one in told["set_aside"])])


def _moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


def _hour(number: int) -> str:
    return f"{DAYS[number // 24]} {number % 24:02}:00"
