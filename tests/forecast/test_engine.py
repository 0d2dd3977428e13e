# SPDX-License-Identifier: Apache-2.0
"""What the forecaster promises of every workload: calibration, order, no wild numbers, slots that stay clean."""

import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.settings import MIB
from memsculpt.forecast import Forecaster, step
from memsculpt.forecast.memory import KEEP_GONE_S
from memsculpt.forecast.mixture import pinball
from tests.forecast.world import AT_90, AT_99, LEVELS, SETTINGS, follow, mib, profiles, run

# --- calibration -----------------------------------------------------------------------------------------------------

TICKS, JUDGED_FROM = 700, 100


def bursts(chance, n):
    series = 100.0 + chance.standard_normal(n)
    for at in np.flatnonzero(chance.random(n) < 1 / 60):
        series[at : at + 5] += 150.0
    return series


SERIES = {
    "constant and noise": lambda chance, n: 200.0 + 10.0 * chance.standard_normal(n),
    "random walk": lambda chance, n: 500.0 + np.cumsum(5.0 * chance.standard_normal(n)),
    "ramp": lambda chance, n: 50.0 + 0.5 * np.arange(n) + chance.standard_normal(n),
    "leak": lambda chance, n: 100.0 + 0.1 * np.arange(n) + 2.0 * chance.standard_normal(n),
    "bursts": bursts,
    "fills and empties": lambda chance, n: 100.0 + 6.0 * ((np.arange(n) + chance.integers(45)) % 45),
}
OF_EACH = 2


@cache
def long_run() -> tuple[np.ndarray, np.ndarray]:
    """All series side by side: need of shape (ticks, workloads) and quantiles of (ticks, workloads, levels), MiB."""
    chance = np.random.default_rng(0)
    need = np.array([np.maximum(make(chance, TICKS), 1.0) for make in SERIES.values() for _ in range(OF_EACH)]).T
    growth = np.maximum(np.diff(need, axis=0, prepend=need[:1]), 0.0)
    made = run(profiles(0.4 + tick, need[tick], growth=growth[tick]) for tick in range(TICKS))
    return need, np.array([each.quantiles_bytes[:, 0] / MIB for each in made])


@pytest.mark.parametrize("kind", SERIES)
def test_a_quantile_holds_as_often_as_it_says(kind):
    """Over a long series the peak of the next 3 s stays under the 0.9 quantile in nine cases of ten."""
    need, quantiles = long_run()
    first = OF_EACH * list(SERIES).index(kind)
    mine = slice(first, first + OF_EACH)
    peak = np.array([need[tick + 1 : tick + 4, mine].max(axis=0) for tick in range(JUDGED_FROM, TICKS - 3)])
    held = (peak[:, :, np.newaxis] <= quantiles[JUDGED_FROM : TICKS - 3, mine]).mean(axis=(0, 1))

    assert 0.85 <= held[AT_90] <= 0.97
    assert 0.97 <= held[AT_99] <= 1.0


def test_a_smooth_season_is_used():
    """On a sine of 40 s the loss is well below that of the present need as every quantile."""
    series = 300.0 + 200.0 * np.sin(2.0 * np.pi * np.arange(500) / 40.0)
    made = follow(series)

    after = range(200, 490)
    peak = np.array([series[tick + 1 : tick + 11].max() for tick in after])
    ours = pinball(np.array([mib(made[tick], horizon=1) for tick in after]), peak, np.array(LEVELS)).mean()
    naive = pinball(np.repeat(series[200:490, np.newaxis], len(LEVELS), axis=1), peak, np.array(LEVELS)).mean()

    assert ours < 0.5 * naive


# --- alarms and starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["killed", "hit"])
def test_an_alarm_raises_the_top_quantiles_at_once_and_fades(flag):
    """In the very tick they are a fifth above the highest need known, and ten minutes later they are not."""
    calm = [profiles(tick + 0.4, [100.0]) for tick in range(60)]
    alarm = [profiles(60.4, [100.0], **{flag: True})]
    after = [profiles(tick + 0.4, [100.0]) for tick in range(61, 660)]

    made = run([*calm, *alarm, *after])

    assert mib(made[59])[AT_90] < 115.0
    assert mib(made[60])[AT_90] >= 120.0
    assert mib(made[60])[0] == pytest.approx(mib(made[59])[0], rel=0.05)
    assert mib(made[90])[AT_90] > 100.0
    assert mib(made[-1])[AT_90] < 105.0


