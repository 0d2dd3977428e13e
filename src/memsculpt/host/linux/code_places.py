# SPDX-License-Identifier: Apache-2.0
"""Addresses of processes -> places in code (domain/growth.py), which stay true when the process has ended.

The agent does this for every sample, so it reads no symbols: of each file only what tells its content apart, and of its
code the few bytes that tell a return address from other words of a stack.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Int64
from memsculpt.domain.growth import KINDS, MODULE_SHIFT, Module
from memsculpt.domain.pages import Mapping
from memsculpt.host.linux.build_id import read_identity
from memsculpt.host.linux.symbols import CALL_MOST_BYTES, follows_call

UInt64 = npt.NDArray[np.uint64]

MODULES_MOST = 4096
OPENED_MOST = 32
RETURNS_MOST = 8192
OFFSET_MASK = (1 << MODULE_SHIFT) - 1
ANONYMOUS, SHARED, FILE = (KINDS.index(one) for one in ("anonymous", "shared", "file"))
SHARED_NAMES = ("/dev/zero", "/memfd:", "/SYSV", "/dev/shm/")  # noqa: S108  shared memory, by the names of its files


class Modules:
    """All files with code that were met. Number 0 is what is not known, or came when there were too many."""

    def __init__(self) -> None:
        self._modules = [Module(name="[unknown]")]
        self._number_of: dict[tuple[str, str, int], int] = {}
        self._identity_of: dict[tuple[int, int, int], str] = {}
        self._opened: OrderedDict[int, int] = OrderedDict()
        self._is_return: dict[int, bool] = {}

    def all(self) -> tuple[Module, ...]:
        """Return every module, by number."""
        return tuple(self._modules)

    @property
    def is_full(self) -> bool:
        """Tell whether no more can be told apart."""
        return len(self._modules) >= MODULES_MOST

    def number_of(self, mapping: Mapping, pid: int, proc: str) -> int:
        """Return the number of an executable mapping's module."""
        if not mapping.name.startswith("/"):
            is_own = not mapping.name.startswith("[v")  # [vdso], [vsyscall]: the kernel's, the same for all
            return self._number(Module(name=mapping.name or "[anonymous code]", pid=pid if is_own else 0))
        name = mapping.name.removesuffix(" (deleted)")
        places = [f"{proc}/{pid}/root{name}", name]
        if name != mapping.name:
            places = [f"{proc}/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"]
        identity = ""
        with suppress(OSError):  # gone meanwhile: known by its name alone
            identity = self._identity(places[0])
        return self._number(Module(name=name, identity=identity, places=tuple(places)))

    def is_return(self, place: int) -> bool:
        """Tell whether a place follows a call: only then it can be a return address."""
        known = self._is_return.get(place)
        if known is None:
            if len(self._is_return) >= RETURNS_MOST:
                self._is_return.clear()
            known = self._is_return[place] = follows_call(self._code_before(place))
        return known

    def close(self) -> None:
        """Release every file."""
        while self._opened:
            os.close(self._opened.popitem()[1])

    def _number(self, module: Module) -> int:
        key = (module.name, module.identity, module.pid)
        number = self._number_of.get(key)
        if number is None:
            if len(self._modules) >= MODULES_MOST:
                return 0
            number = self._number_of[key] = len(self._modules)
            self._modules.append(module)
        return number

    def _identity(self, place: str) -> str:
        facts = os.stat(place)
        key = (facts.st_dev, facts.st_ino, facts.st_mtime_ns)
        known = self._identity_of.get(key)
        if known is None:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                known = read_identity(descriptor)
            finally:
                os.close(descriptor)
            if len(self._identity_of) < MODULES_MOST:
                self._identity_of[key] = known
        return known

    def _code_before(self, place: int) -> bytes:
        number, offset = place >> MODULE_SHIFT, place & OFFSET_MASK
        descriptor = self._opened.get(number)
        try:
            if descriptor is None:
                descriptor = os.open(self._modules[number].places[0], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                if len(self._opened) >= OPENED_MOST:
                    os.close(self._opened.popitem(last=False)[1])
                self._opened[number] = descriptor
            self._opened.move_to_end(number)
            return os.pread(descriptor, CALL_MOST_BYTES, max(0, offset - CALL_MOST_BYTES))
        except (OSError, IndexError):  # no file behind it, or gone with the process
            return b""


class ProcessPlaces:
    """One process: which code is where, and which memory is a file's."""

    def __init__(self, mappings: Iterable[Mapping], modules: Modules, pid: int, proc: str = "/proc") -> None:
        code = [one for one in mappings if one.is_executable]
        self._starts = np.array([one.start for one in code], np.uint64)
        self._ends = np.array([one.end for one in code], np.uint64)
        self._bases = np.array([_base(one, modules.number_of(one, pid, proc)) for one in code], np.int64)
        backed = [one for one in mappings if one.is_file]
        self._file_starts = np.array([one.start for one in backed], np.int64)
        self._file_ends = np.array([one.end for one in backed], np.int64)
        kinds = [SHARED if one.name.startswith(SHARED_NAMES) else FILE for one in backed]
        self._file_kinds = np.array(kinds, np.int64)

    def places(self, addresses: UInt64) -> Int64:
        """Return places in code, 0 where there is none; the shape stays."""
        if not len(self._starts):
            return np.zeros(addresses.shape, np.int64)
        row = np.searchsorted(self._starts, addresses, side="right") - 1
        inside = (row >= 0) & (addresses < self._ends[np.maximum(row, 0)])
        row = np.maximum(row, 0)
        return np.where(inside, self._bases[row] + (addresses - self._starts[row]).astype(np.int64), 0)

    def kinds(self, addresses: Int64) -> Int64:
        """Return the kind of the memory at addresses of data, anonymous where no file is mapped."""
        if not len(self._file_starts):
            return np.full(addresses.shape, ANONYMOUS, np.int64)
        row = np.maximum(np.searchsorted(self._file_starts, addresses, side="right") - 1, 0)
        inside = (addresses >= self._file_starts[row]) & (addresses < self._file_ends[row])
        return np.where(inside, self._file_kinds[row], ANONYMOUS)


def _base(mapping: Mapping, number: int) -> int:
    """Return the place of a mapping's first byte."""
    is_file = mapping.name.startswith("/")
    offset = mapping.offset if is_file else 0 if mapping.name.startswith("[v") else mapping.start
    return number << MODULE_SHIFT | offset & OFFSET_MASK if number else 0
