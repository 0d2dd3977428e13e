# SPDX-License-Identifier: Apache-2.0
"""Which function an address of a process is in: its mappings, the ELF files behind them, and the maps that JITs write.

Files are opened as the process sees them (/proc/PID/root: containers), deleted ones through /proc/PID/map_files. A JIT
says what it has compiled in /tmp/perf-PID.map (tools/perf/Documentation/jit-interface.txt: start, size, name; Python
from 3.12 on with -X perf, Node, the JVM).

Stacks are followed by frame pointers, which most of Debian's libc does not keep: a fault in malloc or memset has no
caller by that way. The top of the stack is therefore searched for return addresses that can be proven: a word counts
when the instruction before it is a call of the very function that was reached so far, or a call out of another module
(through its linkage table). So the way out of the library is found step by step; from the first function that frame
pointers know on, they are believed.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memsculpt.domain.pages import Mapping
from memsculpt.host.linux import elf

CALL_MOST_BYTES = 7
CALL_NEAR, CALL_NEAR_BYTES = 0xE8, 5  # Intel SDM vol. 2A, CALL: E8 with a distance of 32 bits
PERF_MAP_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One function of a stack."""

    function: str
    module: str


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file with code: its functions, and a descriptor to read the code through, which is the taker's to close."""

    functions: elf.Functions
    descriptor: int | None = None
    notes: tuple[str, ...] = ()


class CodeFiles(Protocol):
    """Where functions are read from."""

    def open(self, mapping: Mapping) -> OpenedFile:
        """Open the file of a mapping; one that cannot be opened has no functions, and a note says why."""
        ...

    def read_jit(self) -> list[tuple[int, int, str]]:
        """Return (start, end, name) of functions without a file, ascending."""
        ...


class ProcessFiles:
    """The files of one living process, as it sees them. Fulfils CodeFiles."""

    def __init__(self, pid: int, proc: str) -> None:
        self._pid, self._folder, self._root = pid, f"{proc}/{pid}", f"{proc}/{pid}/root"

    def open(self, mapping: Mapping) -> OpenedFile:
        """Open a file; a deleted one through /proc/PID/map_files."""
        name = mapping.name.removesuffix(" (deleted)")
        places = (f"{self._root}{name}", f"{self._folder}/map_files/{mapping.start:x}-{mapping.end:x}")
        return open_code(places[1:] if name != mapping.name else places, name, self._root)

    def read_jit(self) -> list[tuple[int, int, str]]:
        """Return what the process's JIT has written."""
        return read_perf_map(self._pid, self._folder)


def open_code(places: Sequence[str], name: str, root: str) -> OpenedFile:
    """Open the first of these places that can be; see CodeFiles.open."""
    notes: list[str] = []
    for place in places:
        try:
            functions = elf.read_functions(place, name, root)
            return OpenedFile(functions, os.open(place, os.O_RDONLY | os.O_CLOEXEC), tuple(notes))
        except OSError as error:
            notes.append(f"{name}: {error.strerror}: its functions have no names")
        except ImportError:
            notes.append("no symbols: pyelftools is not installed (pip install 'memsculpt[symbols]')")
    return OpenedFile(elf.NONE, None, tuple(notes))


def read_perf_map(pid: int, folder: str) -> list[tuple[int, int, str]]:
    """Return what the JIT of a process (`folder`: /proc/PID) has written; nothing for most, which have none."""
    for number in (pid, _own_pid(folder)):
        place = f"{folder}/root/tmp/perf-{number}.map"  # where JITs write them
        with suppress(OSError), open(place, "rb") as file:  # noqa: PTH123  a file of the process, by a name of /proc
            return parse_perf_map(file.read(PERF_MAP_MOST_BYTES))
    return []


def follows_call(code: bytes) -> bool:
    """Tell whether seven bytes of code end in a call: a near one, or one through a register or memory."""
    return len(code) == CALL_MOST_BYTES and (
        code[-CALL_NEAR_BYTES] == CALL_NEAR
        or (code[-2] == 0xFF and code[-1] & 0x38 == 0x10)
        or (code[-3] == 0xFF and code[-2] & 0xF8 == 0x50)
        or (code[-6] == 0xFF and code[-5] & 0x38 == 0x10)
    )


