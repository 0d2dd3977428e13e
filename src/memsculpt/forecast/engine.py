# SPDX-License-Identifier: Apache-2.0
"""One step of the forecaster: take in the profiles, score what has come true, look ahead.

All workloads go together as stacked arrays. Each expert's expected peak becomes quantiles by offsets that
are tracked online (conformal.py); the mixture weighs the experts by their pinball loss (mixture.py); a last
correction keeps the mixture honest. A start-up is kept apart: it is neither scored nor does it raise the
historic peak. An OOM kill or a limit that was hit raises the top quantiles at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import ForecastSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.forecast import conformal, mixture, season
from memsculpt.forecast.experts import EXPERTS, Drift, SeasonalNaive
from memsculpt.forecast.kinship import GROWN_TICKS, Kinship, family_of
from memsculpt.forecast.learners import LEARNERS
from memsculpt.forecast.memory import Slots
from memsculpt.forecast.pending import Pending, Waiting
from memsculpt.forecast.protocol import N_DRIVERS, Series
from memsculpt.forecast.traits import Traits, read_traits

GRID_S = 1.0
DRIFT = next(row for row, expert in enumerate(EXPERTS) if isinstance(expert, Drift))
SEASONAL = next(row for row, expert in enumerate(EXPERTS) if isinstance(expert, SeasonalNaive))
SPECIALISTS = (DRIFT, SEASONAL)
NAMES = tuple(one.name for one in (*EXPERTS, *LEARNERS))
SEASON_TURNS = 20  # of the grid: so often a workload's series is searched for a period
ROWS_AT_ONCE = 192
STEPS_MOST = 10  # of the grid: ticks further apart are taken for so far apart
ALARM_RATIO = 1.2
ALARM_HALF_LIFE_S = 120.0
ALARM_LEVEL = 0.9
# Growth may get faster within a horizon: up to this many times what drift expects is thought possible.
GROWTH_MARGIN = 2.0
USUAL_IO_BYTES_PER_S, USUAL_FAULTS_PER_S = 8e6, 1000.0  # where a driver stands at a half
TAIL_LEVEL = 0.99  # from here on surprises are what the level is for
WARM_POINTS = 30


@dataclass(slots=True, eq=False)
class Forecaster:
    """The engine's memory. `Forecaster()` is empty; the arrays inside are its own and change in place."""

    slots: Slots | None = None
    settings: ForecastSettings | None = None
    time_s: float | None = None
    grid_at_s: float = 0.0
    season_turn: int = 0
    step_s: float = GRID_S
    waiting: Waiting = field(default_factory=lambda: Waiting([]))
    kinship: Kinship = field(default_factory=Kinship)


