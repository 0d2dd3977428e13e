# SPDX-License-Identifier: Apache-2.0
"""The whole error tree, so that a reader sees at once what can go wrong and who reacts.

    MemsculptError            exit 1   place, problem, fix: three facts, kept apart for --json
    |-- ConfigError           exit 2   the configuration was read and cannot be followed
    |-- UsageError            exit 2   the command line asks for something that is no question
    |-- Unavailable           exit 3   this machine cannot do it; says why and what would help
    |-- Refused               exit 1   a decision, not a fault: the request was understood and denied
    |-- Vanished              exit 1   the process or cgroup went away between two calls (drop the row)
    |-- Transient             exit 1   the kernel said "not now"; try again after retry_in_s
    |-- WorkerFailed          exit 1   a short-lived process crashed, hung or ran out of memory; the agent goes on
    |-- CorruptRecord         exit 1   a stored record is broken; it counts as never written
    |-- JournalUnwritable     exit 1   nothing may be changed, because nothing could be undone
    `-- CorruptStore          exit 1   the profile store is broken as a whole; set it aside and begin a fresh one

The leaves differ by what the one who catches them *does*. Everything that is not in the tree
is a bug: it ends the tick, never the agent.
"""


class MemsculptError(Exception):
    """Say where, what is wrong, and what to do about it."""

    exit_code = 1

    def __init__(self, *, place: str, problem: str, fix: str) -> None:
        super().__init__(place, problem, fix)
        self.place, self.problem, self.fix = place, problem, fix

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}\n  fix: {self.fix}"


class ConfigError(MemsculptError):
    """The configuration was read and cannot be followed; nothing was touched.

    With several complaints, `complaints` holds them all and the error's own facts only count them.
    """

    exit_code = 2

    def __init__(self, *, place: str, problem: str, fix: str, complaints: "tuple[ConfigError, ...]" = ()) -> None:
        super().__init__(place=place, problem=problem, fix=fix)
        self.complaints = complaints

    def __str__(self) -> str:
        own = super().__str__()
        return "\n".join([own, *map(str, self.complaints)]) if self.complaints else own


class UsageError(MemsculptError):
    """A command was called in a way that has no meaning."""

    exit_code = 2


class Unavailable(MemsculptError):
    """This machine cannot do it (kernel, privilege, missing program)."""

    exit_code = 3


class Refused(MemsculptError):
    """The request was understood and denied; `problem` is the reason, with figures."""


class Vanished(MemsculptError):
    """A process or cgroup went away between two calls, which is normal."""

    def __init__(self, *, place: str) -> None:
        super().__init__(place=place, problem="is gone", fix="none needed; its row is dropped")


class Transient(MemsculptError):
    """The kernel refused for now (EAGAIN, EBUSY); the same call may succeed later."""

    def __init__(self, *, place: str, problem: str, retry_in_s: float) -> None:
        super().__init__(place=place, problem=problem, fix=f"tried again in {retry_in_s:g} s")
        self.retry_in_s = retry_in_s


class WorkerFailed(MemsculptError):
    """A short-lived worker gave no result; whoever asked goes on without."""

    def __init__(self, *, place: str, problem: str) -> None:
        super().__init__(place=place, problem=problem, fix="ask again; if it comes again, report it with these words")


class CorruptRecord(MemsculptError):
    """A stored record is broken (torn write, bit rot) and counts as never written."""

    def __init__(self, *, place: str, offset: int, problem: str) -> None:
        super().__init__(
            place=f"{place}, byte {offset}",
            problem=problem,
            fix="none needed; the record is skipped and said once",
        )
        self.offset = offset


class JournalUnwritable(MemsculptError):
    """The journal cannot be made durable, so the host may not be changed."""


class CorruptStore(MemsculptError):
    """The file of the profile store is broken as a whole, not only one record in it."""
