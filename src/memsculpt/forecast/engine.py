# SPDX-License-Identifier: Apache-2.0
"""One step of the forecaster: take in the profiles, score what has come true, look ahead.

All workloads go together as stacked arrays. Each expert's expected peak becomes quantiles by offsets that
are tracked online (conformal.py); the mixture weighs the experts by their pinball loss (mixture.py); a last
correction keeps the mixture honest. A start-up is kept apart: it is neither scored nor does it raise the
historic peak. An OOM kill or a limit that was hit raises the top quantiles at once.
"""

from dataclasses import dataclass, field

import numpy as np

from memsculpt.domain.arrays import Bool, Float64, Int64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import ForecastSettings
from memsculpt.forecast import conformal, mixture, season
from memsculpt.forecast.experts import EXPERTS, Drift, SeasonalNaive
from memsculpt.forecast.memory import Slots
from memsculpt.forecast.protocol import Series

GRID_S = 1.0
DRIFT = next(row for row, expert in enumerate(EXPERTS) if isinstance(expert, Drift))
SEASONAL = next(row for row, expert in enumerate(EXPERTS) if isinstance(expert, SeasonalNaive))
SEASON_EVERY_S = 20.0
ALARM_RATIO = 1.2
ALARM_HALF_LIFE_S = 120.0
ALARM_LEVEL = 0.9
# Growth may get faster within a horizon: up to this many times what drift expects is thought possible.
GROWTH_MARGIN = 2.0
TAIL_LEVEL = 0.99  # from here on surprises are what the level is for
WARM_POINTS = 30
# How many forecasts of one horizon wait for their truth at a time: a minute's horizon is not scored every second.
PENDING_PER_HORIZON = 12


@dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A forecast whose horizon has not passed yet."""

    horizon: int
    due_s: float
    slots: Int64
    generation: Int64
    points: Float64  # shape (n, experts)
    by_expert: Float64  # shape (n, experts, levels)
    mixed: Float64  # shape (n, levels)
    peak: Float64  # shape (n,): the truth so far
    counts: Bool  # shape (n,): not made during a start


@dataclass(slots=True, eq=False)
class Forecaster:
    """The engine's memory. `Forecaster()` is empty; the arrays inside are its own and change in place."""

    slots: Slots | None = None
    settings: ForecastSettings | None = None
    time_s: float | None = None
    grid_at_s: float = 0.0
    season_at_s: float = float("-inf")
    pending: list[_Pending] = field(default_factory=list[_Pending])
    asked_at_s: list[float] = field(default_factory=list[float])


def step(state: Forecaster, profiles: Profiles, settings: ForecastSettings) -> tuple[Forecaster, Forecasts]:
    """Learn from this tick and forecast the peak need over each horizon, for all workloads at once."""
    if state.slots is None or state.settings != settings:
        state = _fresh(settings, profiles.time_s)
    slots = state.slots
    assert slots is not None  # noqa: S101  _fresh made it
    need = profiles.needed_bytes.astype(np.float64)
    levels = np.array(settings.levels)
    at = slots.open_slots(profiles.ids, need, profiles.time_s, conformal.initial_offsets(need, levels))
    settled = (slots.was_starting[at] == 1) & ~profiles.is_starting
    if settled.any():
        slots.begin_steady(at[settled], need[settled], conformal.initial_offsets(need[settled], levels))
    slots.was_starting[at] = profiles.is_starting
    _take_in(state, slots, at, profiles, need)
    _score(state, slots, profiles, at, need, levels)
    series = _series(slots, at, profiles, need)
    points = np.stack([expert.expect_peak(series, settings.horizons_s) for expert in EXPERTS], axis=1)
    confident = np.stack([expert.is_confident(series) for expert in EXPERTS], axis=1)
    by_expert = points[:, :, :, np.newaxis] + slots.offsets[at]
    weights = mixture.used_weights(slots.weights[at], confident)
    mixed = _in_order(mixture.mix(by_expert, weights) + slots.correction[at])
    _remember(state, at, profiles, points, by_expert, mixed)
    bounded = _bounded(slots, at, mixed, need, points[:, DRIFT], levels)
    # Tracking keeps the 0.9 quantile below the truth in one case of ten, if only by a little, and for a phase that
    # comes on time that is a few pages too few: what the rhythm promises is the least at the top levels.
    has_rhythm = confident[:, SEASONAL] & np.isfinite(slots.onset_s[at, -2])
    promised = np.where(has_rhythm[:, np.newaxis], points[:, SEASONAL], 0.0)
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
        leaders=tuple(EXPERTS[leader].name for leader in leaders),
    )


