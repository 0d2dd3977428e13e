# SPDX-License-Identifier: Apache-2.0
"""Workloads that pause and come back: what they will need is there before they do, and not long before."""

import numpy as np
import pytest

from tests.forecast.world import AT_90, Moment, mib, phases, run

NEED = 450.0


def jittered(period_s: float, *, phases_count: int, seed: int = 0, jitter_s: float = 0.3) -> list[float]:
    chance = np.random.default_rng(seed)
    return [3.0 + at * period_s + chance.uniform(-jitter_s, jitter_s) for at in range(phases_count)]


def expected(moments: list[Moment]) -> list[float]:
    """The 0.9 quantile over 3 s after each tick, MiB."""
    return [float(mib(each)[AT_90]) for each in run(moment.profiles for moment in moments)]


def judged(moments: list[Moment], made: list[float], *, from_s: float, until_s: float = 1e9) -> tuple[list, list]:
    """What was expected where a phase is near or under way, and where none is near."""
    near, away = [], []
    for moment, size in zip(moments, made, strict=True):
        if not from_s <= moment.time_s < until_s:
            continue
        if moment.until_onset_s <= 2.5 or moment.is_in_phase:
            near.append(size)
        elif moment.until_onset_s > 4.2 and moment.idle_s >= 1.0:
            away.append(size)
    return near, away


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("period_s", "duration_s"), [(7.3, 1.2), (10.0, 1.1), (16.0, 3.0), (30.0, 3.0)])
def test_from_the_third_onset_on_the_need_is_expected_before_each_phase_and_not_between(period_s, duration_s, seed):
    """2.5 s before an onset and in the phase all of it is expected; from the fifth on hardly any between phases."""
    onsets = jittered(period_s, phases_count=22, seed=seed)
    moments = phases(onsets, duration_s, until_s=period_s * 20)

    made = expected(moments)

    near, _ = judged(moments, made, from_s=onsets[2])
    _, away = judged(moments, made, from_s=onsets[4])

    assert min(near) >= 0.95 * NEED
    assert np.mean(np.array(away) < 0.25 * NEED) >= 0.85


def test_before_a_rhythm_is_known_nothing_is_expected_of_a_pause():
    """After one phase there is no period: the second onset comes unannounced, the third does not."""
    moments = phases([3.0, 13.0, 23.0], 1.1, until_s=30.0)
    made = expected(moments)

    before = {onset: made[int(onset) - 2] for onset in (13.0, 23.0)}

    assert before[13.0] < 0.25 * NEED
    assert before[23.0] >= 0.95 * NEED


def test_a_missed_phase_is_given_up_and_the_next_one_expected():
    """When a phase fails to come its room is given back, and the rhythm is kept for the next."""
    onsets = [each for at, each in enumerate(jittered(10.0, phases_count=16)) if at != 7]
    moments = phases(onsets, 1.1, until_s=150.0)
    made = expected(moments)
    missed_s = 3.0 + 7 * 10.0

    waiting = [size for moment, size in zip(moments, made, strict=True) if 2.5 < moment.time_s - missed_s < 5.5]
    near, away = judged(moments, made, from_s=missed_s + 5.5)

    assert max(waiting) < 0.25 * NEED
    assert min(near) >= 0.95 * NEED
    assert np.mean(np.array(away) < 0.25 * NEED) >= 0.85


@pytest.mark.parametrize(("before_s", "after_s"), [(10.0, 16.0), (16.0, 10.0)])
def test_a_changed_period_is_found_again(before_s, after_s):
    """Five onsets after the change the forecast is as good as before it."""
    onsets = [3.0 + at * before_s for at in range(8)]
    onsets += [onsets[-1] + (at + 1) * after_s for at in range(16)]
    moments = phases(onsets, 1.1, until_s=onsets[20])

    near, away = judged(moments, expected(moments), from_s=onsets[7 + 5])

    assert min(near) >= 0.95 * NEED
    assert np.mean(np.array(away) < 0.25 * NEED) >= 0.85


def test_a_rhythm_that_ends_is_forgotten():
    """Once three periods have passed without a phase its room is given back, wholly within two minutes."""
    onsets = jittered(10.0, phases_count=8)
    moments = phases(onsets, 1.1, until_s=280.0)
    made = expected(moments)
    ends_s = onsets[-1] + 3.0 * 10.0 + 1.0

    late = [size for moment, size in zip(moments, made, strict=True) if moment.time_s > ends_s]
    settled = [size for moment, size in zip(moments, made, strict=True) if moment.time_s > ends_s + 120.0]

    assert max(late) < 0.7 * NEED
    assert max(settled) < 0.05 * NEED


def test_a_late_agent_start_does_not_matter():
    """The phase of the ticks against the onsets is arbitrary: every offset expects the phase in time."""
    for offset_s in (0.0, 0.25, 0.5, 0.75):
        onsets = [3.0 + offset_s + 10.0 * at for at in range(12)]
        moments = phases(onsets, 1.1, until_s=110.0)
        near, _ = judged(moments, expected(moments), from_s=onsets[2])
        assert min(near) >= 0.95 * NEED, offset_s
