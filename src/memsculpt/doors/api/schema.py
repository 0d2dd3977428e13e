# SPDX-License-Identifier: Apache-2.0
r"""What the API says and takes, as types: JSON, the OpenAPI document and the checks of requests come from here.

Names end in their unit, as everywhere. Sizes are whole bytes. A ceiling is never above the machine's memory; where an
action lifts or first sets a limit, 2**63 - 1 stands for "unlimited", and nothing else is above 2**53.
Names from the kernel are valid Unicode: other bytes are written as `\xNN`.
Fields are added, never renamed or removed, within one version of the API.
"""

import msgspec


class ForecastView(msgspec.Struct, kw_only=True):
    """Quantiles of a peak over the horizon; both lists are empty before the first forecast."""

    horizon_s: float
    levels: list[float]
    quantiles_bytes: list[int]


class OutlookView(msgspec.Struct, kw_only=True):
    """What a workload will need in the next hours, from its kept history; quantiles by level."""

    made_s_ago: float
    history_s: float
    levels: list[float]
    peak_s: float
    peak_bytes: list[int]
    interval_s: float
    path_bytes: list[list[int]]
    weighed_by: str


class PartitionView(msgspec.Struct, kw_only=True):
    """A share of main memory: what it is promised, should have now, uses, and will need."""

    name: str
    kind: str
    guarantee_bytes: int
    size_bytes: int
    ceiling_bytes: int
    used_bytes: int
    forecast: ForecastView
    priority: float
    needed_bytes: int | None  # forecast median of the peak, as the division saw it
    shortfall_ratio: float | None  # the chance that the size will not do
    limit_bytes: int | None  # what its cgroups hold as limit now; null: none
    swapped_bytes: int
    cgroups: list[str]
    workloads: list[str]


class HeatView(msgspec.Struct, kw_only=True):
    """Which of a workload's pages are touched, from looks within the sensing budget."""

    source: str
    hot_bytes: int  # in blocks of which half the pages and more are touched from look to look
    idle_bytes: int  # in blocks that were not touched for as long as they are watched
    covered_ratio: float  # how much of the resident memory was looked at
    interval_s: float | None  # mean time between two clears of the same memory
    windows_s: list[float]
    working_set_bytes: list[int | None]  # by window; None: no such window has passed yet


class SampledView(msgspec.Struct, kw_only=True):
    """How a critical workload's page faults are sampled; `/v1/workloads/{workload}/growth` has the functions."""

    sampled_every: int  # one page in so many
    interval_s: float  # how far back it reaches
    process_count: int
    faults: int  # of its processes, recorded or not
    recorded: int
    touched_bytes: int  # estimated: memory that came in that time, without files
    touched_error_bytes: int  # 95 % of such estimates are off by no more


class WorkloadView(msgspec.Struct, kw_only=True):
    """What is accounted as one, with its use told apart."""

    id: str
    partition: str | None
    cgroup: str | None
    process_count: int
    resident_bytes: int
    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swapped_bytes: int
    needed_bytes: int
    cold_bytes: int
    reclaimable_bytes: int
    growth_bytes_per_s: float
    release_bytes_per_s: float
    major_faults_per_s: float
    cpu_ratio: float
    some_stall_ratio: float
    idle_s: float
    heat: HeatView | None  # None: not in a partition, or sensing is off
    growth: SampledView | None = None  # None: not in a critical partition, or sensing is off
    forecast: ForecastView
    outlook: OutlookView | None = None  # None: not in a partition, no profiles are kept, or too little is known
    leader: str  # the expert whose forecast weighs most; "" before the first forecast
    scored_count: int
    covered_ratio: float


class ReasonView(msgspec.Struct, kw_only=True):
    """Why: a code for programs, the sentence for people, the figures behind both."""

    code: str
    text: str
    figures: dict[str, float]


