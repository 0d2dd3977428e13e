# SPDX-License-Identifier: Apache-2.0
"""Functions of an ELF file by address, from its symbol tables and its separate debug file (by pyelftools).

Where debug files are: by build id below /usr/lib/debug/.build-id, by .gnu_debuglink beside the file, in .debug beside
it, and below /usr/lib/debug (GDB's manual, "Separate Debug Files").
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEBUG_ROOT = "usr/lib/debug"


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """Functions of one file; addresses as the file has them, ascending."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    names: tuple[str, ...]
    segments: tuple[tuple[int, int, int], ...]  # (file offset, bytes in the file, address)

    def name_at(self, address: int) -> str | None:
        """Return the function that holds an address of the file."""
        row = bisect_right(self.starts, address) - 1
        return self.names[row] if row >= 0 and address < self.ends[row] else None

    def start_at(self, address: int) -> int | None:
        """Return where that function begins."""
        row = bisect_right(self.starts, address) - 1
        return self.starts[row] if row >= 0 and address < self.ends[row] else None

    def address_of(self, offset: int) -> int:
        """Return the address of a place in the file."""
        for begin, size, address in self.segments:
            if begin <= offset < begin + size:
                return address + offset - begin
        return offset


NONE = Functions(starts=(), ends=(), names=(), segments=())


def read_functions(path: str, name: str = "", root: str = "/") -> Functions:
    """Return the functions of a file; `name` is its path in the process's own `root`, where debug files are looked for.

    What is no ELF file, or a broken one, has none. Raises OSError, ImportError (pyelftools is an extra).
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:  # noqa: PTH123  a file of the process, by a name of /proc
        try:
            elf: Any = ELFFile(file)
            segments = tuple(
                (int(one["p_offset"]), int(one["p_filesz"]), int(one["p_vaddr"]))
                for one in elf.iter_segments()
                if one["p_type"] == "PT_LOAD"
            )
            found = dict(_functions(elf))
            for candidate in _debug_files(elf, name, root):
                found |= _functions_of_debug_file(candidate)
        except (ELFError, ValueError, KeyError, IndexError, AttributeError, UnicodeDecodeError):
            return NONE  # cut off or made up: what pyelftools stumbles over has no names for us
    rows = sorted((start, size, each) for start, (size, each) in found.items())
    starts = [row[0] for row in rows]
    after = [*starts[1:], *(start + 4096 for start in starts[-1:])]
    return Functions(
        starts=tuple(starts),
        # Assembly gives no size: such a function ends where the next one begins.
        ends=tuple(start + size if size else end for (start, size, _), end in zip(rows, after, strict=True)),
        names=tuple(row[2] for row in rows),
        segments=segments,
    )


def _functions(elf: Any) -> Iterator[tuple[int, tuple[int, str]]]:
    for section in elf.iter_sections():
        if section["sh_type"] not in {"SHT_SYMTAB", "SHT_DYNSYM"}:
            continue
        for symbol in section.iter_symbols():
            kind = symbol["st_info"]["type"]
            if kind in {"STT_FUNC", "STT_LOOS"} and symbol["st_shndx"] != "SHN_UNDEF" and symbol.name:
                yield int(symbol["st_value"]), (int(symbol["st_size"]), symbol.name)


def _functions_of_debug_file(path: Path) -> dict[int, tuple[int, str]]:
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            return dict(_functions(ELFFile(file)))
    except OSError:  # absent, most often: the file's own table has to do
        return {}


def _debug_files(elf: Any, name: str, root: str) -> Iterator[Path]:
    note = elf.get_section_by_name(".note.gnu.build-id")
    if note is not None:
        for one in note.iter_notes():
            digits = str(one["n_desc"])
            yield Path(root, DEBUG_ROOT, ".build-id", digits[:2], f"{digits[2:]}.debug")
    link = elf.get_section_by_name(".gnu_debuglink")
    if link is not None and name:
        file = os.fsdecode(bytes(link.data()).split(b"\0", 1)[0])
        folder = os.path.dirname(name).lstrip("/")
        yield Path(root, folder, ".debug", file)
        yield Path(root, DEBUG_ROOT, folder, file)
        if file != os.path.basename(name):
            yield Path(root, folder, file)


def demangled(name: str) -> str:
    """Return a C++ or Rust function's name as its author wrote it, others as they are."""
    if name.startswith("_R") or (name.startswith("_ZN") and "17h" in name and name.endswith("E")):
        shown = _rust(name)
        if shown is not None:
            return shown
    if name.startswith("_Z"):
        return _cpp(name)
    return name


def _rust(name: str) -> str | None:
    try:
        import rust_demangler  # pyright: ignore[reportMissingTypeStubs]
        from rust_demangler.rust import TypeNotFoundError  # pyright: ignore[reportMissingTypeStubs]
        from rust_demangler.rust_legacy import UnableToLegacyDemangle  # pyright: ignore[reportMissingTypeStubs]
        from rust_demangler.rust_v0 import UnableTov0Demangle  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return None
    try:
        shown: str = rust_demangler.demangle(name)
    except (TypeNotFoundError, UnableToLegacyDemangle, UnableTov0Demangle, ValueError, LookupError, TypeError):
        return None  # not Rust's, whatever the library stumbled over
    head, mark, tail = shown.rpartition("::h")
    return head if mark and len(tail) == 16 else shown


def _cpp(name: str) -> str:
    try:
        import cxxfilt  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return name
    try:
        shown: str = cxxfilt.demangle(name)
    except (cxxfilt.InvalidName, cxxfilt.LibraryNotFound):
        return name
    return shown
