# SPDX-License-Identifier: Apache-2.0
"""Which source tells of touched pages: the best that works here, and why the better ones do not.

A new source is a file in host/linux and a line in SOURCES.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.protocol import PageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A source that was tried and does not work here."""

    name: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The source in use, and what would be better, best first."""

    source: PageSource
    passed: tuple[Passed, ...]


def _bpf() -> PageSource:
    from memsculpt.host.linux.pagewalk import WalkingSource

    return WalkingSource()


def _smaps() -> PageSource:
    from memsculpt.host.linux.smaps import SmapsSource

    return SmapsSource()


# Best first: every page; every page, dearer; stretches of addresses; mappings. (A kernel module will come before them.)
SOURCES: tuple[tuple[str, Callable[[], PageSource]], ...] = (("bpf", _bpf), ("smaps", _smaps))
NAMES = tuple(name for name, _ in SOURCES)


def open_source(wanted: str | None = None) -> Choice:
    """Return the best source that works here, or the one that is wanted. Raises Unavailable where none, or not it."""
    passed: list[Passed] = []
    for name, attempt in SOURCES:
        if wanted is not None and name != wanted:
            continue
        try:
            return Choice(source=attempt(), passed=tuple(passed))
        except Unavailable as error:
            if wanted is not None:
                raise
            passed.append(Passed(name=name, problem=f"{error.place} {error.problem}", fix=error.fix))
    raise Unavailable(
        place=f"source {wanted}" if wanted else "sources of touched pages",
        problem=f"there is none of that name; known: {', '.join(NAMES)}" if wanted else _all_problems(passed),
        fix="see `memsculpt doctor`",
    )


def find_process(pid: int) -> Instance:
    """Return the process that has this pid now. Raises Vanished."""
    from memsculpt.host.linux.opened import find_instance

    return find_instance(pid)


def _all_problems(passed: Sequence[Passed]) -> str:
    return "; ".join(f"{one.name}: {one.problem}" for one in passed)


def wait_for_end(process: Instance, timeout_s: float) -> bool:
    """Wait; True as soon as the process has ended, False after `timeout_s`."""
    from memsculpt.host.linux import opened

    return opened.wait_for_end(process, timeout_s)
