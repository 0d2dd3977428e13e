# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on real hosts, on order: frozen descriptions with times after the host's start.

The host asks the schedule at the moment of each call, so that a fault lies between what the agent saw and what
it does, which is where the real ones lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from memsculpt.domain.plan import LimitKind


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishBeforeAction:
    """The program's process ends when something is about to be done to it, from `from_s` on; once."""

    program: str
    from_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyLimit:
    """Writes to a cgroup's budgets answer EBUSY."""

    cgroup: str
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeniedPaging:
    """The kernel does not let us page out or in (EPERM: a lost privilege, a stricter policy)."""

    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeniedLooking:
    """A source of touched pages does not work (somebody else took it, the kernel lost its memory for it)."""

    source: str
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapFull:
    """Somebody else fills the swap device: nothing more goes out."""

    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentMonitor:
    """A VM's monitor does not answer (it hangs, or another client has it)."""

    program: str
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignLimit:
    """Somebody else writes a budget, once."""

    cgroup: str
    kind: LimitKind
    size_bytes: int
    at_s: float


Fault: TypeAlias = (
    VanishBeforeAction | BusyLimit | DeniedPaging | DeniedLooking | SwapFull | SilentMonitor | ForeignLimit
)


class FaultSchedule:
    """Answers what is wrong at a moment; `at_s` counts from the host's start."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = list(faults)

    def is_busy(self, cgroup: str, at_s: float) -> bool:
        """Tell whether a cgroup's budgets cannot be written now."""
        found = (fault for fault in self._faults if isinstance(fault, BusyLimit))
        return any(fault.cgroup == cgroup and fault.from_s <= at_s < fault.until_s for fault in found)

    def is_paging_denied(self, at_s: float) -> bool:
        """Tell whether paging is denied now."""
        return any(isinstance(fault, DeniedPaging) and fault.from_s <= at_s < fault.until_s for fault in self._faults)

    def is_looking_denied(self, source: str, at_s: float) -> bool:
        """Tell whether a source of touched pages does not work now."""
        found = (fault for fault in self._faults if isinstance(fault, DeniedLooking))
        return any(fault.source == source and fault.from_s <= at_s < fault.until_s for fault in found)

    def is_swap_full(self, at_s: float) -> bool:
        """Tell whether swap takes nothing now."""
        return any(isinstance(fault, SwapFull) and fault.from_s <= at_s < fault.until_s for fault in self._faults)

    def is_silent(self, program: str, at_s: float) -> bool:
        """Tell whether a VM's monitor says nothing now."""
        found = (fault for fault in self._faults if isinstance(fault, SilentMonitor))
        return any(fault.program == program and fault.from_s <= at_s < fault.until_s for fault in found)

    def take_vanishing(self, program: str, at_s: float) -> bool:
        """Tell whether the program's process goes away right now; each such fault happens once."""
        for fault in self._faults:
            if isinstance(fault, VanishBeforeAction) and fault.program == program and fault.from_s <= at_s:
                self._faults.remove(fault)
                return True
        return False

    def take_foreign_limits(self, at_s: float) -> tuple[ForeignLimit, ...]:
        """Return the writes by others that are due; each happens once."""
        due = tuple(fault for fault in self._faults if isinstance(fault, ForeignLimit) and fault.at_s <= at_s)
        for fault in due:
            self._faults.remove(fault)
        return due
