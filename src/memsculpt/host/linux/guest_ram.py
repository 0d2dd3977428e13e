# SPDX-License-Identifier: Apache-2.0
"""Where a VM's memory lies in QEMU's address space, and what it is made of.

QMP tells the memory backends but no addresses, so the human monitor is asked, too: `gpa2hva` for the start of each
block of RAM, `info mtree -f` for which guest-physical stretch lies at which offset of it (a PC's RAM has a hole below
4 GiB for PCI). What comes of it must be mapped, writable, and by one mapping of the process, or it is not believed.

Source: QEMU, monitor/hmp-cmds.c (gpa2hva), softmmu/memory.c (mtree_print_flatview), qapi/machine.json (query-memdev).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from memsculpt.domain.pages import Mapping
from memsculpt.domain.vm import Backing, GuestRam, GuestRange, VmId
from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.maps import parse_mappings
from memsculpt.host.linux.procfs import read_file
from memsculpt.host.linux.qmp import Answer, Command, CommandError

# START-END (prio N, KIND): NAME [@OFFSET] [KVM]; both addresses are hexadecimal and inside. Names may hold anything.
_RANGE = re.compile(
    r"^ +(?P<start>[0-9a-f]{8,16})-(?P<end>[0-9a-f]{8,16}) \(prio -?\d+, (?P<kind>[a-z/]+)\): (?P<rest>.*)$"
)
_OFFSET = re.compile(r"^(?P<name>.*?)(?: @(?P<offset>[0-9a-f]{8,16}))?(?: KVM)?$")
_HVA = re.compile(r"^Host virtual address for 0x(?P<guest>[0-9a-f]+) \((?P<name>.*)\) is 0x(?P<host>[0-9a-f]+)$")
_FLAT_VIEW = re.compile(r"^FlatView #\d+")
_AS = re.compile(r'^ AS "(?P<name>[^"]*)"')
LINES_MOST = 100_000
RANGES_MOST = 4096
GUEST_MOST = 1 << 52  # x86-64's physical addresses are at most 52 bits long
PAGE = 4096

Ask = Callable[[Sequence[Command]], list[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatRange:
    """A stretch of guest-physical addresses, [start, end), and where in which block of RAM it lies."""

    start: int
    end: int
    block: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBackend:
    """A `memory-backend-*` object."""

    id: str
    size_bytes: int
    is_shared: bool
    is_mergeable: bool
    is_preallocated: bool


def parse_mtree(text: str) -> tuple[FlatRange, ...]:
    """Return the RAM of the system's flat view of `info mtree -f`, ascending. ROM and devices are left out."""
    found: list[FlatRange] = []
    is_system = False
    names_end = False
    for line in text.splitlines()[:LINES_MOST]:
        if _FLAT_VIEW.match(line):
            if found:
                break
            is_system, names_end = False, False
        elif (space := _AS.match(line)) is not None:
            is_system = is_system or space["name"] == "memory"
        elif line.startswith(" Root memory region:"):
            names_end = True
        elif is_system and names_end and (one := _RANGE.match(line)) is not None and one["kind"] == "ram":
            rest = _OFFSET.match(one["rest"])
            start, end = int(one["start"], 16), int(one["end"], 16) + 1
            if rest is not None and start < end <= GUEST_MOST and len(found) < RANGES_MOST:
                offset = int(rest["offset"] or "0", 16)
                found.append(FlatRange(start=start, end=end, block=rest["name"], offset=offset))
    return tuple(sorted(found, key=lambda one: one.start))


def parse_gpa2hva(text: str) -> tuple[int, str, int] | None:
    """Return guest address, block and host address of an answer to `gpa2hva`; None where it says no such thing."""
    found = _HVA.match(text.strip())
    return None if found is None else (int(found["guest"], 16), found["name"], int(found["host"], 16))


def parse_memdevs(answer: object) -> tuple[MemoryBackend, ...]:
    """Return the backends that `query-memdev` lists; what has not their shape is passed over."""
    found: list[MemoryBackend] = []
    for each in cast("list[object]", answer) if isinstance(answer, list) else []:
        told = cast("dict[str, Any]", each) if isinstance(each, dict) else {}
        size = told.get("size")
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= GUEST_MOST:
            found.append(
                MemoryBackend(
                    id=str(told.get("id", "")),
                    size_bytes=size,
                    is_shared=told.get("share") is True,
                    is_mergeable=told.get("merge") is True,
                    is_preallocated=told.get("prealloc") is True,
                )
            )
    return tuple(found)