def step(state: Forecaster, profiles: Profiles, settings: ForecastSettings) -> tuple[Forecaster, Forecasts]:
    """Learn from this tick and forecast the peak need over each horizon, for all workloads at once."""
    if state.slots is None or state.settings != settings:
        state = _fresh(state, settings, profiles.time_s)
    slots = state.slots
    assert slots is not None  # noqa: S101  _fresh made it
    need = profiles.needed_bytes.astype(np.float64)
    levels = np.array(settings.levels)
    at = slots.open_slots(profiles.ids, need, profiles.time_s, conformal.initial_offsets(need, levels))
    settled = (slots.was_starting[at] == 1) & ~profiles.is_starting
    if settled.any():
        slots.begin_steady(at[settled], need[settled], conformal.initial_offsets(need[settled], levels))
    for row in {*slots.fresh_rows, *np.flatnonzero(settled).tolist()}:
        program = profiles.programs[row] if profiles.programs else ""
        state.kinship.introduce(slots, profiles.ids[row], program, float(need[row]))
    state.kinship.follow(slots, profiles.ids, profiles.programs)
    slots.was_starting[at] = profiles.is_starting
    is_new_point = _take_in(state, slots, at, profiles, need)
    state.waiting.score(slots, at, need, levels, profiles.time_s, 0.25 * GRID_S)
    by_expert, confident = _ask(state, at, profiles, need, learns=is_new_point)
    promised_by_rhythm, drifting = by_expert[:, SEASONAL, :, 0].copy(), by_expert[:, DRIFT, :, 0].copy()
    by_expert += slots.offsets[at]
    left = conformal.prior_left(slots.settled_count[at])
    by_expert += (slots.prior[at] * left[:, :, np.newaxis])[:, np.newaxis]
    situation = mixture.situation_of(confident)
    has_rhythm = confident[:, SPECIALISTS.index(SEASONAL)] & np.isfinite(slots.onset_s[at, -2])
    weights = mixture.trusted(slots.weights[at, situation], SEASONAL, has_rhythm)
    mixed = _in_order(mixture.mix(by_expert, weights) + slots.correction[at])
    _remember(state, at, profiles, need, situation, by_expert, mixed)
    bounded = _bounded(slots, at, mixed, need, drifting, levels)
    # Tracking keeps the 0.9 quantile below the truth in one case of ten, if only by a little, and for a phase that
    # comes on time that is a few pages too few: what the rhythm promises is the least at the top levels.
    promised = np.where(has_rhythm[:, np.newaxis], promised_by_rhythm, 0.0)
    quantiles = _in_order(_with_least(slots, at, bounded, profiles, levels, promised))
    state.time_s = profiles.time_s
    act = settings.horizons_s.index(settings.act_horizon_s)
    leaders: list[int] = weights[:, :, act].argmax(axis=1).tolist()
    return state, Forecasts(
        made_at_s=profiles.time_s,
        ids=profiles.ids,
        horizons_s=settings.horizons_s,
        levels=settings.levels,
        quantiles_bytes=quantiles,
        historic_peak_bytes=slots.historic_peak[at].astype(np.int64),
        startup_peak_bytes=slots.startup_peak[at].astype(np.int64),
        is_warm=(slots.known_count[at] >= WARM_POINTS) | np.isfinite(slots.onset_s[at, -2]),
        leaders=tuple(NAMES[leader] for leader in leaders),
    )


def _fresh(state: Forecaster, settings: ForecastSettings, now_s: float) -> Forecaster:
    history = max(64, int(settings.history_s / GRID_S))
    horizons = len(settings.horizons_s)
    slots = Slots(
        history=history,
        experts=len(NAMES),
        horizons=horizons,
        levels=len(settings.levels),
        learners=LEARNERS,
        specialists=SPECIALISTS,
    )
    waiting = Waiting([float("-inf")] * horizons)
    return Forecaster(slots=slots, settings=settings, grid_at_s=now_s, waiting=waiting, kinship=state.kinship)


def recall(state: Forecaster, kept: Mapping[WorkloadId, Traits]) -> None:
    """Let workloads, when they are first seen, begin with what was kept of them, or of their kin, before a restart."""
    state.kinship.recall(kept)


def traits_of(state: Forecaster, workload: WorkloadId, program: str) -> Traits | None:
    """Return what a workload is like; None while too little is known to stand for it after a restart."""
    slots = state.slots
    if slots is None or workload not in slots.of or slots.tick_count[slots.of[workload]] < GROWN_TICKS:
        return None
    return read_traits(slots, slots.of[workload], family_of(workload, program))


def _take_in(state: Forecaster, slots: Slots, at: Int64, profiles: Profiles, need: Float64) -> bool:
    """Put the need into the ring, at its grid cell; note phases, peaks and alarms. Tell whether it is a new cell."""
    steps = int((profiles.time_s - state.grid_at_s) / GRID_S)
    if steps > 0:
        state.grid_at_s += steps * GRID_S
        shift = min(steps, slots.history)
        last = slots.ring[:, -1:].copy()
        slots.ring[:, : slots.history - shift] = slots.ring[:, shift:]
        slots.ring[:, slots.history - shift :] = last
        slots.follow_changes(at, last[at, 0], need)
        state.step_s = GRID_S * min(steps, STEPS_MOST)
        slots.ring[at, -1] = need
        slots.known_count[at] = np.minimum(slots.known_count[at] + steps, slots.history)
    else:  # an early tick shares the cell; the cell holds the most that was needed in it
        slots.ring[at, -1] = np.maximum(slots.ring[at, -1], need)
        slots.known_count[at] = np.maximum(slots.known_count[at], 1)
    is_active = profiles.idle_s <= 0.0
    began = is_active & (slots.was_idle[at] == 1)
    ran_s = np.clip(profiles.cpu_ratio, 0.1, 1.0) * profiles.elapsed_s
    onset, peaks = season.note_onsets(
        slots.onset_s[at], slots.phase_peaks[at], began, profiles.time_s - ran_s, need, is_active
    )
    slots.onset_s[at], slots.phase_peaks[at] = onset, peaks
    # One tick without running is no pause: a workload has to be idle for two before a phase can begin.
    paused = profiles.idle_s >= 0.9 * GRID_S
    slots.was_idle[at] = np.where(paused, 1, np.where(is_active, 0, slots.was_idle[at]))
    starting = profiles.is_starting
    slots.startup_peak[at] = np.where(starting, np.maximum(slots.startup_peak[at], need), slots.startup_peak[at])
    slots.historic_peak[at] = np.where(starting, slots.historic_peak[at], np.maximum(slots.historic_peak[at], need))
    slots.alarm_bytes[at] *= 0.5 ** (profiles.elapsed_s / ALARM_HALF_LIFE_S)
    known_peak = np.maximum(slots.historic_peak[at], need)
    alarmed = profiles.was_oom_killed | profiles.hit_limit
    slots.alarm_bytes[at] = np.where(
        alarmed, np.maximum(slots.alarm_bytes[at], ALARM_RATIO * known_peak), slots.alarm_bytes[at]
    )
    _look_for_seasons(state, slots, at, min(steps, SEASON_TURNS))
    return steps > 0


