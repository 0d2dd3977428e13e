# SPDX-License-Identifier: Apache-2.0
"""What sensing asks of the host, what it cost, and what is known of each workload's heat."""

from dataclasses import dataclass
from enum import StrEnum

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.pages import Extents, Touches
from memsculpt.domain.workload import Instance, WorkloadId


class LookKind(StrEnum):
    """What is done with a stretch of memory."""

    SURVEY = "survey"  # find out where there is memory
    PROBE = "probe"  # read what was touched since the clear
    TURN = "turn"  # read it, and clear: a new interval begins


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAt:
    """One task for the host: a stretch [start, end) of one process; a survey is of all of it."""

    kind: LookKind
    process: Instance
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looked:
    """What came of a task."""

    task: LookAt
    at_s: float  # host's clock, when the bits were read
    cpu_s: float  # processor time that it took the agent
    touches: Touches | None = None  # None: a survey, or the process is gone, or may not be looked at
    extents: Extents | None = None  # of a survey
    cleared: bool = False
    problem: str = ""  # why not; beside `touches`: why the best source did not serve, so that another one did
    is_gone: bool = False
    is_first: bool = False  # by a source that had not looked there before: of which interval is not known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkloadHeat:
    """Heat by workload: only those that are sensed. Columns have the shape (n_workloads,) unless said.

    `working_set_bytes` has shape (n_workloads, n_windows) and is NaN where no such window has passed yet. It is scaled
    from what was looked at to what is resident; `covered_ratio` says how much that was.
    """

    ids: tuple[WorkloadId, ...]
    windows_s: tuple[float, ...]
    resident_bytes: Int64
    hot_bytes: Int64  # in blocks with a heat of a half and more
    idle_bytes: Int64  # in blocks not touched for the longest window or since they are watched, half a minute at least
    working_set_bytes: Float64
    covered_ratio: Float64
    interval_s: Float64  # mean time between two clears of the same memory, NaN before the second
    source: str = ""
    spent_ratio: float = 0.0  # of one processor, lately: the agent's own and what the programs paid
    paid_ratio: float = 0.0  # of that, what the programs paid
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze_columns(
            self, ("resident_bytes", "hot_bytes", "idle_bytes", "covered_ratio", "interval_s"), (len(self.ids),)
        )
        freeze_columns(self, ("working_set_bytes",), (len(self.ids), len(self.windows_s)))
