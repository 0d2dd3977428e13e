# SPDX-License-Identifier: Apache-2.0
"""What single values cannot show: that the whole fits together and fits the host."""

from collections.abc import Callable
from typing import Any

from memsculpt.config.toml_lines import KeyPath
from memsculpt.config.values import show
from memsculpt.domain.settings import Kind, Settings
from memsculpt.domain.units import UNLIMITED_BYTES, format_bytes, format_duration_s

Complain = Callable[[KeyPath, str, str], None]

_NAME_LENGTH = 64  # it becomes part of a cgroup's name, which the kernel limits to 255 bytes


def check_sections(settings: Settings, complain: Complain) -> None:
    """Check the sections against one another."""
    forecast = settings.forecast
    if forecast.act_horizon_s not in forecast.horizons_s:
        known = ", ".join(format_duration_s(horizon_s) for horizon_s in forecast.horizons_s)
        problem = f"act_horizon: {format_duration_s(forecast.act_horizon_s)} is none of the horizons ({known})"
        complain(("forecast", "act_horizon"), problem, "write one of them, or add it to horizons")
    if forecast.history_s < forecast.horizons_s[-1]:
        problem = "history: is shorter than the longest horizon, so that horizon could never be learnt"
        complain(("forecast", "history"), problem, f"write at least {format_duration_s(forecast.horizons_s[-1])}")
    if forecast.horizons_s[0] < settings.interval_s:
        problem = (
            f"an interval of {format_duration_s(settings.interval_s)} is longer than the first horizon "
            f"({format_duration_s(forecast.horizons_s[0])}), which would be over before the next look"
        )
        is_usual = settings.interval_s == Settings().interval_s
        path = ("forecast", "horizons") if is_usual else ("agent", "interval")
        complain(path, problem, "shorten [agent] interval, or write longer [forecast] horizons and act_horizon")
    if settings.socket == settings.state:
        complain(("agent", "socket"), "socket and state are the same path", "give the socket a path of its own")


def check_partitions(
    partitions: list[dict[str, Any]], settings: Settings, total_bytes: int, complain: Complain
) -> None:
    """Check each partition, their names, and that what they are promised fits the capacity."""
    first_with_name: dict[str, int] = {}
    for index, fields in enumerate(partitions):
        path: KeyPath = ("partition", index)
        name = fields.get("name")
        if name is not None:
            _check_name(name, path, complain)
            if name in first_with_name:
                problem = f"name: partition {show(name)} is there twice (number {first_with_name[name] + 1} has it too)"
                complain((*path, "name"), problem, "give each partition a name of its own")
            first_with_name.setdefault(name, index)
        _check_bounds(fields, path, complain)
    _check_capacity(partitions, settings, total_bytes, complain)


def check_trust(groups: list[dict[str, Any]], complain: Complain) -> None:
    """Check that the trust groups have names of their own, and that no VM is named in two: they would be one group."""
    names: dict[str, int] = {}
    homes: dict[str, str] = {}
    for index, fields in enumerate(groups):
        name: str = fields.get("name", "")
        if name in names:
            problem = f"name: trust group {show(name)} is there twice (number {names[name] + 1} has it too)"
            complain(("trust", index, "name"), problem, "give each group a name of its own, or put them together")
        names.setdefault(name, index)
        for each in fields.get("vms", ()):
            if each in homes:
                problem = f"vms: {show(each)} is in group {show(homes[each])} as well"
                complain(("trust", index, "vms"), problem, "leave it in one of them, or put the groups together")
            homes.setdefault(each, name)


def _check_name(name: str, path: KeyPath, complain: Complain) -> None:
    is_plain = name.isprintable() and "/" not in name and name not in {".", ".."} and name == name.strip()
    if not is_plain or len(name.encode()) > _NAME_LENGTH:
        problem = f"name: {show(name)} cannot be part of a cgroup's name"
        complain((*path, "name"), problem, f"write up to {_NAME_LENGTH} letters, digits, dots and dashes")


def _check_bounds(fields: dict[str, Any], path: KeyPath, complain: Complain) -> None:
    name = show(fields.get("name", ""))
    guarantee_bytes: int = fields.get("guarantee_bytes", 0)
    ceiling_bytes: int = fields.get("ceiling_bytes", UNLIMITED_BYTES)
    size_bytes: int | None = fields.get("size_bytes")
    is_fixed = fields.get("kind") is Kind.FIXED
    if guarantee_bytes > ceiling_bytes:
        problem = (
            f"guarantee: {format_bytes(guarantee_bytes)} of partition {name} is above its ceiling "
            f"({format_bytes(ceiling_bytes)})"
        )
        complain((*path, "guarantee"), problem, "lower the guarantee or raise the ceiling")
    if is_fixed and size_bytes is None:
        complain((*path, "kind"), f"kind: partition {name} is fixed and has no size", 'add size = "..."')
    if size_bytes is None:
        return
    if not is_fixed:
        problem = f"size: partition {name} is dynamic; its size follows the forecast"
        complain((*path, "size"), problem, 'remove size, or write kind = "fixed"')
    elif not guarantee_bytes <= size_bytes <= ceiling_bytes:
        problem = (
            f"size: {format_bytes(size_bytes)} of partition {name} is not between its guarantee "
            f"({format_bytes(guarantee_bytes)}) and its ceiling ({format_bytes(ceiling_bytes)})"
        )
        complain((*path, "size"), problem, "change one of them; a fixed partition needs neither guarantee nor ceiling")


def _check_capacity(partitions: list[dict[str, Any]], settings: Settings, total_bytes: int, complain: Complain) -> None:
    """Refuse promises that do not fit, now and not under load; the complaint stands at the first that is too much."""
    capacity_bytes = settings.capacity_of(total_bytes)
    if settings.capacity_bytes is not None and settings.capacity_bytes > total_bytes:
        problem = f"capacity: {format_bytes(settings.capacity_bytes)} is more than this host's main memory"
        complain(("agent", "capacity"), problem, f'write at most {format_bytes(total_bytes)}, or a share such as "90%"')
    promised_bytes = [_promised_bytes(fields, settings.plan.floor_bytes) for fields in partitions]
    total_promised_bytes = sum(promised_bytes)
    if total_promised_bytes <= capacity_bytes:
        return
    running_bytes = 0
    for index, fields in enumerate(partitions):
        running_bytes += promised_bytes[index]
        if running_bytes <= capacity_bytes:
            continue
        key = "size" if fields.get("kind") is Kind.FIXED else "guarantee"
        problem = (
            f"{key}: guarantees, fixed sizes and floors come to {format_bytes(total_promised_bytes)}, "
            f"{format_bytes(total_promised_bytes - capacity_bytes)} more than the capacity of "
            f"{format_bytes(capacity_bytes)}"
        )
        fix = "lower guarantees or sizes, or raise [agent] capacity"
        complain(("partition", index, key), problem, fix)
        return


def _promised_bytes(fields: dict[str, Any], floor_bytes: int) -> int:
    size_bytes: int | None = fields.get("size_bytes")
    if fields.get("kind") is Kind.FIXED and size_bytes is not None:
        return size_bytes
    guarantee_bytes: int = fields.get("guarantee_bytes", 0)
    ceiling_bytes: int = fields.get("ceiling_bytes", UNLIMITED_BYTES)
    return max(guarantee_bytes, min(floor_bytes, ceiling_bytes))
