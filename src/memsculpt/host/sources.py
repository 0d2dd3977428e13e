# SPDX-License-Identifier: Apache-2.0
"""Which source tells of touched pages: the best that works here, and why the better ones do not.

A new source is a file in host/linux and a line in SOURCES. Its constructor finds out whether it works here, and leaves
nothing behind when it is closed: doctor opens each of them only to know (`try_each`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable, UsageError
from memsculpt.host.protocol import PageReader, PageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A source that was tried and does not work here."""

    name: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A source that was tried: it works (`problem` is ""), or why it does not."""

    name: str
    tells: str  # what it knows, and how
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The source in use, and what would be better, best first."""

    source: PageSource
    passed: tuple[Passed, ...]


Offer: TypeAlias = tuple[str, str, Callable[[], PageSource]]
"""Its name, what it tells, and what opens it."""


def _bpf() -> PageSource:
    from memsculpt.host.linux.pagewalk import WalkingSource

    return WalkingSource()


def _page_idle() -> PageSource:
    from memsculpt.host.linux.page_idle import PageIdleSource

    return PageIdleSource()


def _damon() -> PageSource:
    from memsculpt.host.linux.damon import DamonSource

    return DamonSource()


def _smaps() -> PageSource:
    from memsculpt.host.linux.smaps import SmapsSource

    return SmapsSource()


# Best first, by what they can tell, and only then by what they cost (docs/decisions/0043): every page; every page, a
# thousand times dearer, which the agent's budget sees and answers; stretches of addresses, sampled; whole mappings.
# (A kernel module will come before them.)
SOURCES: tuple[Offer, ...] = (
    ("bpf", "every page, from the page tables", _bpf),
    ("page_idle", "every page, by the kernel's idle bits, slowly", _page_idle),
    ("damon", "stretches of addresses, sampled by the kernel", _damon),
    ("smaps", "counts by mapping", _smaps),
)
NAMES = tuple(name for name, _, _ in SOURCES)


def first_working(tried: Iterable[Tried]) -> tuple[Tried | None, tuple[Passed, ...]]:
    """Return the first that works, None where none does, and those before it; no more is taken of `tried`."""
    passed: list[Passed] = []
    for one in tried:
        if not one.problem:
            return one, tuple(passed)
        passed.append(Passed(name=one.name, problem=one.problem, fix=one.fix))
    return None, tuple(passed)


def open_source(wanted: str | None = None, below: str | None = None, offered: Sequence[Offer] = SOURCES) -> Choice:
    """Return the best source that works here, the one that is wanted, or the best of those after `below`.

    Raises UsageError where none has that name, Unavailable where none works.
    """
    if wanted is not None and wanted not in {offer[0] for offer in offered}:
        raise UsageError(
            place=f"source {wanted}",
            problem=f"there is none of that name; known: {', '.join(offer[0] for offer in offered)}",
            fix="name one of these, or none for the best",
        )
    opened: list[PageSource] = []
    found, passed = first_working(_attempts(_allowed(offered, wanted, below), opened))
    if found is not None:
        return Choice(source=opened[0], passed=passed)
    if wanted is not None and passed:
        raise Unavailable(place=f"source {wanted}", problem=passed[0].problem, fix=passed[0].fix)
    raise Unavailable(
        place=f"source {wanted}" if wanted else "sources of touched pages",
        problem=_all_problems(passed),
        fix="see `memsculpt doctor`",
    )


def open_reader(
    process: Instance, wanted: str | None = None, offered: Sequence[Offer] = SOURCES
) -> tuple[Choice, PageReader]:
    """Return a process opened on the best source that works for it, or on the one that is wanted.

    Raises Vanished, Refused, and Unavailable where none does; the caller closes the reader, then the source.
    """
    passed: tuple[Passed, ...] = ()
    below: str | None = None
    while True:
        try:
            choice = open_source(wanted, below, offered)
        except Unavailable as error:
            if wanted is not None or not passed:
                raise
            raise Unavailable(place=error.place, problem=_all_problems(passed), fix=error.fix) from error
        try:
            reader = choice.source.open(process)
        except Unavailable as error:
            choice.source.close()
            if wanted is not None:
                raise
            below = choice.source.name
            passed += (*choice.passed, Passed(name=below, problem=f"{error.place} {error.problem}", fix=error.fix))
        except BaseException:
            choice.source.close()
            raise
        else:
            return Choice(source=choice.source, passed=passed + choice.passed), reader


def try_each(offered: Sequence[Offer] = SOURCES) -> tuple[Tried, ...]:
    """Return what became of trying each source, best first."""
    found: list[Tried] = []
    for one in offered:
        opened: list[PageSource] = []
        found.extend(_attempts([one], opened))
        for source in opened:
            source.close()
    return tuple(found)


def find_process(pid: int) -> Instance:
    """Return the process that has this pid now. Raises Vanished."""
    from memsculpt.host.linux.opened import find_instance

    return find_instance(pid)


def wait_for_end(process: Instance, timeout_s: float) -> bool:
    """Wait; True as soon as the process has ended, False after `timeout_s`."""
    from memsculpt.host.linux import opened

    return opened.wait_for_end(process, timeout_s)


def _allowed(offered: Sequence[Offer], wanted: str | None, below: str | None) -> Sequence[Offer]:
    after = offered if below is None else offered[[name for name, _, _ in offered].index(below) + 1 :]
    return after if wanted is None else [one for one in after if one[0] == wanted]


def _attempts(offered: Iterable[Offer], opened: list[PageSource]) -> Iterator[Tried]:
    """Try one after the other as they are asked for; those that work are added to `opened`."""
    for name, tells, attempt in offered:
        try:
            opened.append(attempt())
        except Unavailable as error:
            yield Tried(name=name, tells=tells, problem=f"{error.place} {error.problem}", fix=error.fix)
        else:
            yield Tried(name=name, tells=tells)


def _all_problems(passed: Sequence[Passed]) -> str:
    return "; ".join(f"{one.name}: {one.problem}" for one in passed) or "there is no other"