def _look_for_seasons(state: Forecaster, slots: Slots, at: Int64, turns: int) -> None:
    """Look for periods in the series of some of the workloads: it is the one thing that goes row by row."""
    turn = (state.season_turn + np.arange(turns)) % SEASON_TURNS
    state.season_turn = (state.season_turn + turns) % SEASON_TURNS
    mine = at[np.isin(at % SEASON_TURNS, turn)]
    pauses = np.isfinite(slots.onset_s[mine, -2])
    chosen = mine[~pauses & (slots.known_count[mine] >= 2 * season.LEAST_POINTS)]
    slots.season_s[mine] = np.nan
    slots.season_s[chosen] = season.find_seasons(slots.ring[chosen], slots.known_count[chosen], GRID_S)


def _ask(state: Forecaster, at: Int64, profiles: Profiles, need: Float64, *, learns: bool) -> tuple[Float64, Bool]:
    """Return what each one expects, shape (n, experts, horizons, levels), and which specialists are awake.

    Some rows at a time: what it takes meanwhile is many times the result, and a small part of it fits a cache.
    """
    settings, slots = state.settings, state.slots
    assert settings is not None and slots is not None  # noqa: S101, PT018
    horizons_s, levels = settings.horizons_s, np.array(settings.levels)
    found = np.empty((len(at), len(NAMES), len(horizons_s), len(levels)))
    confident = np.empty((len(at), len(SPECIALISTS)), np.bool_)
    moves = slots.moves(at)
    for first in range(0, len(at), ROWS_AT_ONCE):
        part = np.arange(first, min(first + ROWS_AT_ONCE, len(at)))
        series = _series(state, slots, at[part], profiles, part, need[part])
        for row, expert in enumerate(EXPERTS):
            found[part, row] = expert.expect_peak(series, horizons_s)[:, :, np.newaxis]
        confident[part] = np.stack([EXPERTS[row].is_confident(series) for row in SPECIALISTS], axis=1)
    # Of what stands still there is nothing to learn, and on most hosts that is nearly everything.
    found[~moves, len(EXPERTS) :] = need[~moves, np.newaxis, np.newaxis, np.newaxis]
    moving = np.flatnonzero(moves)
    for first in range(0, len(moving), ROWS_AT_ONCE):
        part = moving[first : first + ROWS_AT_ONCE]
        rows = at[part]
        series = _series(state, slots, rows, profiles, part, need[part])
        for row, (learner, own) in enumerate(zip(LEARNERS, slots.own, strict=True), start=len(EXPERTS)):
            if learns:
                learner.advance(own, rows, series)
            found[part, row] = learner.expect(own, rows, series, horizons_s, levels)
    return found, confident


