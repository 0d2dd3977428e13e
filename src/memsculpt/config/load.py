# SPDX-License-Identifier: Apache-2.0
"""TOML text -> checked Settings, or every complaint at once, each with file, line, what is wrong and the fix."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, cast

from memsculpt.config import checks, keys
from memsculpt.config.keys import Key
from memsculpt.config.toml_lines import KeyPath, locate
from memsculpt.config.values import Wrong, show
from memsculpt.domain.settings import (
    ForecastSettings,
    ObserveSettings,
    PartitionSettings,
    PlanSettings,
    ProfileSettings,
    SenseSettings,
    Settings,
    TrustGroup,
    VmSettings,
)
from memsculpt.domain.workload import Match
from memsculpt.errors import ConfigError

_MOST_BYTES = 4 << 20  # far above any configuration; below what would hurt to read by mistake (a device, a log)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsSource:
    """Settings, and where in the file each partition stands, for complaints that arise later."""

    settings: Settings
    path: str | None  # None: no file, all defaults
    lines: Mapping[KeyPath, int]

    def locate(self, partition_name: str, key: str = "name") -> str:
        """Return "file:line" of a key of a partition (of the partition, where it has no such key)."""
        for index, partition in enumerate(self.settings.partitions):
            if partition.name == partition_name:
                line = self.lines.get(("partition", index, key)) or self.lines.get(("partition", index))
                return f"{self.path}:{line}"
        return self.path or "the configuration"

    def place(self, error: ConfigError, partition_name: str) -> ConfigError:
        """Return the complaint of a host about a partition's rule, with the place where the rule stands."""
        return ConfigError(place=self.locate(partition_name, "match"), problem=error.problem, fix=error.fix)


def load_settings(path: str | os.PathLike[str] | None, total_bytes: int) -> Settings:
    """Read and check the whole configuration of a host with `total_bytes` of main memory.

    Without a path all is default: observe, no partitions. Raises ConfigError; with several complaints it carries them
    all in `complaints`.
    """
    return load_source(path, total_bytes).settings


def load_source(path: str | os.PathLike[str] | None, total_bytes: int) -> SettingsSource:
    """As `load_settings`, and say where things stand."""
    if path is None:
        return SettingsSource(settings=Settings(), path=None, lines={})
    name = os.fsdecode(path)
    return parse_settings(read_text(name), place=name, total_bytes=total_bytes)


def parse_settings(text: str, *, place: str, total_bytes: int) -> SettingsSource:
    """Check the text of a configuration; `place` is the file's name in complaints. Raises as `load_settings`."""
    reading = _Reading(parse_toml(text, place=place), lines=locate(text), place=place)
    return SettingsSource(settings=reading.settings(total_bytes), path=place, lines=reading.lines)


def read_socket(path: str | os.PathLike[str]) -> str:
    """Return the agent's socket alone, for commands that only ask; other sections are not looked at.

    Raises ConfigError when the file cannot be read or the socket is wrong.
    """
    name = os.fsdecode(path)
    text = read_text(name)
    reading = _Reading(parse_toml(text, place=name), lines=locate(text), place=name)
    found = reading.section("agent", only=("socket",))
    reading.raise_complaints()
    return cast("str", found.get("socket", Settings().socket))


def read_text(path: str) -> str:
    """Read the file. Raises ConfigError saying why it cannot be read."""
    fix = "name another file with --config, or run without one to observe with the defaults"
    try:
        with open(path, "rb") as file:  # noqa: PTH123  config reads its one file, by the name it was given
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        if isinstance(error, PermissionError):
            fix = "run as a user who may read it (root)"
        raise ConfigError(place=path, problem=f"cannot be read: {error.strerror}", fix=fix) from error
    except ValueError as error:  # a NUL in the name
        raise ConfigError(place=ascii(path), problem=f"is not a file name: {error}", fix=fix) from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(place=path, problem=f"is larger than {_MOST_BYTES >> 20} MiB: no configuration", fix=fix)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8: byte 0x{content[error.start]:02x}"
        raise ConfigError(place=f"{path}:{line}", problem=problem, fix="save the file as UTF-8") from error


