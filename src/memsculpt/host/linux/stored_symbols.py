# SPDX-License-Identifier: Apache-2.0
"""Names for places in code that were sampled by the agent: heavy, so for a short-lived worker.

Each module gets an address range of its own, far above any process's; within it a place in the file lies as far from
another as in memory. So stacks are followed by symbols.py as those of a living process.
"""

import os
from collections.abc import Sequence

from memsculpt.domain.growth import MODULE_SHIFT, GrowthStack, Module, SampledStack
from memsculpt.domain.pages import Mapping
from memsculpt.host.linux import elf
from memsculpt.host.linux.build_id import read_identity
from memsculpt.host.linux.symbols import OpenedFile, Symbols, open_code, read_perf_map

FIRST_ADDRESS = 1 << 62  # user space ends at 2**47, or 2**56 with five levels


class StoredFiles:
    """The files of modules, if they still have the content that was sampled. Fulfils CodeFiles."""

    def __init__(self, modules: Sequence[Module], used: Sequence[int], proc: str = "/proc") -> None:
        self._modules, self._used, self._proc = modules, used, proc
        self._number_of = {name_of(modules, number): number for number in used}

    def mappings(self) -> list[Mapping]:
        """Return a mapping for each module."""
        return [
            Mapping(
                start=address_of(number << MODULE_SHIFT),
                end=address_of((number + 1) << MODULE_SHIFT),
                name=name_of(self._modules, number),
                is_shared=False,
                is_file=True,
                is_executable=True,
            )
            for number in self._used
        ]

    def open(self, mapping: Mapping) -> OpenedFile:
        """Open the first place that has the very content; a simulated program has its functions with it."""
        module = self._modules[self._number_of[mapping.name]]
        if module.functions:
            starts, ends, names = (tuple(column) for column in zip(*module.functions, strict=True))
            return OpenedFile(elf.Functions(starts=starts, ends=ends, names=names, segments=()))
        for place in module.places:
            root = place.removesuffix(module.name) if place.endswith(module.name) else ""
            if _has_identity(place, module.identity):
                return open_code([place], module.name, root or "/")
        what = "is not to be had any more, or was replaced"
        return OpenedFile(elf.NONE, None, (f"{module.name}: {what}: its functions have no names",))

    def read_jit(self) -> list[tuple[int, int, str]]:
        """Return what JITs of living processes have written, at the addresses that places have here."""
        rows: list[tuple[int, int, str]] = []
        for number in self._used:
            module = self._modules[number]
            if module.pid:
                base = address_of(number << MODULE_SHIFT)
                for start, end, name in read_perf_map(module.pid, f"{self._proc}/{module.pid}"):
                    if end < 1 << MODULE_SHIFT:
                        rows.append((base + start, base + end, name))
        return sorted(rows)


def name_stacks(
    modules: tuple[Module, ...], stacks: tuple[SampledStack, ...]
) -> tuple[tuple[GrowthStack, ...], tuple[str, ...]]:
    """Return the stacks with names, those that are alike by now as one, and notes on what could not be named."""
    used = sorted({place >> MODULE_SHIFT for one in stacks for place in (*one.frames, *one.words)} - {0})
    files = StoredFiles(modules, used)
    symbols = Symbols(0, files=files)
    try:
        symbols.update(files.mappings())
        sums: dict[tuple[tuple[tuple[str, str], ...], str], list[float]] = {}
        for one in stacks:
            found = symbols.frames([address_of(one_) for one_ in one.frames], [address_of(word) for word in one.words])
            frames = tuple((frame.function, frame.module) for frame in found)
            row = sums.setdefault((frames, one.kind), [0.0] * 5)
            columns = (
                one.touched_bytes,
                one.held_bytes,
                one.sample_count,
                one.touched_variance,
                one.held_variance,
            )
            for column, value in enumerate(columns):
                row[column] += value
    finally:
        symbols.close()
    named = [
        GrowthStack(
            frames=frames,
            kind=kind,
            touched_bytes=int(row[0]),
            held_bytes=int(row[1]),
            fault_count=int(row[2]),
            touched_variance=row[3],
            held_variance=row[4],
        )
        for (frames, kind), row in sums.items()
    ]
    return tuple(sorted(named, key=lambda one: (-one.touched_bytes, one.frames))), tuple(sorted(symbols.notes))


def address_of(place: int) -> int:
    """Return the address that a place has here; 0, which is no code, where it is not known."""
    return FIRST_ADDRESS + place if place >> MODULE_SHIFT else 0


def name_of(modules: Sequence[Module], number: int) -> str:
    """Return a module's name, told apart from another file's of the same path."""
    module = modules[number]
    alike = any(one.name == module.name for one in modules[:number])
    mark = f"pid {module.pid}" if module.pid else module.identity[:12]
    return f"{module.name} ({mark})" if alike else module.name


def _has_identity(place: str, identity: str) -> bool:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return read_identity(descriptor) == identity
    except OSError:
        return False
    finally:
        os.close(descriptor)