def find(vm: VmId, process: Instance, ask: Ask, proc: str = "/proc") -> GuestRam:
    """Find a VM's memory. Raises Unavailable where what the monitor says cannot be so, and as `ask` does."""
    mtree, memdevs = ask([_human("info mtree -f"), Command("query-memdev")])
    flat = parse_mtree(mtree) if isinstance(mtree, str) else ()
    backends = parse_memdevs(memdevs)
    blocks = _blocks_of_ram(flat, backends)
    if not blocks:
        raise _wrong(vm, "its monitor tells no memory", _words_of(mtree))
    firsts = [one for one in flat if one.block in blocks]
    answers = ask([_human(f"gpa2hva {one.start:#x}") for one in firsts])
    try:
        mappings = parse_mappings(read_file(f"{proc}/{process.pid}/maps"))
    except OSError as error:
        raise translate(error, f"process {process.pid}") from error
    ranges: list[GuestRange] = []
    for one, answer in zip(firsts, answers, strict=True):
        told = parse_gpa2hva(answer) if isinstance(answer, str) else None
        if told is None or told[0] != one.start or told[1] != one.block:
            raise _wrong(vm, f"no host address for {one.start:#x}", _words_of(answer))
        ranges.append(GuestRange(guest_start=one.start, host_start=told[2], size_bytes=one.end - one.start))
    _check_offsets(vm, firsts, ranges)
    homes = [_home_of(vm, each, mappings) for each in ranges]
    page_bytes = _page_bytes(proc, process, homes[0])
    chosen = {one.block for one in firsts}
    ours = [one for one in backends if one.id in chosen] or list(backends)
    return GuestRam(
        id=vm,
        process=process,
        ranges=tuple(ranges),
        backing=_backing(homes[0], page_bytes),
        page_bytes=page_bytes,
        is_preallocated=any(one.is_preallocated for one in ours),
        is_mergeable=any(one.is_mergeable for one in ours),
    )


def _blocks_of_ram(flat: Sequence[FlatRange], backends: Sequence[MemoryBackend]) -> set[str]:
    """Return the names of blocks that are the guest's memory, not a device's: backends, or what lies at address 0.

    Video memory and firmware are "ram", too. A machine without a backend object names its block `pc.ram`.
    """
    named = {one.id for one in backends} | {"pc.ram", "mach-virt.ram"}
    found = {one.block for one in flat if one.block in named}
    return found or {one.block for one in flat if one.start == 0}


def _check_offsets(vm: VmId, flat: Sequence[FlatRange], ranges: Sequence[GuestRange]) -> None:
    """Refuse answers by which one block would lie at several places: offset and host address must agree."""
    bases: dict[str, int] = {}
    for one, each in zip(flat, ranges, strict=True):
        base = each.host_start - one.offset
        if bases.setdefault(one.block, base) != base:
            raise _wrong(vm, f"block {one.block} would lie at {bases[one.block]:#x} and at {base:#x}", "")


def _home_of(vm: VmId, one: GuestRange, mappings: Sequence[Mapping]) -> Mapping:
    end = one.host_start + one.size_bytes
    for each in mappings:
        if each.start <= one.host_start and end <= each.end and each.is_writable and not each.is_executable:
            return each
    raise _wrong(vm, f"{one.host_start:#x}-{end:#x} is no writable mapping of process", "")


def _backing(home: Mapping, page_bytes: int) -> Backing:
    if page_bytes > PAGE:
        return Backing.HUGETLB
    if not home.is_shared and not home.is_file:
        return Backing.PRIVATE
    if home.name.startswith("/memfd:"):
        return Backing.MEMFD
    return Backing.SHARED if home.name.startswith("/dev/zero") else Backing.FILE


def _page_bytes(proc: str, process: Instance, home: Mapping) -> int:
    """Return the size of the pages that a mapping is made of (KernelPageSize of its smaps)."""
    try:
        content = read_file(f"{proc}/{process.pid}/smaps")
    except OSError as error:
        raise translate(error, f"process {process.pid}") from error
    head = f"{home.start:08x}-{home.end:08x} ".encode()
    _, _, rest = content.partition(head)
    found = re.search(rb"KernelPageSize: +(\d+) kB", rest)
    return int(found[1]) * 1024 if found is not None else PAGE


def _human(line: str) -> Command:
    return Command("human-monitor-command", {"command-line": line})


def _words_of(answer: Answer) -> str:
    return answer.words if isinstance(answer, CommandError) else str(answer).strip()[:100]


def _wrong(vm: VmId, problem: str, told: str) -> Unavailable:
    return Unavailable(
        place=f"memory of VM {vm}",
        problem=f"{problem}: {told}" if told else problem,
        fix="none known; the VM is not sculpted. Report it with these words and QEMU's version",
    )