def start_then_settle(peak: float, steady: float):
    return [
        *(profiles(tick + 0.4, [peak if tick < 6 else steady], starting=True) for tick in range(10)),
        *(profiles(tick + 0.4, [steady]) for tick in range(10, 60)),
    ]


def test_a_starts_peak_is_kept_apart_from_the_peak_of_steady_state():
    """What it took to start is remembered, but is no historic peak and weighs nothing once it runs."""
    last = run(start_then_settle(900.0, 100.0))[-1]

    assert last.startup_peak_bytes.tolist() == [900 * MIB]
    assert last.historic_peak_bytes.tolist() == [100 * MIB]
    assert mib(last)[AT_99] < 150.0


def test_a_restart_is_forecast_from_the_start_before():
    """In the first tick of the next start, with hardly anything in memory, its whole start-up peak is expected."""
    again = profiles(60.4, [10.0], starting=True, restarted=True)

    last = run([*start_then_settle(900.0, 100.0), again])[-1]

    assert mib(last)[AT_90] >= 900.0


# --- coming and going ------------------------------------------------------------------------------------------------


def test_a_workload_that_comes_back_soon_keeps_what_was_known():
    """Its peaks and its spread survive an absence of a few minutes."""
    before = [profiles(tick + 0.4, [300.0 if tick == 5 else 100.0], ids=["job"]) for tick in range(40)]
    gone = [profiles(tick + 0.4, [50.0], ids=["other"]) for tick in range(40, 340)]
    back = profiles(340.4, [100.0], ids=["job"])

    last = run([*before, *gone, back])[-1]

    assert last.historic_peak_bytes.tolist() == [300 * MIB]
    assert last.is_warm.tolist() == [True]


def test_a_workload_that_comes_back_late_starts_anew():
    """After 900 s without it its slot is another's, and its name has no past."""
    before = [profiles(tick + 0.4, [300.0], ids=["job"]) for tick in range(40)]
    late_s = 40.4 + KEEP_GONE_S
    fillers = [profiles(late_s, [1.0] * 40, ids=[f"f{at}" for at in range(40)], elapsed_s=KEEP_GONE_S)]
    back = profiles(late_s + 1.0, [20.0], ids=["job"])

    last = run([*before, *fillers, back])[-1]

    assert last.historic_peak_bytes.tolist() == [20 * MIB]
    assert last.is_warm.tolist() == [False]


def test_a_slot_used_again_is_clean():
    """A newcomer in a used slot is forecast exactly as in a new forecaster."""
    used = Forecaster()
    run((profiles(tick + 0.4, [400.0 + 50.0 * (tick % 7)] * 32) for tick in range(80)), used)
    state, fresh, late_s = used, Forecaster(), 80.4 + 2.0 * KEEP_GONE_S
    ids = [f"new{at}" for at in range(32)]
    chance = np.random.default_rng(2)
    for tick in range(40):
        need = chance.uniform(10.0, 90.0, 32)
        state, reused = step(state, profiles(late_s + tick, need, ids=ids), SETTINGS)
        fresh, new = step(fresh, profiles(late_s + tick, need, ids=ids), SETTINGS)

    assert state.slots is not None
    assert state.slots.capacity == 32
    np.testing.assert_allclose(reused.quantiles_bytes, new.quantiles_bytes, rtol=0.02)
    np.testing.assert_array_equal(reused.historic_peak_bytes, new.historic_peak_bytes)


def test_two_thousand_workloads_may_appear_at_once_among_old_ones():
    """The arrays grow while forecasts are pending; the old workload's history is untouched."""
    chance = np.random.default_rng(4)
    crowd = [f"c{at:04}" for at in range(2000)]
    seen = [profiles(tick + 0.4, [250.0], ids=["a"]) for tick in range(35)]
    seen += [profiles(tick + 0.4, [100.0, *chance.uniform(1, 90, 2000)], ids=["a", *crowd]) for tick in range(35, 41)]

    last = run(seen)[-1]

    assert last.quantiles_bytes.shape == (2001, len(SETTINGS.horizons_s), len(LEVELS))
    assert last.historic_peak_bytes[0] == 250 * MIB
    assert last.is_warm.tolist() == [True] + [False] * 2000


