# SPDX-License-Identifier: Apache-2.0
"""How to get from an address in a function to its caller: the call frame information of ELF files (x86-64).

Every function that is compiled for C++'s exceptions, which in distributions is every function, says in .eh_frame where
its caller's stack begins and what it has saved (DWARF 5, 6.4; the form: System V ABI, AMD64, 4.2.4; LSB Core, 10.6).
.eh_frame_hdr is a table to find a function by bisection, so only those that stand in a stack are ever decoded.

Of its rules those are understood that the stack and frame pointers need. What compilers write by hand beside them, such
as the frame of a signal, is not: such a stack ends there, and who asked goes on by other means.
"""

import os
import re
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RBP, RSP, RETURN = 6, 7, 16  # DWARF's numbers of registers (System V ABI, AMD64, figure 3.36)
PT_LOAD, PT_GNU_EH_FRAME = 1, 0x6474E550
TABLE_ENCODING = 0x3B  # relative to the table, 4 bytes: what every linker writes
CONTENT_MOST_BYTES = 64 << 20
OFFSET_MOST = 1 << 31
NUMBER_MOST_BITS = 70
# How a linkage table's entries say that some of them have pushed a word: rsp + n + 8 * ((rip & 15) >= m)
LINKAGE = re.compile(rb"\x77(.)\x80\x00\x3f\x1a([\x30-\x4f])\x2a\x33\x24\x22", re.DOTALL)
_BROKEN = (struct.error, IndexError, ValueError, KeyError)


class Rule(NamedTuple):
    """Where a caller's things are, of one address in a function."""

    base: int  # RSP or RBP, to which `cfa_offset` is added; RETURN: there is no caller
    cfa_offset: int
    return_offset: int  # from there to the return address
    rbp_offset: int  # and to the caller's frame pointer; 0 where that is still in its register, 1 where it is lost


END = Rule(RETURN, 0, 0, 0)


@dataclass(slots=True)
class Common:
    """A CIE: what many functions share."""

    code_factor: int
    data_factor: int
    encoding: int
    has_length: bool  # of augmentation data
    is_signal: bool
    program: bytes


@dataclass(slots=True)
class State:
    """What the instructions have set so far; `return_offset` None: there is no caller."""

    base: int | None = None
    cfa_offset: int = 0
    return_offset: int | None = None
    rbp_offset: int = 0