class Symbols:
    """Names for the addresses of one process. Reads each file once."""

    def __init__(self, pid: int, proc: str = "/proc", files: CodeFiles | None = None) -> None:
        """Take names from the process's own view of its files, or from `files`."""
        self._source: CodeFiles = ProcessFiles(pid, proc) if files is None else files
        self._mappings: list[Mapping] = []
        self._starts: list[int] = []
        self._files: dict[str, elf.Functions] = {}
        self._codes: dict[str, int] = {}
        self._jit: tuple[list[int], list[int], list[str]] = ([], [], [])
        self._known: dict[int, Frame] = {}
        self.notes: set[str] = set()

    def update(self, mappings: Sequence[Mapping]) -> None:
        """Take the mappings of now beside those of before: libraries come and go."""
        known = {(one.start, one.end, one.name) for one in self._mappings}
        self._mappings += [one for one in mappings if (one.start, one.end, one.name) not in known]
        self._mappings.sort(key=lambda one: one.start)
        self._starts = [one.start for one in self._mappings]
        self._known.clear()
        for one in mappings:
            if one.is_executable and one.name.startswith("/"):
                self._open(one)  # while the process lives: its files may be gone with it
        self._read_jit()

    def frames(self, stack: Sequence[int], words: Sequence[int] = ()) -> tuple[Frame, ...]:
        """Return the functions of a stack, innermost first. `words` is the top of the stack, as far as it was kept."""
        if not stack:
            return ()
        found = [self.frame_at(stack[0])]
        at = stack[0]
        rest = [address for address in stack[1:] if self._is_code(address)]
        for word in words:
            if rest and self._is_called_from(at, rest[0]):
                break  # frame pointers lead on from here
            if self._is_code(word) and self._is_called_from(at, word):
                found.append(self.frame_at(word - 1))
                at = word - 1
        if rest and not self._is_called_from(at, rest[0]):
            # A leaf without a frame in a program with frames: the first that they know is its caller's caller.
            target = self._target_before(rest[0])
            if target is not None and self._function_start(target) == target != self._function_start(at):
                found.append(self.frame_at(target))
        shown = {word for word in words if self._is_code(word)} & set(rest)
        if rest and shown and len(found) > 1 and at + 1 in rest:
            rest = rest[rest.index(at + 1) + 1 :]  # the search has come that far already
        found += [self.frame_at(address - 1) for address in rest]
        return tuple(found)

    def frames_of_calls(self, addresses: Sequence[int], rest: Sequence[int] = ()) -> tuple[Frame, ...]:
        """Return the functions of an unwound stack, and of `rest`, a stack by frame pointers, from where it is that."""
        last = addresses[-1]
        joined = [*addresses, *(rest[rest.index(last) + 1 :] if last in rest else ())]
        return tuple(self.frame_at(address - (row > 0)) for row, address in enumerate(joined))

    def may_be_code(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which addresses lie in mappings with code."""
        code = [one for one in self._mappings if one.is_executable]
        starts = np.array([one.start for one in code], np.uint64)
        ends = np.array([one.end for one in code], np.uint64)
        row = np.searchsorted(starts, addresses, side="right") - 1
        return (row >= 0) & (addresses < ends[np.maximum(row, 0)]) if code else np.zeros(len(addresses), np.bool_)

    def is_return(self, address: int) -> bool:
        """Tell whether an address is in code and follows a call."""
        return self._is_code(address) and self._follows_call(address)

    def code_at(self, address: int) -> tuple[str, int, int] | None:
        """Return the file that holds an address of code: its name, a descriptor, and where in it; None without one."""
        mapping = self._mapping(address)
        if mapping is None or not mapping.is_executable or mapping.name not in self._codes:
            return None
        return mapping.name, self._codes[mapping.name], address - mapping.start + mapping.offset

    def frame_at(self, address: int) -> Frame:
        """Return the function at an address; "[unknown]" in a module whose symbols are not there."""
        frame = self._known.get(address)
        if frame is None:
            frame = self._known[address] = self._find(address)
        return frame

    def close(self) -> None:
        """Release every file."""
        for descriptor in self._codes.values():
            os.close(descriptor)
        self._codes.clear()

    def _find(self, address: int) -> Frame:
        mapping = self._mapping(address)
        jit = self._jit_name(address)
        if jit is not None:
            return Frame(function=jit, module="[jit]")
        if mapping is None:
            return Frame(function="[unknown]", module="[unknown]")
        module = mapping.name.removesuffix(" (deleted)") or "[anonymous code]"
        functions = self._files.get(mapping.name, elf.NONE)
        name = functions.name_at(functions.address_of(address - mapping.start + mapping.offset))
        return Frame(function=elf.demangled(name) if name else f"[{os.path.basename(module)}]", module=module)

    def _mapping(self, address: int) -> Mapping | None:
        row = bisect_right(self._starts, address) - 1
        # Of two that were there one after the other, the later one was sorted behind.
        return self._mappings[row] if row >= 0 and address < self._mappings[row].end else None

    def _is_code(self, address: int) -> bool:
        mapping = self._mapping(address)
        return (mapping is not None and mapping.is_executable) or self._jit_name(address) is not None

    def _open(self, mapping: Mapping) -> None:
        if mapping.name in self._files:
            return
        opened = self._source.open(mapping)
        self._files[mapping.name] = opened.functions
        self.notes.update(opened.notes)
        if opened.descriptor is not None:
            self._codes[mapping.name] = opened.descriptor

    def _read_jit(self) -> None:
        rows = self._source.read_jit()
        self._jit = ([one[0] for one in rows], [one[1] for one in rows], [one[2] for one in rows])

    def _jit_name(self, address: int) -> str | None:
        starts, ends, names = self._jit
        row = bisect_right(starts, address) - 1
        return names[row] if row >= 0 and address < ends[row] else None

    def _function_start(self, address: int) -> int | None:
        """Return where in memory the function at an address begins."""
        mapping = self._mapping(address)
        if mapping is None:
            return None
        functions = self._files.get(mapping.name, elf.NONE)
        at = functions.address_of(address - mapping.start + mapping.offset)
        start = functions.start_at(at)
        return None if start is None else address - (at - start)

    def _is_called_from(self, at: int, address: int) -> bool:
        """Tell whether a return address follows a call of the function at `at`: its own, or one out of its module."""
        if not self._follows_call(address):
            return False
        target = self._target_before(address)
        start = self._function_start(at)
        if target is not None and start is not None and target == start:
            return True
        if target is not None and self._function_start(target) == target:
            return False  # a call of another function, which is over
        here, there = self._mapping(at), self._mapping(address)
        return here is None or there is None or here.name != there.name

    def _code_before(self, address: int, count: int) -> bytes:
        mapping = self._mapping(address - 1)
        if mapping is None or mapping.name not in self._codes or address - count < mapping.start:
            return b""
        return os.pread(self._codes[mapping.name], count, address - count - mapping.start + mapping.offset)

    def _follows_call(self, address: int) -> bool:
        """Tell whether the instruction before an address is a call: a near one, or one through a register or memory."""
        return follows_call(self._code_before(address, CALL_MOST_BYTES))

    def _target_before(self, address: int) -> int | None:
        """Return where the near call before an address goes, None where there is no such call."""
        code = self._code_before(address, CALL_NEAR_BYTES)
        if len(code) != CALL_NEAR_BYTES or code[0] != CALL_NEAR:
            return None
        return address + int.from_bytes(code[1:], "little", signed=True)


def parse_perf_map(content: bytes) -> list[tuple[int, int, str]]:
    """Return (start, end, name), ascending; lines that are none (cut off while written) are passed over."""
    found: dict[int, tuple[int, int, str]] = {}
    for line in content.splitlines():
        words = line.split(b" ", 2)
        if len(words) != 3:
            continue
        try:
            start, size = int(words[0], 16), int(words[1], 16)
        except ValueError:
            continue
        if 0 < size < 1 << 32 and 0 <= start < 1 << 63:
            found[start] = (
                start,
                start + size,
                words[2].decode("utf-8", "backslashreplace"),
            )  # compiled anew: the last
    return [found[start] for start in sorted(found)]


def _own_pid(folder: str) -> int:
    """Return the number that the process has in its own PID namespace (NSpid of proc_pid_status(5)), or -1."""
    with suppress(OSError), open(f"{folder}/status", "rb") as file:  # noqa: PTH123  gone already: no map, then
        for line in file:
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
    return -1