def parse_toml(text: str, *, place: str) -> dict[str, Any]:
    """Return tomllib's result. Raises ConfigError with the line of the first thing that is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        line = where.removeprefix("line ").partition(",")[0]
        line = line if line.isdigit() else str(text.count("\n") + 1)
        fix = "see https://toml.io; texts stand in quotes, sections in [brackets]"
        raise ConfigError(place=f"{place}:{line}", problem=f"is not TOML: {what}", fix=fix) from error
    except RecursionError as error:
        fix = "nest lists and tables two or three deep at most"
        raise ConfigError(place=place, problem="is nested too deeply to be a configuration", fix=fix) from error


class _Reading:
    """One pass over the document, which collects complaints rather than stopping at the first."""

    def __init__(self, document: dict[str, Any], *, lines: dict[KeyPath, int], place: str) -> None:
        self._document = document
        self.lines = lines
        self._place = place
        self.complaints: list[ConfigError] = []

    def settings(self, total_bytes: int) -> Settings:
        """Return the settings. Raises ConfigError with everything that was found wrong."""
        self._refuse_unknown((), self._document, [*keys.SECTIONS, *keys.TABLES])
        agent = self.section("agent")
        capacity = agent.pop("capacity", None)
        if capacity is not None:
            agent["capacity_bytes" if isinstance(capacity, int) else "capacity_ratio"] = capacity
        # What each section may hold was checked key by key, so the keywords fit.
        whole = Settings(
            **agent,
            observe=ObserveSettings(**self.section("observe")),
            sense=SenseSettings(**self.section("sense")),
            profile=ProfileSettings(**self.section("profile")),
            forecast=ForecastSettings(**self.section("forecast")),
            plan=PlanSettings(**self.section("plan")),
            vms=VmSettings(**self.section("vms")),
        )
        partitions, trust = self._partitions(), self._trust()
        checks.check_sections(whole, self._complain_at)
        checks.check_partitions(partitions, whole, total_bytes, self._complain_at)
        checks.check_trust(trust, self._complain_at)
        self.raise_complaints()
        groups = tuple(TrustGroup(**fields) for fields in trust)
        return replace(
            whole,
            vms=replace(whole.vms, trust=groups),
            partitions=tuple(PartitionSettings(**fields) for fields in partitions),
        )

    def raise_complaints(self) -> None:
        """Raise what was collected: one complaint as it is, several together, by their lines."""
        self.complaints.sort(key=_line_of)
        if len(self.complaints) == 1:
            raise self.complaints[0]
        if self.complaints:
            raise ConfigError(
                place=self._place,
                problem=f"{len(self.complaints)} complaints",
                fix="mend each of those below; nothing was touched",
                complaints=tuple(self.complaints),
            )

    def section(self, name: str, *, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the fields that a section gives; what is wrong is left out and complained about."""
        table = self._table((name,), self._document.get(name, {}))
        known = keys.SECTIONS[name]
        if only is not None:
            known = {key: known[key] for key in only}
            table = {key: value for key, value in table.items() if key in only}
        return self._fields((name,), table, known)

    def _tables(self, name: str) -> list[tuple[KeyPath, dict[str, Any]]]:
        """Return the tables of `[[name]]`, each with where it stands."""
        found = self._document.get(name, [])
        if not isinstance(found, list):
            self._complain_at((name,), f"[{name}] is one table", f"write [[{name}]], in double brackets")
            return []
        tables: list[tuple[KeyPath, dict[str, Any]]] = []
        for index, each in enumerate(cast("list[Any]", found)):
            if isinstance(each, dict):
                tables.append(((name, index), cast("dict[str, Any]", each)))
            else:
                self._table((name, index), each)
        return tables

    def _trust(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        for path, table in self._tables("trust"):
            groups.append(self._fields(path, table, keys.TRUST))
            for key, example in (("name", '"tenant-a"'), ("vms", '["web-*"]')):
                if key not in table:
                    self._complain_at(path, f"this trust group has no {key}", f"add {key} = {example} below [[trust]]")
        return groups

    def _partitions(self) -> list[dict[str, Any]]:
        partitions: list[dict[str, Any]] = []
        for path, table in self._tables("partition"):
            fields = self._fields(path, {key: table[key] for key in table if key != "match"}, keys.PARTITION)
            match_table = self._table((*path, "match"), table.get("match", {}))
            fields["match"] = Match(**self._fields((*path, "match"), match_table, keys.MATCH))
            if "name" not in table:
                self._complain_at(path, "this partition has no name", 'add name = "..." below [[partition]]')
            if not match_table and table.get("match", {}) == {}:
                fix = 'add match = { cgroup = "..." }, or exe, user, pid, vm, label'
                self._complain_at((*path, "match"), "this partition matches nothing", fix)
            partitions.append(fields)
        return partitions

    def _fields(self, path: KeyPath, table: dict[str, Any], known: Mapping[str, Key]) -> dict[str, Any]:
        also = ["match"] if known is keys.PARTITION else []
        self._refuse_unknown(path, table, [*known, *also])
        fields: dict[str, Any] = {}
        for name, key in known.items():
            if name not in table:
                continue
            try:
                fields[key.field] = key.read(table[name])
            except Wrong as wrong:
                self._complain_at((*path, name), f"{name}: {wrong.problem}", wrong.fix)
        return fields

    def _table(self, path: KeyPath, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
        name = next(str(key) for key in reversed(path) if isinstance(key, str))
        fix = 'write match = { exe = "*/worker" }' if name == "match" else f"write [{name}] and its keys below it"
        self._complain_at(path, f"{name}: {show(value)} is not a table", fix)
        return {}

    def _refuse_unknown(self, path: KeyPath, table: dict[str, Any], known: list[str]) -> None:
        for name in table:
            if name not in known:
                sections = [key for key in path if isinstance(key, str)]
                where = f"[{sections[-1]}]" if sections else "the file"
                self._complain_at((*path, name), f"{show(name)} is no key of {where}", _nearest(name, path, known))

    def _complain_at(self, path: KeyPath, problem: str, fix: str) -> None:
        """Collect a complaint about the key at `path`, or the nearest table around it that stands in the file."""
        around = path
        while around and around not in self.lines:
            around = around[:-1]
        place = f"{self._place}:{self.lines[around]}" if around else self._place
        self.complaints.append(ConfigError(place=place, problem=problem, fix=fix))


def _line_of(complaint: ConfigError) -> int:
    line = complaint.place.rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _nearest(name: str, path: KeyPath, known: list[str]) -> str:
    """Return the fix for an unknown key: the nearest known one, or the section where it belongs, or the whole list."""
    everywhere = {**keys.SECTIONS, **keys.TABLES, "match": keys.MATCH}
    homes = [section for section, table in everywhere.items() if name in table and section not in path]
    if homes:
        return f"{name} belongs in a [[{homes[0]}]]" if homes[0] in keys.TABLES else f"{name} belongs in [{homes[0]}]"
    close = get_close_matches(name.lower().replace("-", "_"), known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "remove it; known here: " + ", ".join(known)