def _series(state: Forecaster, slots: Slots, at: Int64, profiles: Profiles, part: Int64, need: Float64) -> Series:
    return Series(
        now_s=profiles.time_s,
        grid_s=GRID_S,
        need_bytes=need,
        ring_bytes=slots.ring[at],
        known_count=slots.known_count[at],
        growth_bytes_per_s=profiles.growth_bytes_per_s[part],
        is_active=profiles.idle_s[part] <= 0.0,
        onset_s=slots.onset_s[at],
        phase_peaks_bytes=slots.phase_peaks[at],
        season_s=slots.season_s[at],
        step_s=state.step_s,
        change_bytes=slots.change[at],
        mean_bytes=slots.mean[at],
        away_ratio=slots.away[at] / slots.change[at],
        rise_bytes=slots.rise[at],
        drivers=_drivers(profiles, part),
    )


def _drivers(profiles: Profiles, part: Int64) -> Float64:
    """Return what moves memory besides its own past, squashed to 0 to 1, shape (n, N_DRIVERS)."""
    moved = (
        profiles.cpu_ratio,
        profiles.io_bytes_per_s / USUAL_IO_BYTES_PER_S,
        (profiles.minor_faults_per_s + profiles.major_faults_per_s) / USUAL_FAULTS_PER_S,
    )
    found = np.stack([one / (1.0 + one) for one in (np.maximum(each[part], 0.0) for each in moved)], axis=1)
    assert found.shape[1] == N_DRIVERS  # noqa: S101  the learners count on it
    return found


def _remember(
    state: Forecaster,
    at: Int64,
    profiles: Profiles,
    need: Float64,
    situation: Int64,
    by_expert: Float64,
    mixed: Float64,
) -> None:
    """Keep this forecast until its truth is known."""
    settings, slots = state.settings, state.slots
    assert settings is not None and slots is not None  # noqa: S101, PT018
    due = [
        row
        for row, horizon_s in enumerate(settings.horizons_s)
        if state.waiting.is_due(row, horizon_s, profiles.time_s)
    ]
    noted = tuple(one.note(own, at) for one, own in zip(LEARNERS, slots.own, strict=True)) if due else ()
    for row in due:
        state.waiting.forecasts.append(
            Pending(
                horizon=row,
                due_s=profiles.time_s + settings.horizons_s[row],
                slots=at,
                generation=slots.generation[at],
                need=need,
                situation=situation,
                by_expert=by_expert[:, :, row].astype(np.float32),
                mixed=mixed[:, row],
                moves=slots.moves(at),
                noted=noted,
                peak=np.zeros(len(at)),
                counts=~profiles.is_starting,
            )
        )


def _bounded(slots: Slots, at: Int64, mixed: Float64, need: Float64, drifting: Float64, levels: Float64) -> Float64:
    """Keep all but the top levels of a workload that pauses within what it ever needed, or is growing to.

    Its errors are whole phases: after a surprise the tracked offsets stand for one, and are added to whatever is
    expected next, also to a phase. Without this bound room would be made for one and a half phases.
    """
    pauses = np.isfinite(slots.onset_s[at, -1])
    known = np.maximum(slots.historic_peak[at], slots.startup_peak[at])
    grown = need[:, np.newaxis] + GROWTH_MARGIN * np.maximum(drifting - need[:, np.newaxis], 0.0)
    most = np.maximum(known[:, np.newaxis], grown)[:, :, np.newaxis]
    is_bound = pauses[:, np.newaxis, np.newaxis] & (levels < TAIL_LEVEL)
    return np.where(is_bound, np.minimum(mixed, most), mixed)


def _with_least(
    slots: Slots, at: Int64, mixed: Float64, profiles: Profiles, levels: Float64, promised: Float64
) -> Float64:
    """Raise the top quantiles after an OOM kill or a limit hit, while starting, and to what a rhythm promises.

    `mixed` has shape (n, horizons, levels), `promised` (n, horizons); a start needs the start-up peak known.
    """
    least = slots.alarm_bytes[at]
    least = np.where(profiles.is_starting, np.maximum(least, slots.startup_peak[at]), least)
    raised = np.maximum(least[:, np.newaxis], promised)[:, :, np.newaxis]
    return np.where(levels >= ALARM_LEVEL, np.maximum(mixed, raised), mixed)


def _in_order(quantiles: Float64) -> Float64:
    """Return quantiles that are not negative and fall neither along the levels nor along the horizons."""
    ordered = np.maximum.accumulate(np.maximum(quantiles, 0.0), axis=2)
    return np.maximum.accumulate(ordered, axis=1)
