# SPDX-License-Identifier: Apache-2.0
"""What may be configured. `config.py` reads TOML into these; the stages take the section they need."""

from dataclasses import dataclass
from enum import Enum

from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import Match

MIB = 1 << 20


class Mode(Enum):
    """`OBSERVE` plans and never acts; `APPLY` changes what the configuration names."""

    OBSERVE = "observe"
    APPLY = "apply"


class Kind(Enum):
    """`FIXED` keeps the configured size; `DYNAMIC` follows the forecast."""

    FIXED = "fixed"
    DYNAMIC = "dynamic"


class Sculpt(Enum):
    """What a plan may do inside of pools by itself: nothing, send out cold blocks, or gather hot ones, too."""

    OFF = "off"
    COLD = "cold"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSettings:
    """One `[[partition]]`: a share of main memory, what it is promised and may grow to."""

    name: str
    match: Match
    kind: Kind = Kind.DYNAMIC
    guarantee_bytes: int = 0  # always available to it, refused at start if the sum does not fit
    ceiling_bytes: int = UNLIMITED_BYTES
    size_bytes: int | None = None  # fixed partitions only
    priority: float = 100.0  # cost of missing one byte, relative to the other partitions
    create: bool = False  # make a cgroup of memsculpt's own and move the matching processes there
    critical: bool = False  # keep on sampling which functions its memory comes from, within the budget of sensing
    trim: bool = False  # page cache that is not used again leaves, also when nobody needs the room

    def __post_init__(self) -> None:
        if not 0 <= self.guarantee_bytes <= self.ceiling_bytes:
            raise ValueError(
                f"partition {self.name!r}: need 0 <= guarantee <= ceiling, "
                f"got {self.guarantee_bytes}, {self.ceiling_bytes} bytes"
            )
        if (self.kind is Kind.FIXED) != (self.size_bytes is not None):
            raise ValueError(f"partition {self.name!r}: a fixed partition, and only it, has a size")
        if self.size_bytes is not None and not self.guarantee_bytes <= self.size_bytes <= self.ceiling_bytes:
            raise ValueError(f"partition {self.name!r}: need guarantee <= size <= ceiling")
        if self.priority <= 0:
            raise ValueError(f"partition {self.name!r}: priority must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSettings:
    """How finely the host is read."""

    idle_after_s: float = 0.9  # a process without processor time for so long leaves its pages untouched: cold
    detail_interval_s: float = 10.0  # how often processes outside every partition are read in full


@dataclass(frozen=True, slots=True, kw_only=True)
class SenseSettings:
    """How much may be spent on the pages of the partitions' processes: which are touched, and whose they are."""

    budget_ratio: float = 0.01  # of one processor, whoever pays: the agent, or the program that is looked at; 0: off
    interval_s: float = 10.0  # the same memory is cleared no more often; less often where the budget does not reach


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What is kept on disk of each workload, and for how long."""

    keep: bool = True
    flush_s: float = 60.0  # at most this much is lost when the agent is killed
    fine_count: int = 100  # workloads kept second by second: those in partitions, then the largest; others by ten
    keep_1s_s: float = 86_400.0
    keep_10s_s: float = 3 * 86_400.0
    keep_1min_s: float = 14 * 86_400.0
    keep_5min_s: float = 63 * 86_400.0  # nine weeks: the weekly rhythm, twice over what a slow forecast looks back
    keep_1h_s: float = 731 * 86_400.0
    size_max_bytes: int = 512 * MIB  # the finest and oldest samples leave first

    def keep_by_resolution(self) -> dict[int, float]:
        """Return for how long each resolution of `domain.series` is kept, in seconds by its length in seconds."""
        return {
            1: self.keep_1s_s,
            10: self.keep_10s_s,
            60: self.keep_1min_s,
            300: self.keep_5min_s,
            3600: self.keep_1h_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastSettings:
    """What is forecast: quantiles of the peak need over each horizon."""

    levels: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
    horizons_s: tuple[float, ...] = (3.0, 10.0, 60.0)
    act_horizon_s: float = 3.0  # the horizon that the planner sizes for; one of `horizons_s`
    history_s: float = 600.0  # how much of the series the online experts keep
    refit_count: int = 32  # workloads, the largest first, that a model is fitted to once a day; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """Bounds on what one second may bring, and the floors under which nothing is squeezed."""

    margin_ratio: float = 0.03  # of the capacity, kept free of plans
    floor_bytes: int = 16 * MIB  # no partition is ever made smaller
    page_out_bytes_per_s: float = 512.0 * MIB
    page_in_bytes_per_s: float = 512.0 * MIB
    shrink_bytes_per_s: float = 512.0 * MIB  # how fast a limit may come down
    swap_fill_max_ratio: float = 0.8  # above it nothing is paged out
    pressure_max_ratio: float = 0.05  # share of wall time a workload may stall before nothing is taken from it
    squeeze_max_s: float = 10.0  # a limit below use is lifted after this long at the latest
    min_move_bytes: int = 4 * MIB  # smaller moves are not worth their cost
    proactive_ratio: float = 0.95  # free ahead when forecast use passes this share of the capacity
    prefetch: bool = True
    sculpt: Sculpt = Sculpt.COLD
    slow_node: bool = True  # what is cold goes to a memory node without processors, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustGroup:
    """One `[[trust]]`: VMs that may share pages with one another, and with nobody else (docs/safety.md)."""

    name: str
    vms: tuple[str, ...]  # globs of names


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSettings:
    """How virtual machines are found and asked."""

    discover: bool = True  # QEMU processes with a monitor socket of their own
    sockets: tuple[str, ...] = ()  # globs of further monitor sockets
    libvirt: str = ""  # URI of a libvirt host, "" for none: "qemu:///system"
    timeout_s: float = 2.0  # for one answer of a monitor
    balloon: bool = True  # balloons of VMs in partitions may be moved
    floor_bytes: int = 128 * MIB  # no guest is left with less
    dirty_every_s: float = 0.0  # how often QEMU measures how fast a guest writes; 0: never, for it costs
    trust: tuple[TrustGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration, checked."""

    mode: Mode = Mode.OBSERVE
    interval_s: float = 1.0
    budget_ratio: float = 0.01  # of one processor: who only observes ticks less often where a tick costs more; 0: never
    capacity_bytes: int | None = None  # None: `capacity_ratio` of main memory
    capacity_ratio: float = 0.9
    socket: str = "/run/memsculpt/agent.sock"
    state: str = "/var/lib/memsculpt"
    listen: str | None = None  # where REST can be read on loopback besides the socket; None: as the door chooses
    observe: ObserveSettings = ObserveSettings()
    sense: SenseSettings = SenseSettings()
    profile: ProfileSettings = ProfileSettings()
    forecast: ForecastSettings = ForecastSettings()
    plan: PlanSettings = PlanSettings()
    vms: VmSettings = VmSettings()
    partitions: tuple[PartitionSettings, ...] = ()

    def capacity_of(self, total_bytes: int) -> int:
        """Return what the named partitions may share on a host with `total_bytes` of main memory."""
        if self.capacity_bytes is not None:
            return min(self.capacity_bytes, total_bytes)
        return int(total_bytes * self.capacity_ratio)