def test_a_host_without_workloads_has_an_empty_forecast():
    """Nothing to forecast is no error, neither first nor later."""
    first, _, last = run([profiles(0.4, []), profiles(1.4, [5.0]), profiles(2.4, [])])

    assert first.quantiles_bytes.shape == last.quantiles_bytes.shape == (0, len(SETTINGS.horizons_s), len(LEVELS))


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw):
    """A few ticks at uneven distances, of workloads that come and go."""
    seen, time_s = [], 10.0
    for _ in range(draw(st.integers(1, 10))):
        gap_s = draw(st.sampled_from((0.0, 0.25, 1.0, 5.0)))
        time_s += gap_s
        ids = sorted(draw(st.sets(st.sampled_from("abcd"))))
        need = [draw(st.sampled_from((0.0, 1.0, 450.0)) | st.floats(0, 1e6)) for _ in ids]
        seen.append(
            profiles(
                time_s,
                need,
                ids=ids,
                elapsed_s=gap_s,
                idle_s=[draw(st.sampled_from((0.0, 0.4, 1.0, 7.0))) for _ in ids],
                growth=[draw(st.sampled_from((0.0, 50.0))) for _ in ids],
                starting=draw(st.booleans()),
                killed=draw(st.integers(0, 9)) == 0,
            )
        )
    return seen


@settings(max_examples=30)
@given(history=histories())
def test_quantiles_are_finite_and_in_order(history):
    """They are never negative and fall neither along the levels nor along the horizons, at any spacing of ticks."""
    for each in run(history):
        quantiles = each.quantiles_bytes
        assert np.isfinite(quantiles).all()
        assert (quantiles >= 0.0).all()
        assert (np.diff(quantiles, axis=2) >= 0.0).all()
        assert (np.diff(quantiles, axis=1) >= 0.0).all()
        assert (each.historic_peak_bytes >= 0).all()


@settings(max_examples=30)
@given(history=histories())
def test_equal_histories_give_equal_forecasts_and_are_left_as_they_were(history):
    """No clock and no chance: a second forecaster says the same, and the profiles are unchanged."""
    before = pickle.dumps(history)
    first, second = run(history), run(history)

    assert pickle.dumps(history) == before
    for one, other in zip(first, second, strict=True):
        assert one.quantiles_bytes.tobytes() == other.quantiles_bytes.tobytes()
        assert one.leaders == other.leaders


def test_workloads_do_not_disturb_one_another():
    """Each workload's forecast is the same in any order of the rows and in any company."""
    chance = np.random.default_rng(5)
    names, states = list("abcde"), [Forecaster(), Forecaster(), Forecaster()]
    for tick in range(70):
        need = dict(zip(names, chance.uniform(1.0, 500.0, len(names)), strict=True))
        orders = [names, [names[row] for row in chance.permutation(len(names))], ["c"]]
        made = []
        for at, order in enumerate(orders):
            states[at], each = step(
                states[at], profiles(tick + 0.4, [need[name] for name in order], ids=order), SETTINGS
            )
            made.append({name: each.quantiles_bytes[row] for row, name in enumerate(order)})
        for name in names:
            np.testing.assert_allclose(made[1][name], made[0][name], rtol=1e-12)
        np.testing.assert_allclose(made[2]["c"], made[0]["c"], rtol=1e-12)


def test_a_workload_twice_as_large_is_forecast_twice_as_large():
    """Nearly: the first error scale has a floor of 1 MiB, which weighs less the longer the series is known."""
    chance = np.random.default_rng(6)
    series = 100.0 + np.abs(chance.standard_normal(400)) * 20.0

    small, large = follow(series)[-1], follow(2.0 * series)[-1]

    np.testing.assert_allclose(mib(large), 2.0 * mib(small), rtol=0.03)


@pytest.mark.parametrize("gap_s", [0.25, 5.0])
def test_early_and_late_ticks_do_no_harm(gap_s):
    """On a plateau with noise the 0.9 quantile stays near the noise at any interval, also when it changes."""
    chance = np.random.default_rng(7)
    times = np.cumsum([*[1.0] * 100, *[gap_s] * 200, *[1.0] * 100])
    seen = [
        profiles(float(time_s), [200.0 + chance.uniform(-10.0, 10.0)], elapsed_s=float(gap))
        for time_s, gap in zip(times, np.diff(times, prepend=0.0), strict=True)
    ]

    made = run(seen)

    assert all(190.0 < mib(each)[AT_90] < 240.0 for each in made[60:])


def test_a_tick_seen_twice_changes_little():
    """The same moment again (a retried tick) neither shifts the ring nor makes a phase."""
    once = [profiles(tick + 0.4, [100.0 + tick % 3]) for tick in range(60)]
    twice = [each for tick, one in enumerate(once) for each in ([one] if tick % 10 else [one, one])]

    np.testing.assert_allclose(mib(run(twice)[-1]), mib(run(once)[-1]), rtol=0.05)