class FrameTable:
    """The call frame information of one file."""

    def __init__(self, table: "_Part", frames: "_Part", loaded: "list[tuple[int, int, int]]") -> None:
        """Take both parts, and (offset, address, bytes) of what is loaded. Raises ValueError, struct.error: broken."""
        self._frames, self._loaded = frames, loaded
        version, _, count_encoding, encoding = table.content[:4]
        if version != 1 or encoding != TABLE_ENCODING or count_encoding != 3:
            raise ValueError("a table of another form")
        (count,) = struct.unpack_from("<I", table.content, 8)
        rows = np.frombuffer(table.content, "<i4", 2 * count, 12).astype(np.int64).reshape(-1, 2) + table.address
        self._starts: npt.NDArray[np.int64] = np.ascontiguousarray(rows[:, 0])
        self._entries: npt.NDArray[np.int64] = rows[:, 1]
        self._commons: dict[int, Common] = {}

    def address_of(self, offset: int) -> int:
        """Return the address of a place in the file, -1 where it has none."""
        return next((offset - at + address for at, address, size in self._loaded if at <= offset < at + size), -1)

    def rule_at(self, address: int) -> Rule | None:
        """Return how to get on from an address of the file; None where that is not known."""
        row = int(np.searchsorted(self._starts, address, side="right")) - 1
        if row < 0:
            return None
        try:
            return self._decode(int(self._entries[row]) - self._frames.address, address)
        except _BROKEN:  # a file can hold anything
            return None

    def _decode(self, at: int, address: int) -> Rule | None:
        content = self._frames.content
        length, back = struct.unpack_from("<II", content, at)
        end = at + 4 + length
        common = self._common(at + 4 - back)
        begin, place = _pointer(content, at + 8, common.encoding, self._frames.address)
        size, place = _pointer(content, place, common.encoding & 0x0F, 0)
        if not begin <= address < begin + size or common.is_signal:
            return None
        if common.has_length:
            skipped, place = _uleb(content, place)
            place += skipped
        state = State()
        is_known = run(common.program, common, state, State(), (0, 1, address))
        initial = replace(state)
        if not is_known or not run(content[place:end], common, state, initial, (begin, address + 1, address)):
            return None
        if state.return_offset is None:
            return END
        offsets = state.cfa_offset, state.return_offset, state.rbp_offset
        if state.base not in {RBP, RSP} or max(map(abs, offsets)) > OFFSET_MOST:
            return None
        return Rule(state.base, *offsets)

    def _common(self, at: int) -> Common:
        known = self._commons.get(at)
        if known is not None:
            return known
        content = self._frames.content
        length, number = struct.unpack_from("<II", content, at)
        if number != 0 or at < 0:
            raise ValueError("no CIE")
        end = at + 4 + length
        text_end = content.index(0, at + 9)
        text = content[at + 9 : text_end].decode("ascii", "replace")
        code_factor, place = _uleb(content, text_end + 1)
        data_factor, place = _sleb(content, place)
        register, place = _uleb(content, place)
        if register != RETURN:
            raise ValueError("returns by another register")
        encoding = 0
        if text.startswith("z"):
            size, place = _uleb(content, place)
            after = place + size
            for letter in text[1:]:
                if letter == "R":
                    encoding = content[place]
                    place += 1
                elif letter == "L":
                    place += 1
                elif letter == "P":
                    _, place = _pointer(content, place + 1, content[place] & 0x0F, 0)
            place = after
        made = Common(code_factor, data_factor, encoding, text.startswith("z"), "S" in text, content[place:end])
        self._commons[at] = made
        return made


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a file, and the address that its first byte has."""

    content: bytes
    address: int


def read_table(descriptor: int) -> FrameTable | None:
    """Return the call frame information of an open file, None where it has none or is broken. Raises OSError."""
    head = os.pread(descriptor, 64, 0)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return None
    (at,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size != 56:
        return None
    segments: list[tuple[int, int, int, int]] = []  # type, offset, address, bytes in the file
    rows = os.pread(descriptor, size * count, at)
    for begin in range(0, len(rows) - size + 1, size):
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", rows, begin)
        segments.append((kind, offset, address, in_file))
    try:
        (hdr,) = (one for one in segments if one[0] == PT_GNU_EH_FRAME)
        table = _Part(os.pread(descriptor, min(hdr[3], CONTENT_MOST_BYTES), hdr[1]), hdr[2])
        frames_at, _ = _pointer(table.content, 4, table.content[1], hdr[2])
        kind, offset, address, in_file = next(
            one for one in segments if one[0] == PT_LOAD and one[2] <= frames_at < one[2] + one[3]
        )
        skipped = frames_at - address
        content = os.pread(descriptor, min(in_file - skipped, CONTENT_MOST_BYTES), offset + skipped)
        loaded = [one[1:] for one in segments if one[0] == PT_LOAD]
        return FrameTable(table, _Part(content, frames_at), loaded)
    except (*_BROKEN, StopIteration):
        return None


def run(program: bytes, common: Common, state: State, initial: State, span: tuple[int, int, int]) -> bool:
    """Execute instructions on the state; False where one is not understood (DWARF 5, 6.4.2). Pure but for the state.

    `span`: the address of the first, the one from which on they do not matter, and the one that is asked for.
    """
    location, end, address = span
    kept: list[State] = []
    at = 0
    while at < len(program):
        code = program[at]
        at += 1
        high, low = code & 0xC0, code & 0x3F
        if high == 0x40:
            location += low * common.code_factor
        elif high == 0x80:
            value, at = _uleb(program, at)
            _save(state, low, value * common.data_factor)
        elif high == 0xC0:
            _restore(state, low, initial)
        elif code in _ADVANCES:
            form, size = _ADVANCES[code]
            location += struct.unpack_from(form, program, at)[0] * common.code_factor
            at += size
        elif code == 0x0A:
            kept.append(replace(state))
        elif code == 0x0B:
            one = kept.pop()
            state.base, state.cfa_offset = one.base, one.cfa_offset
            state.return_offset, state.rbp_offset = one.return_offset, one.rbp_offset
        elif code == 0x0F:
            size, at = _uleb(program, at)
            linkage = LINKAGE.fullmatch(program[at : at + size])
            at += size
            state.base = None
            if linkage is not None:
                pushed = 8 * (address & 15 >= linkage[2][0] - 0x30)
                state.base, state.cfa_offset = RSP, linkage[1][0] + pushed
        else:
            at = _other(program, at, code, common, state, initial)
            if at < 0:
                return False
        if location >= end:
            return True
    return True


_ADVANCES = {0x02: ("<B", 1), 0x03: ("<H", 2), 0x04: ("<I", 4)}  # DW_CFA_advance_loc1, 2, 4


def _other(program: bytes, at: int, code: int, common: Common, state: State, initial: State) -> int:
    """Execute what comes more rarely; return where to go on, -1 where it is not understood."""
    if code == 0x00:  # DW_CFA_nop
        return at
    first, at = _uleb(program, at)
    if code in {0x2E, 0x0E}:  # DW_CFA_GNU_args_size, DW_CFA_def_cfa_offset
        state.cfa_offset = state.cfa_offset if code == 0x2E else first
        return at
    if code == 0x0D:  # DW_CFA_def_cfa_register
        state.base = first
        return at
    if code == 0x06:  # DW_CFA_restore_extended
        _restore(state, first, initial)
        return at
    if code == 0x07:  # DW_CFA_undefined
        if first == RETURN:
            state.return_offset = None
        elif first == RBP:
            state.rbp_offset = 1
        return at
    if code == 0x08:  # DW_CFA_same_value
        if first == RBP:
            state.rbp_offset = 0
        return at
    if code in {0x10, 0x16}:  # DW_CFA_expression, DW_CFA_val_expression
        size, at = _uleb(program, at)
        if first == RBP:
            state.rbp_offset = 1
        return at + size if first != RETURN else -1
    second, at = _uleb(program, at) if code in {0x05, 0x09, 0x0C, 0x14} else _sleb(program, at)
    if code in {0x05, 0x11}:  # DW_CFA_offset_extended, and _sf
        _save(state, first, second * common.data_factor)
    elif code in {0x0C, 0x12}:  # DW_CFA_def_cfa, and _sf
        state.base, state.cfa_offset = first, second if code == 0x0C else second * common.data_factor
    elif code in {0x09, 0x14, 0x15}:  # DW_CFA_register, DW_CFA_val_offset, and _sf
        if first == RETURN:
            return -1
        if first == RBP:
            state.rbp_offset = 1
    else:
        return -1
    return at


def _save(state: State, register: int, offset: int) -> None:
    if register == RETURN:
        state.return_offset = offset
    elif register == RBP:
        state.rbp_offset = offset


def _restore(state: State, register: int, initial: State) -> None:
    if register == RETURN:
        state.return_offset = initial.return_offset
    elif register == RBP:
        state.rbp_offset = initial.rbp_offset


_FORMS = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


def _pointer(content: bytes, at: int, encoding: int, address: int) -> tuple[int, int]:
    """Return an encoded pointer and what is behind it; `address` is that of the content (LSB Core, 10.5)."""
    if encoding & 0x70 not in {0x00, 0x10}:
        raise ValueError("a pointer of another form")
    form = _FORMS[encoding & 0x0F]
    (value,) = struct.unpack_from(form, content, at)
    return value + (address + at if encoding & 0x70 else 0), at + struct.calcsize(form)


def _uleb(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > NUMBER_MOST_BITS:
            raise ValueError("a number without an end")
        if byte < 0x80:
            return value, at


def _sleb(content: bytes, at: int) -> tuple[int, int]:
    begin = at
    value, at = _uleb(content, at)
    bits = 7 * (at - begin)
    return (value - (1 << bits) if content[at - 1] & 0x40 else value), at
