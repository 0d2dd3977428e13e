# SPDX-License-Identifier: Apache-2.0
"""The journal's stored format, version 1: bytes <-> records. Pure; docs/decisions/0020 has the reasons.

    file    = header record*
    header  = "MSJOURNL"  u32 version  u32 crc32 of the 12 bytes before           little endian
    record  = u32 length  u32 crc32 of the payload  payload                       length >= 1
    payload = one JSON object in ASCII; "k" names the kind

Every record of a change is enough to undo that change: it repeats the first old text, so one that is lost to bit rot
is healed by the next one. Text that is no UTF-8 is carried as surrogates (PEP 383), which JSON escapes, and comes back
byte for byte.

Kinds and fields that were ever released stay reserved: limit, kept, created, moved, undone, pages, knob, turned,
balloon, slow.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.sharing import Knob, KnobKind
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance
from memsculpt.errors import CorruptRecord

VERSION = 1

_MAGIC = b"MSJOURNL"
_HEADER = struct.Struct("<8sII")
_FRAME = struct.Struct("<II")
_LONGEST_BYTES = 1 << 20  # a cgroup path has at most 4 KiB; a longer "record" is a torn length


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which action made a change, when, why, and in which boot of the machine."""

    action_id: int
    at_s: float
    why: str  # the code of the plan's reason
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """A budget is about to be written; `old_text` is what the kernel held before memsculpt's first write."""

    cgroup: CgroupPath
    kind: LimitKind
    old_text: str
    old_bytes: int  # what that text means, so that undoing knows which way it goes
    low_bytes: int  # until its `LimitKept` follows, every value from low ...
    high_bytes: int  # ... to high is ours: the write may not have been made, or be on its way in steps
    squeezes: bool  # below what is used; raising it again is never put off
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitKept:
    """What the kernel holds after the write; another text than this means that somebody else wrote."""

    cgroup: CgroupPath
    kind: LimitKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupCreated:
    """A cgroup of memsculpt's own is about to be made."""

    cgroup: CgroupPath
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMoved:
    """A process is about to change its cgroup; `from_cgroup` is where it was before memsculpt's first move.

    Until it is known to be in `to_cgroup` it may still be in `via_cgroup`, where it was before this move.
    """

    process: Instance
    from_cgroup: CgroupPath
    via_cgroup: CgroupPath
    to_cgroup: CgroupPath
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobTurned:
    """A value of the machine is about to be written; `old_text` is what it held before memsculpt's first write.

    Until its `KnobKept` follows, old, present and new value are ours: the write may not have been made.
    """

    knob: Knob
    old_text: str
    present_text: str
    new_text: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonKey:
    """What a VM's balloon is known by; a class of its own, because a VM's id and a cgroup's path are both text."""

    vm: VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonAsked:
    """A balloon is about to be asked for; `old_bytes` is what it left the guest before memsculpt's first ask.

    It moves at the guest's pace: every value between the lowest and the highest that we know of is ours.
    """

    vm: VmId
    process: Instance
    old_bytes: int
    low_bytes: int
    high_bytes: int
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKey:
    """What pages on a slow node are known by; a class of its own, because a process may have been moved as well."""

    process: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class SentToSlowNode:
    """Pages of a process are about to go to a slow node; whatever of it lies there is to come back in the end."""

    process: Instance
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobKept:
    """What the machine holds after the write; another text than this means that somebody else wrote."""

    knob: Knob
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A change needs no undoing any more: it was put back, or it is no longer ours.

    `text` is what was put back into a budget, "" for everything else.
    """

    change: "ChangeKey"
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagesMoved:
    """How much was paged since the last such record: for people; contents never change, nothing is to undo."""

    out_bytes: int
    in_bytes: int


LimitKey: TypeAlias = tuple[CgroupPath, LimitKind]
ChangeKey: TypeAlias = LimitKey | CgroupPath | Instance | Knob | BalloonKey | SlowKey
Change: TypeAlias = LimitChange | CgroupCreated | ProcessMoved | KnobTurned | BalloonAsked | SentToSlowNode
Record: TypeAlias = Change | LimitKept | KnobKept | Undone | PagesMoved


def key_of(change: Change) -> ChangeKey:
    """Return what the change is about: one budget of a cgroup, an own cgroup, or a process."""
    match change:
        case LimitChange():
            return change.cgroup, change.kind
        case CgroupCreated():
            return change.cgroup
        case ProcessMoved():
            return change.process
        case KnobTurned():
            return change.knob
        case BalloonAsked():
            return BalloonKey(vm=change.vm)
        case SentToSlowNode():
            return SlowKey(process=change.process)


def header() -> bytes:
    """Return what a file of this version begins with."""
    start = _MAGIC + struct.pack("<I", VERSION)
    return start + struct.pack("<I", zlib.crc32(start))


def frame(record: Record) -> bytes:
    """Return the record as it stands in the file."""
    payload = json.dumps(_fields_of(record), separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def read_version(content: bytes) -> int | None:
    """Return the version in the header, None when there is no whole header of ours."""
    if len(content) < _HEADER.size:
        return None
    magic, version, checksum = _HEADER.unpack_from(content)
    if magic != _MAGIC or checksum != zlib.crc32(content[: _HEADER.size - 4]):
        return None
    return cast("int", version)


def parse(content: bytes, *, place: str) -> tuple[list[Record], list[CorruptRecord]]:
    """Return what a journal of this version holds, and what of it is broken.

    A record whose checksum is wrong counts as never written; reading goes on behind it as long as its length leads to
    another record. A tail that is cut off, or lengths that lead nowhere, end the reading.
    """
    records: list[Record] = []
    broken: list[CorruptRecord] = []
    if read_version(content) != VERSION:
        return records, [CorruptRecord(place=place, offset=0, problem="is not a journal of version 1")]
    offset = _HEADER.size
    while offset < len(content):
        payload = _payload_at(content, offset)
        if payload is None:
            left_bytes = len(content) - offset
            problem = f"the last {left_bytes} bytes are no record (a torn write)"
            broken.append(CorruptRecord(place=place, offset=offset, problem=problem))
            break
        record = _parse_record(payload) if zlib.crc32(payload) == _FRAME.unpack_from(content, offset)[1] else None
        if record is None:
            broken.append(CorruptRecord(place=place, offset=offset, problem="a record with a wrong checksum"))
        else:
            records.append(record)
        offset += _FRAME.size + len(payload)
    return records, broken


def _payload_at(content: bytes, offset: int) -> bytes | None:
    begin = offset + _FRAME.size
    if begin > len(content):
        return None
    length = cast("int", _FRAME.unpack_from(content, offset)[0])
    # A length of 0 would make a tail of zeros (a file extended, its data never written) a row of valid records.
    if not 1 <= length <= _LONGEST_BYTES or begin + length > len(content):
        return None
    return content[begin : begin + length]


def _fields_of(record: Record) -> dict[str, Any]:
    match record:
        case LimitChange():
            return {
                "k": "limit",
                "cgroup": record.cgroup,
                "limit": record.kind.value,
                "old": record.old_text,
                "size": record.old_bytes,
                "low": record.low_bytes,
                "high": record.high_bytes,
                "squeezes": record.squeezes,
                **_origin_fields(record.origin),
            }
        case LimitKept():
            return {"k": "kept", "cgroup": record.cgroup, "limit": record.kind.value, "text": record.text}
        case CgroupCreated():
            return {"k": "created", "cgroup": record.cgroup, **_origin_fields(record.origin)}
        case ProcessMoved():
            return {
                "k": "moved",
                "pid": record.process.pid,
                "start": record.process.start_ticks,
                "from": record.from_cgroup,
                "via": record.via_cgroup,
                "to": record.to_cgroup,
                **_origin_fields(record.origin),
            }
        case KnobTurned():
            return {
                "k": "knob",
                **_key_fields(record.knob),
                "old": record.old_text,
                "present": record.present_text,
                "new": record.new_text,
                **_origin_fields(record.origin),
            }
        case KnobKept():
            return {"k": "turned", **_key_fields(record.knob), "text": record.text}
        case BalloonAsked():
            return {
                "k": "balloon",
                "vm": record.vm,
                "pid": record.process.pid,
                "start": record.process.start_ticks,
                "old": record.old_bytes,
                "low": record.low_bytes,
                "high": record.high_bytes,
                **_origin_fields(record.origin),
            }
        case SentToSlowNode():
            return {
                "k": "slow",
                "pid": record.process.pid,
                "start": record.process.start_ticks,
                **_origin_fields(record.origin),
            }
        case Undone():
            return {"k": "undone", **_key_fields(record.change), "text": record.text}
        case PagesMoved():
            return {"k": "pages", "out": record.out_bytes, "in": record.in_bytes}


def _origin_fields(origin: Origin) -> dict[str, Any]:
    return {"id": origin.action_id, "at": origin.at_s, "why": origin.why, "boot": origin.boot}


def _key_fields(key: ChangeKey) -> dict[str, Any]:
    match key:
        case Instance():
            return {"pid": key.pid, "start": key.start_ticks}
        case Knob():
            return {"knob": key.kind.value, "name": key.name}
        case BalloonKey():
            return {"vm": key.vm}
        case SlowKey():
            return {"slow": key.process.pid, "start": key.process.start_ticks}
        case str():
            return {"cgroup": key}
        case (cgroup, kind):
            return {"cgroup": cgroup, "limit": kind.value}


def _parse_record(payload: bytes) -> Record | None:
    """Return None for what has a right checksum and still is no record: a kind or a field that we do not know."""
    try:
        fields = json.loads(payload)
        return _record_from(fields)
    except (ValueError, KeyError, TypeError):
        return None


def _record_from(fields: dict[str, Any]) -> Record:
    match fields["k"]:
        case "limit":
            return LimitChange(
                cgroup=CgroupPath(fields["cgroup"]),
                kind=LimitKind(fields["limit"]),
                old_text=fields["old"],
                old_bytes=fields["size"],
                low_bytes=fields["low"],
                high_bytes=fields["high"],
                squeezes=fields["squeezes"],
                origin=_origin_from(fields),
            )
        case "kept":
            cgroup, kind = CgroupPath(fields["cgroup"]), LimitKind(fields["limit"])
            return LimitKept(cgroup=cgroup, kind=kind, text=fields["text"])
        case "created":
            return CgroupCreated(cgroup=CgroupPath(fields["cgroup"]), origin=_origin_from(fields))
        case "moved":
            return ProcessMoved(
                process=Instance(pid=fields["pid"], start_ticks=fields["start"]),
                from_cgroup=CgroupPath(fields["from"]),
                via_cgroup=CgroupPath(fields["via"]),
                to_cgroup=CgroupPath(fields["to"]),
                origin=_origin_from(fields),
            )
        case "knob":
            return KnobTurned(
                knob=_knob_from(fields),
                old_text=fields["old"],
                present_text=fields["present"],
                new_text=fields["new"],
                origin=_origin_from(fields),
            )
        case "turned":
            return KnobKept(knob=_knob_from(fields), text=fields["text"])
        case "balloon":
            return BalloonAsked(
                vm=VmId(fields["vm"]),
                process=Instance(pid=fields["pid"], start_ticks=fields["start"]),
                old_bytes=fields["old"],
                low_bytes=fields["low"],
                high_bytes=fields["high"],
                origin=_origin_from(fields),
            )
        case "slow":
            process = Instance(pid=fields["pid"], start_ticks=fields["start"])
            return SentToSlowNode(process=process, origin=_origin_from(fields))
        case "undone":
            return Undone(change=_key_from(fields), text=fields["text"])
        case "pages":
            return PagesMoved(out_bytes=fields["out"], in_bytes=fields["in"])
        case other:
            raise ValueError(f"unknown kind {other!r}")


def _origin_from(fields: dict[str, Any]) -> Origin:
    return Origin(action_id=fields["id"], at_s=fields["at"], why=fields["why"], boot=fields["boot"])


def _key_from(fields: dict[str, Any]) -> ChangeKey:
    if "pid" in fields:
        return Instance(pid=fields["pid"], start_ticks=fields["start"])
    if "slow" in fields:
        return SlowKey(process=Instance(pid=fields["slow"], start_ticks=fields["start"]))
    if "knob" in fields:
        return _knob_from(fields)
    if "vm" in fields:
        return BalloonKey(vm=VmId(fields["vm"]))
    cgroup = CgroupPath(fields["cgroup"])
    return (cgroup, LimitKind(fields["limit"])) if "limit" in fields else cgroup


def _knob_from(fields: dict[str, Any]) -> Knob:
    return Knob(kind=KnobKind(fields["knob"]), name=fields["name"])