def _fresh(settings: ForecastSettings, now_s: float) -> Forecaster:
    history = max(64, int(settings.history_s / GRID_S))
    horizons = len(settings.horizons_s)
    slots = Slots(history=history, experts=len(EXPERTS), horizons=horizons, levels=len(settings.levels))
    return Forecaster(slots=slots, settings=settings, grid_at_s=now_s, asked_at_s=[float("-inf")] * horizons)


def _take_in(state: Forecaster, slots: Slots, at: Int64, profiles: Profiles, need: Float64) -> None:
    """Put the need into the ring, at its grid cell; note phases, peaks and alarms."""
    steps = int((profiles.time_s - state.grid_at_s) / GRID_S)
    if steps > 0:
        state.grid_at_s += steps * GRID_S
        shift = min(steps, slots.history)
        last = slots.ring[:, -1:].copy()
        slots.ring[:, : slots.history - shift] = slots.ring[:, shift:]
        slots.ring[:, slots.history - shift :] = last
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
    if profiles.time_s - state.season_at_s >= SEASON_EVERY_S:
        state.season_at_s = profiles.time_s
        pauses = np.isfinite(slots.onset_s[at, -2])
        chosen = at[~pauses & (slots.known_count[at] >= 2 * season.LEAST_POINTS)]
        slots.season_s[at] = np.nan
        slots.season_s[chosen] = season.find_seasons(slots.ring[chosen], slots.known_count[chosen], GRID_S)


def _series(slots: Slots, at: Int64, profiles: Profiles, need: Float64) -> Series:
    return Series(
        now_s=profiles.time_s,
        grid_s=GRID_S,
        need_bytes=need,
        ring_bytes=slots.ring[at],
        known_count=slots.known_count[at],
        growth_bytes_per_s=profiles.growth_bytes_per_s,
        is_active=profiles.idle_s <= 0.0,
        onset_s=slots.onset_s[at],
        phase_peaks_bytes=slots.phase_peaks[at],
        season_s=slots.season_s[at],
    )


def _score(state: Forecaster, slots: Slots, profiles: Profiles, at: Int64, need: Float64, levels: Float64) -> None:
    """Follow the truth of what is pending, and learn from what is due."""
    by_slot = np.full(slots.capacity, np.nan)
    by_slot[at] = need
    waiting: list[_Pending] = []
    for pending in state.pending:
        seen = by_slot[pending.slots]
        pending.peak = np.fmax(pending.peak, seen)
        if pending.due_s > profiles.time_s + 0.25 * GRID_S:
            waiting.append(pending)
            continue
        usable = pending.counts & np.isfinite(seen) & (slots.generation[pending.slots] == pending.generation)
        if usable.any():
            _learn(slots, pending, usable, levels)
    state.pending = waiting


def _learn(slots: Slots, pending: _Pending, usable: Bool, levels: Float64) -> None:
    rows, horizon = pending.slots[usable], pending.horizon
    truth, by_expert, mixed = pending.peak[usable], pending.by_expert[usable], pending.mixed[usable]
    error = truth - pending.points[usable, 0]  # of the last value: the scale on which others are judged
    scale = conformal.learn_scale(slots.scale[rows, horizon], error)
    slots.scale[rows, horizon] = scale
    losses = mixture.pinball(by_expert, truth[:, np.newaxis], levels).mean(axis=2) / scale[:, np.newaxis]
    slots.weights[rows, :, horizon] = mixture.learn_weights(slots.weights[rows, :, horizon], losses)
    slots.offsets[rows, :, horizon] = conformal.learn_offsets(
        slots.offsets[rows, :, horizon],
        by_expert,
        np.repeat(truth[:, np.newaxis], by_expert.shape[1], axis=1),
        levels,
        np.repeat(scale[:, np.newaxis], by_expert.shape[1], axis=1),
    )
    slots.correction[rows, horizon] = conformal.learn_offsets(
        slots.correction[rows, horizon], mixed, truth, levels, 0.5 * scale
    )


def _remember(
    state: Forecaster, at: Int64, profiles: Profiles, points: Float64, by_expert: Float64, mixed: Float64
) -> None:
    """Keep this forecast until its truth is known; of the long horizons only every few ticks' one."""
    settings, slots = state.settings, state.slots
    assert settings is not None and slots is not None  # noqa: S101, PT018
    for column, horizon_s in enumerate(settings.horizons_s):
        if profiles.time_s - state.asked_at_s[column] < horizon_s / PENDING_PER_HORIZON:
            continue
        state.asked_at_s[column] = profiles.time_s
        state.pending.append(
            _Pending(
                horizon=column,
                due_s=profiles.time_s + horizon_s,
                slots=at,
                generation=slots.generation[at],
                points=points[:, :, column],
                by_expert=by_expert[:, :, column],
                mixed=mixed[:, column],
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