class ActionView(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One reversible change; fields that its kind does not have are absent."""

    kind: str
    partition: str
    text: str
    reason: ReasonView
    workload: str | None = None
    cgroup: str | None = None
    to_cgroup: str | None = None
    pid: int | None = None
    size_bytes: int | None = None
    limit: str | None = None
    from_bytes: int | None = None
    to_bytes: int | None = None
    lift_in_s: float | None = None


class AppliedView(msgspec.Struct, kw_only=True):
    """One action as it went."""

    id: int
    status: str
    age_s: float
    done_bytes: int
    duration_s: float
    cpu_s: float
    problem: str
    action: ActionView


class OutcomeView(msgspec.Struct, kw_only=True):
    """What an action promised and what came of it."""

    action_id: int
    promised_bytes: int
    came_bytes: int
    verdict: str


class ExplanationView(msgspec.Struct, kw_only=True):
    """One action with everything that is known of why and what came."""

    applied: AppliedView
    explanation: list[str]
    outcome: OutcomeView | None


class ActionsView(msgspec.Struct, kw_only=True):
    """The most recent actions, newest first, and how many there were of each status since the start."""

    counts: dict[str, int]
    plan_count: int
    recent: list[AppliedView]
    outcomes: list[OutcomeView]


class ShareView(msgspec.Struct, kw_only=True):
    """One partition's part of the division."""

    name: str
    used_bytes: int
    needed_bytes: int
    size_bytes: int
    shortfall_ratio: float


class DivisionView(msgspec.Struct, kw_only=True):
    """How the capacity was shared."""

    capacity_bytes: int
    multiplier: float
    shares: list[ShareView]


class PlanView(msgspec.Struct, kw_only=True):
    """The last tick's plan: what is done, or in observe mode would be done, in this order."""

    mode: str
    age_s: float | None
    division: DivisionView | None
    actions: list[AppliedView]
    held_back: list[ReasonView]


class AgentView(msgspec.Struct, kw_only=True):
    """What the agent itself costs."""

    cpu_share: float
    resident_bytes: int
    cpu_s: float
    peak_resident_bytes: int
    pid: int
    tick_count: int
    late_count: int
    failed_count: int


class MemoryView(msgspec.Struct, kw_only=True):
    """The machine as a whole."""

    total_bytes: int
    available_bytes: int
    free_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int


class ScoresView(msgspec.Struct, kw_only=True):
    """How well forecasts came true since the start; lists go with `levels`."""

    horizon_s: float
    levels: list[float]
    scored_count: int
    covered_ratio: list[float]
    pinball_bytes: list[float]


class BackoffView(msgspec.Struct, kw_only=True):
    """The agent holds still for so long."""

    remaining_s: float
    reason: str


class SamplingView(msgspec.Struct, kw_only=True):
    """The sampling of critical workloads' page faults as a whole."""

    is_on: bool
    spent_ratio: float  # of one processor, lately: the agent's time, and what the programs paid
    allowed_ratio: float
    notes: list[str]


class GuestMemoryView(msgspec.Struct, kw_only=True):
    """What a guest says of its memory; null: it does not tell, or what it tells cannot be."""

    age_s: float
    total_bytes: int | None
    used_bytes: int | None  # what it cannot give without swapping
    free_bytes: int | None
    available_bytes: int | None
    cache_bytes: int | None
    swapped_in_bytes: int | None  # since it booted, as the three below
    swapped_out_bytes: int | None
    major_faults_count: int | None
    minor_faults_count: int | None


class VmView(msgspec.Struct, kw_only=True):
    """A virtual machine as its monitor tells it; counters are since its process began."""

    uuid: str  # "name:NAME" where it was started without one
    name: str
    workload: str
    partition: str | None
    pid: int
    state: str
    via: str
    age_s: float | None  # of the last answer; null: it has never answered
    ram_bytes: int  # what it was built with; 0 before it has answered
    balloon_bytes: int | None  # what the balloon leaves it; null without a balloon
    guest: GuestMemoryView | None
    features: list[str]
    vcpu_s: float
    read_bytes: int
    written_bytes: int
    received_bytes: int | None  # null: not through taps of this host
    sent_bytes: int | None
    dirtied_bytes_per_s: float | None  # null: not measured
    problem: str
    need_bytes: int | None = None  # of guest memory, as it is forecast; null: the guest does not tell
    overhead_bytes: int | None = None  # QEMU's own
    shared_saved_bytes: int | None = None  # its part of what merging saves in its trust group; null: it is in none


class OvercommitView(msgspec.Struct, kw_only=True):
    """How far the partitions' VMs are overcommitted, and the chance that their demands exceed the capacity."""

    vm_count: int
    reach_bytes: int  # what they may reach together: guest memory in full, and QEMU's own
    capacity_bytes: int  # what is left for them
    ratio: float
    horizon_s: float
    together_ratio: float  # chance within the horizon, if they peak together
    apart_ratio: float  # the same, if each peaks for itself


class VmsView(msgspec.Struct, kw_only=True):
    """All virtual machines."""

    vms: list[VmView]
    overcommit: OvercommitView | None = None  # None: no partition holds a VM


class TrustGroupView(msgspec.Struct, kw_only=True):
    """A trust group: what merging identical pages of its VMs would save, by the last look through their memory."""

    name: str
    vms: list[str]
    gain_bytes: float | None  # null: not looked through yet
    gain_low_bytes: float | None
    gain_high_bytes: float | None
    looked_ratio: float  # how far the look is


class SharingView(msgspec.Struct, kw_only=True):
    """Identical pages: of which trust group they are merged, and why not of another."""

    phase: str  # "idle", "merging", "kept", "paused"
    group: str | None
    saved_bytes: int
    forecast_bytes: float | None  # what merging was to save when it began
    forecast_low_bytes: float | None
    forecast_high_bytes: float | None
    cpu_ratio: float  # of one processor, that the kernel's merging takes
    reason: str
    groups: list[TrustGroupView]


class StatusView(msgspec.Struct, kw_only=True):
    """Everything at a glance."""

    version: str
    host: str
    mode: str
    uptime_s: float
    interval_s: float
    agent: AgentView
    memory: MemoryView | None
    capacity_bytes: int | None
    workloads: list[WorkloadView]
    partitions: list[PartitionView]
    scores: ScoresView | None
    actions: ActionsView
    backoff: BackoffView | None
    notes: list[str]
    last_problem: str
    growth: SamplingView | None = None  # None: no partition is critical, or sensing is off
    vms: list[VmView] = []
    sharing: SharingView | None = None  # None: no trust group is configured
    overcommit: OvercommitView | None = None  # None: no partition holds a VM


class PartitionsView(msgspec.Struct, kw_only=True):
    """All partitions."""

    partitions: list[PartitionView]


class WorkloadsView(msgspec.Struct, kw_only=True):
    """All workloads."""

    workloads: list[WorkloadView]


class FunctionGrowthView(msgspec.Struct, kw_only=True):
    """One function's part: by itself (`self_bytes`, of it `held_bytes`), and with all that it called."""

    function: str
    module: str
    self_bytes: int
    total_bytes: int
    held_bytes: int
    held_total_bytes: int
    total_error_bytes: int
    held_total_error_bytes: int


class ModuleGrowthView(msgspec.Struct, kw_only=True):
    """One module's part, by the innermost function."""

    module: str
    touched_bytes: int
    held_bytes: int


class StackGrowthView(msgspec.Struct, kw_only=True):
    """One stack's part, innermost function first."""

    frames: list[str]
    frame_modules: list[str]
    kind: str
    touched_bytes: int
    held_bytes: int
    faults: int  # that were recorded


class GrowthView(msgspec.Struct, kw_only=True):
    """Where a critical workload's memory of the last minutes came from, estimated from sampled page faults.

    An error is what 95 % of such estimates are off by at most.
    """

    workload: str
    interval_s: float
    sampled_every: int  # one page in so many, where it was coarsest in this time
    faults: int
    recorded: int
    dropped: int
    grown_bytes: int | None  # by the kernel's counters, in about this time
    touched_bytes: int
    touched_error_bytes: int
    held_bytes: int
    held_error_bytes: int
    file_bytes: int
    functions: list[FunctionGrowthView]
    modules: list[ModuleGrowthView]
    stacks: list[StackGrowthView]
    notes: list[str]


class CapabilityView(msgspec.Struct, kw_only=True):
    """One thing that this machine can or cannot do."""

    name: str
    available: bool
    reason: str
    fix: str


class DoctorView(msgspec.Struct, kw_only=True):
    """What this machine offers, as the agent found it when it started."""

    host: str
    capabilities: list[CapabilityView]


class RequestBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`request(workload, bytes, within)`: say `bytes`, or `size` as people write it."""

    workload: str
    bytes: int | None = None
    size: str | None = None
    within: str | float = "5s"  # a number is seconds


class GrantView(msgspec.Struct, kw_only=True):
    """The answer to a request."""

    answer: str
    partition: str | None
    granted_bytes: int
    stays_charged_bytes: int
    text: str
    reason: ReasonView
    actions: list[ActionView]


class ZonesView(msgspec.Struct, kw_only=True):
    """What the blocks of each zone hold, in memory and swapped, in bytes."""

    hot: int
    warm: int
    cold: int
    prefetch: int


class PrefetchView(msgspec.Struct, kw_only=True):
    """How well prefetches did; null before the first was judged."""

    recall: float | None
    precision: float | None
    timeliness: float | None  # of what came for a phase, the share that was there before it began


class GuestZoneView(msgspec.Struct, kw_only=True):
    """Guest-physical addresses [start, end) of one zone."""

    start: int
    end: int
    zone: str  # "hot", "cold" or "prefetch"


class GuestPoolView(msgspec.Struct, kw_only=True):
    """Of a pool that is a VM's RAM, whose it is and what cannot be done with it."""

    id: str  # the VM's UUID, or "name:NAME"
    name: str
    backing: str
    state: str
    cannot: list[str]
    zones: list[GuestZoneView]  # where the zones lie for the guest: of an answer to a sculpt


class PoolView(msgspec.Struct, kw_only=True):
    """A pool, and what its sculpting came to. Sums are over its life, "before" and "after" are of the last sculpt."""

    pool: str
    verdict: str
    reason: str
    zones: ZonesView
    asked_bytes: int
    moved_bytes: int
    collapsed_bytes: int
    split_bytes: int
    paged_out_bytes: int
    brought_in_bytes: int
    to_slow_node_bytes: int  # moved to a memory node without processors, and back from there
    from_slow_node_bytes: int
    on_slow_node_bytes: int  # lies there now
    undone_bytes: int
    resident_before_bytes: int
    resident_after_bytes: int
    huge_before_bytes: int
    huge_after_bytes: int
    longest_run_before_bytes: int
    longest_run_after_bytes: int
    faults_before: float | None  # major faults in a second
    faults_after: float | None
    stall_before_ratio: float | None
    stall_after_ratio: float | None
    latency_saved_s_per_s: float
    prefetch: PrefetchView
    cpu_s: float
    duration_s: float
    problems: dict[str, int]  # bytes that were left as they are, by cause
    vm: GuestPoolView | None = None  # null: a process's memory


class PoolsView(msgspec.Struct, kw_only=True):
    """Every VM, and every other process, of a workload in a partition."""

    pools: list[PoolView]


class SculptBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`sculpt(pool, zone)`: `size` or `bytes` for hot and cold, `window` for prefetch."""

    pool: str
    zone: str
    bytes: int | None = None
    size: str | None = None
    window: str | float | None = None  # a number is seconds


class ProblemView(msgspec.Struct, kw_only=True):
    """Place, problem, fix."""

    place: str
    problem: str
    fix: str


class ErrorView(msgspec.Struct, kw_only=True):
    """The body of every answer that is not 200."""

    error: ProblemView


class VersionView(msgspec.Struct, kw_only=True):
    """The newest version of a model or summary that is kept of a workload."""

    kind: str  # model, prior, heat or phases
    number: int
    made_s: int  # Unix clock


class ProfileView(msgspec.Struct, kw_only=True):
    """What the profile store holds of one workload."""

    id: str
    first_s: int  # when it was first and last kept; Unix clock
    last_s: int
    stored_bytes: int
    versions: list[VersionView]


class ProfilesView(msgspec.Struct, kw_only=True):
    """What lasts of each workload."""

    path: str
    file_bytes: int | None  # None: there is no store, or it cannot be read now
    problem: str  # why it cannot be read; "" when it can
    resolutions_s: list[int]
    metrics: list[str]
    profiles: list[ProfileView]
    set_aside: list[str]  # broken stores that were put aside
