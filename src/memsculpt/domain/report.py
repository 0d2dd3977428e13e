# SPDX-License-Identifier: Apache-2.0
"""What the agent shows of itself: one immutable snapshot, replaced as a whole after every tick.

The doors read this and nothing else of the running agent. It only gathers what the stages already said, so
that the command line, the API and the page show the same moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Float64, Int64, freeze_columns
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.growth import GrowthSummary
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.outcome import Applied, Corrections
from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.plan import Plan
from memsculpt.domain.pool import SculptStats
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Mode, Settings
from memsculpt.domain.sharing import SharingReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityFact:
    """One line of `doctor`: the host's `Capability`, said in words that the domain may know."""

    name: str
    available: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfUse:
    """What the agent itself costs."""

    cpu_share: float = 0.0  # of one processor, over the last minute or since the start
    cpu_s: float = 0.0  # since the start, all threads
    resident_bytes: int = 0
    peak_resident_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """How well forecasts have done since the start, over all workloads; columns by level."""

    horizon_s: float  # of the forecasts that were scored: the planner's
    levels: tuple[float, ...]
    scored_count: int  # forecasts whose horizon has passed
    covered_ratio: Float64  # share of them whose quantile held, shape (n_levels,); as high as its level when right
    pinball_bytes: Float64  # mean pinball loss, shape (n_levels,)

    def __post_init__(self) -> None:
        freeze_columns(self, ("covered_ratio", "pinball_bytes"), (len(self.levels),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one action, once it could be told."""

    action_id: int
    promised_bytes: int
    came_bytes: int  # what the action's effect was when its horizon had passed
    verdict: str  # one word: "held", "fell-short", "was-needed-again", ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartitionForecast:
    """The forecast of each partition's need, rows in the order of the configuration.

    `quantiles_bytes` has shape (n_partitions, n_levels) and holds the peak until `horizon_s` from now.
    """

    horizon_s: float
    levels: tuple[float, ...]
    names: tuple[str, ...]
    quantiles_bytes: Float64

    def __post_init__(self) -> None:
        freeze_columns(self, ("quantiles_bytes",), (len(self.names), len(self.levels)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """Everything that the doors show. Before the first tick the stages' results are None."""

    mode: Mode
    settings: Settings
    started_at_s: float  # the host's clock, as `now_s`
    now_s: float
    pid: int = 0
    host_name: str = "linux"
    tick_count: int = 0
    late_count: int = 0  # ticks that began more than half an interval late
    failed_count: int = 0  # ticks that ended in an error
    last_problem: str = ""  # place, problem, fix of the last failed tick or of what holds the agent back
    agent: SelfUse = SelfUse()
    observation: Observation | None = None
    profiles: Profiles | None = None
    heat: WorkloadHeat | None = None  # None: sensing is off, or there is nothing to sense
    growth: GrowthSummary | None = None  # None: no partition is critical, or sensing is off
    forecasts: Forecasts | None = None
    outlooks: tuple[WorkloadOutlook, ...] = ()  # minutes to hours ahead, of workloads whose history is kept
    partition_forecast: PartitionForecast | None = None
    pools: tuple[SculptStats, ...] = ()  # what may be sculpted, and what came of it
    sharing: SharingReport | None = None  # None: no trust group is configured
    plan: Plan | None = None
    planned: tuple[Applied, ...] = ()  # this tick's plan as it was applied or rehearsed
    applied: tuple[Applied, ...] = ()  # the most recent actions, oldest first
    applied_counts: Mapping[str, int] = field(default_factory=dict[str, int])  # by status, since the start
    plan_count: int = 0  # plans that held at least one action
    outcomes: tuple[Outcome, ...] = ()  # the most recent, oldest first
    corrections: Corrections | None = None
    scores: Scores | None = None
    capabilities: tuple[CapabilityFact, ...] = ()
    notes: tuple[str, ...] = ()  # what is degraded, for people; one sentence each
    sizes_bytes: Int64 | None = None  # current size of each partition, in the order of the configuration


def sum_by_partition(
    observation: Observation, forecasts: Forecasts, *, names: tuple[str, ...], horizon_s: float
) -> PartitionForecast:
    """Return each partition's quantiles as the sum of its workloads', as the planner takes them.

    Raises ValueError when `horizon_s` is none of the forecasts' horizons.
    """
    row_of = {name: row for row, name in enumerate(names)}
    partition_of = dict(zip(observation.workloads.ids, observation.workloads.partitions, strict=True))
    rows = np.array([row_of.get(partition_of.get(one) or "", -1) for one in forecasts.ids], dtype=np.int64)
    sums = np.zeros((len(names), len(forecasts.levels)))
    column = forecasts.quantiles_bytes[:, forecasts.horizons_s.index(horizon_s), :]
    np.add.at(sums, rows[rows >= 0], column[rows >= 0])
    return PartitionForecast(horizon_s=horizon_s, levels=forecasts.levels, names=names, quantiles_bytes=sums)
