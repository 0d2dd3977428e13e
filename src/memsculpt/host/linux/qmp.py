# SPDX-License-Identifier: Apache-2.0
"""QMP, QEMU's machine protocol, without its socket: bytes in, bytes out, and no clock.

    GREETING  ->  NEGOTIATING  ->  READY        feed() takes one step after another; close() or an error ends it

Source: QEMU, docs/interop/qmp-spec.rst. A peer may be anything: whatever it says costs bounded memory, and either it
is understood or ProtocolError tells why it is given up. docs/decisions/0080 has the reasons for a client of our own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, cast

import msgspec

MESSAGE_MOST_BYTES = 4 << 20  # `info mtree -f` of a large machine is 100 KiB
EVENTS_KEPT_MOST = 64

Answer: TypeAlias = "Any | CommandError"


class ProtocolError(Exception):
    """The peer does not speak QMP as we know it; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class CommandError:
    """QEMU's refusal of one command."""

    kind: str  # "CommandNotFound", "DeviceNotActive", "GenericError", ...
    words: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command and its arguments."""

    name: str
    arguments: Mapping[str, Any] | None = None
    begin: bytes = field(init=False, repr=False, compare=False)  # as it is sent, but for its number

    def __post_init__(self) -> None:
        more = "" if self.arguments is None else f', "arguments": {json.dumps(self.arguments)}'
        object.__setattr__(self, "begin", f'{{"execute": {json.dumps(self.name)}{more}, "id": '.encode())


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the VM, unasked."""

    name: str
    data: Mapping[str, Any]


class Stage(Enum):
    """How far the conversation is."""

    GREETING = "greeting"
    NEGOTIATING = "negotiating"
    READY = "ready"


class Session:
    """One conversation; belongs to one thread."""

    def __init__(self) -> None:
        self.stage = Stage.GREETING
        self.version = ""
        self.events: list[Event] = []  # the oldest EVENTS_KEPT_MOST that nobody has taken yet
        self.event_count = 0
        self._rest = bytearray()  # what came after the last end of a line
        self._lines: list[bytes] = []  # of a message that is printed over several
        self._size_bytes = 0  # of those
        self._next_id = 1
        self._batch: list[int] = []
        self._answers: dict[int, Answer] = {}

    @property
    def is_answered(self) -> bool:
        """Whether nothing is asked that was not answered."""
        return len(self._answers) == len(self._batch)

    def ask(self, commands: Sequence[Command]) -> bytes:
        """Return the bytes that ask `commands`, all at once; `take` gives the answers when `is_answered`."""
        if self.stage is not Stage.READY or not self.is_answered:
            raise ValueError("one batch after another, and only when ready")
        lines: list[bytes] = []
        self._batch, self._answers = [], {}
        for command in commands:
            lines.append(b"%b%d}" % (command.begin, self._next_id))
            self._batch.append(self._next_id)
            self._next_id += 1
        return b"\n".join(lines) + b"\n"

    def take(self) -> list[Answer]:
        """Return the answers of the last batch, in the order of the questions."""
        answers = [self._answers[one] for one in self._batch]
        self._batch, self._answers = [], {}
        return answers

    def feed(self, content: bytes) -> bytes:
        """Take what the peer sent; return what must be sent at once, mostly nothing. Raises ProtocolError."""
        *lines, rest = content.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        reply = b""
        for line in lines:
            message = self._message_of(line.rstrip(b"\r"))
            if message is not None:
                reply += self._understand(message)
        if len(self._rest) + self._size_bytes > MESSAGE_MOST_BYTES:
            raise ProtocolError(f"sends a message of more than {MESSAGE_MOST_BYTES >> 20} MiB")
        return reply

    def _message_of(self, line: bytes) -> dict[str, Any] | None:
        """Return the message that a line ends: itself, or with `-qmp-pretty` all from a line `{` to a line `}`."""
        if self._lines or line == b"{":
            self._lines.append(line)
            self._size_bytes += len(line)
            if line != b"}":
                return None
            line, self._lines, self._size_bytes = b"".join(self._lines), [], 0
        if not line:
            return None
        try:
            message = _json_of(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"says what is no JSON: {line[:60]!r}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"says what is no QMP: {line[:60]!r}")
        return cast("dict[str, Any]", message)

    def _understand(self, message: dict[str, Any]) -> bytes:
        if self.stage is Stage.GREETING:
            self.version = _version_of(message)
            self.stage = Stage.NEGOTIATING
            return b'{"execute": "qmp_capabilities", "id": 0}\n'
        if isinstance(message.get("event"), str):
            self.event_count += 1
            if len(self.events) < EVENTS_KEPT_MOST:
                data = message.get("data")
                self.events.append(
                    Event(message["event"], cast("dict[str, Any]", data) if isinstance(data, dict) else {})
                )
            return b""
        if "return" not in message and "error" not in message:
            raise ProtocolError(f"says what is neither answer nor event: {str(message)[:60]}")
        number = message.get("id")
        answer: Answer = message["return"] if "return" in message else _error_of(message["error"])
        if self.stage is Stage.NEGOTIATING:
            if isinstance(answer, CommandError):
                raise ProtocolError(f"refuses to negotiate: {answer.words}")
            self.stage = Stage.READY
            return b""
        if not isinstance(number, int) or number not in self._batch or number in self._answers:
            raise ProtocolError(f"answers what was not asked: {str(message)[:60]}")
        self._answers[number] = answer
        return b""


def _json_of(line: bytes) -> object:
    """Return what a line of JSON means. Raises ValueError, RecursionError.

    The faster reader is the stricter one: a NaN, or half of a pair of surrogates, is left to the other.
    """
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return json.loads(line)


def _version_of(message: dict[str, Any]) -> str:
    """Return QEMU's version from its greeting. Any version will do that greets: what it lacks it refuses by name."""
    try:
        found = message["QMP"]["version"]["qemu"]
        return f"{int(found['major'])}.{int(found['minor'])}.{int(found['micro'])}"
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"greets with what is no QMP: {str(message)[:60]}") from error


def _error_of(error: object) -> CommandError:
    if not isinstance(error, dict):
        return CommandError("", str(error)[:200])
    told = cast("dict[str, Any]", error)
    return CommandError(str(told.get("class", "")), str(told.get("desc", ""))[:500])
