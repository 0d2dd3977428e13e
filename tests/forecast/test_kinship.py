# SPDX-License-Identifier: Apache-2.0
"""What a workload begins with that was never seen: its own traits, its kin's, or what is usual here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptRecord, Refused
from memsculpt.forecast import Forecaster, recall, step, traits_from_bytes, traits_of
from memsculpt.forecast.kinship import GROWN_TICKS, family_of
from tests.forecast.world import AT_90, AT_99, SETTINGS, mib, profiles

GROWN = int(GROWN_TICKS) + 61  # families are looked at every half minute


@pytest.mark.parametrize(
    ("workload", "program", "family"),
    [
        ("system.slice/redis.service", "/usr/bin/redis-server", "exe:/usr/bin/redis-server"),
        ("exe:/usr/bin/python3.11", "/usr/bin/python3.11", "exe:/usr/bin/python#.#"),
        ("system.slice/job@17.service", "", "system.slice/job@#.service"),
        ("docker/" + "0f" * 32, "", "docker/#"),
        ("user.slice/run-u123.scope", "/bin/bash", "user.slice/run-u#.scope"),
    ],
)
def test_a_family_is_the_program_or_the_name_without_its_numbers(workload, program, family):
    """An interpreter says nothing about what it runs, so there the name counts."""
    assert family_of(WorkloadId(workload), program) == family


def test_two_hashes_are_one_family():
    """A container's name is drawn at random; another one of the same kind is kin."""
    one, other = (WorkloadId(f"docker/{hash_}") for hash_ in ("ab12" * 16, "cd34" * 16))

    assert family_of(one, "") == family_of(other, "")


def grown(spread: float, *, seed: int = 1, ticks: int = GROWN) -> Forecaster:
    """A forecaster that has known three jobs of one family for a while, which scatter by `spread` MiB around 200."""
    chance, state = np.random.default_rng(seed), Forecaster()
    for tick in range(ticks):
        need = 200.0 + spread * np.abs(chance.standard_normal(3))
        state, _ = step(state, profiles(tick + 0.4, need, ids=["job@1", "job@2", "job@3"]), SETTINGS)
    return state


def first_forecast(state: Forecaster, name: str, need: float = 200.0):
    _, made = step(state, profiles(GROWN + 0.4, [need], ids=[name]), SETTINGS)
    return mib(made)


def test_a_newcomer_begins_with_the_spread_of_its_kin():
    """Of a restless family more is expected above the need, at once, than of a calm one."""
    restless, calm = first_forecast(grown(80.0), "job@4"), first_forecast(grown(1.0), "job@4")

    assert restless[AT_90] > calm[AT_90] + 20.0
    assert calm[AT_90] < 215.0


def test_without_kin_what_is_usual_on_the_host_counts():
    """A stranger begins with the spread of the others here, in shares of its own need."""
    among_restless, among_calm = first_forecast(grown(80.0), "stranger"), first_forecast(grown(1.0), "stranger")

    assert among_restless[AT_90] > among_calm[AT_90]


def test_after_a_restart_a_workload_goes_on_as_before():
    """Kept as bytes and recalled in a new forecaster, its first forecast is near its last one, peaks and all."""
    before = grown(60.0, ticks=400)
    _, last = step(before, profiles(400.4, [248.0, 248.0, 248.0], ids=["job@1", "job@2", "job@3"]), SETTINGS)
    kept = traits_of(before, WorkloadId("job@1"), "")
    assert kept is not None

    after = Forecaster()
    recall(after, {WorkloadId("job@1"): traits_from_bytes(kept.to_bytes())})
    _, first = step(after, profiles(1.4, [248.0], ids=["job@1"]), SETTINGS)

    assert mib(first)[AT_90] == pytest.approx(mib(last)[AT_90], rel=0.15)
    assert mib(first)[AT_90] > 300.0  # without: a sixteenth above the need
    assert first.historic_peak_bytes[0] == pytest.approx(last.historic_peak_bytes[0], rel=1e-6)


def test_another_life_of_a_program_is_known_to_need_its_start_up_peak():
    """The second instance is expected to need while starting what the first one needed."""
    state = Forecaster()
    for tick in range(GROWN + 20):
        starting = tick < 10
        need = [900.0 if starting else 100.0]
        state, _ = step(state, profiles(tick + 0.4, need, ids=["job@1"], starting=starting), SETTINGS)

    _, made = step(state, profiles(GROWN + 20.4, [5.0], ids=["job@2"], starting=True), SETTINGS)

    assert mib(made)[AT_90] >= 900.0


def test_who_was_known_for_a_moment_stands_for_nobody():
    """Before two minutes there are no traits to keep."""
    assert traits_of(grown(10.0, ticks=60), WorkloadId("job@1"), "") is None
    assert traits_of(Forecaster(), WorkloadId("job@1"), "") is None


@settings(max_examples=25, deadline=None)
@given(spread=st.floats(0.0, 500.0), need=st.floats(1.0, 5000.0), seed=st.integers(0, 100))
def test_there_is_no_wild_forecast_in_the_first_minute(spread, need, seed):
    """Whatever its kin are like, of a newcomer that stands still a few times itself or them is expected at most."""
    state = grown(spread, seed=seed, ticks=GROWN if seed % 5 == 0 else 0)
    for tick in range(0, 60, 7):
        state, made = step(state, profiles(GROWN + tick + 0.4, [need], ids=["job@4"], elapsed_s=7.0), SETTINGS)
        assert mib(made)[AT_99] <= 3.5 * max(need, 200.0 + 5.0 * spread)
        assert mib(made)[AT_90] >= 0.95 * need


def test_broken_and_foreign_traits_are_refused_and_others_shapes_left_alone():
    """A flipped byte, another version, another engine: told, and the workload begins anew."""
    kept = traits_of(grown(10.0), WorkloadId("job@1"), "")
    assert kept is not None
    content = bytearray(kept.to_bytes())
    content[-3] ^= 1
    with pytest.raises(CorruptRecord):
        traits_from_bytes(bytes(content))
    with pytest.raises(CorruptRecord):
        traits_from_bytes(b"short")
    newer = bytearray(kept.to_bytes())
    newer[8] = 9
    with pytest.raises(Refused):
        traits_from_bytes(bytes(newer))

    other = Forecaster()
    arrays = {**kept.arrays, "spread": np.zeros((1, 2), np.float32)}
    recall(other, {WorkloadId("job@1"): type(kept)(family=kept.family, ticks=kept.ticks, arrays=arrays)})
    fresh = first_forecast(Forecaster(), "job@1")
    np.testing.assert_allclose(first_forecast(other, "job@1"), fresh)
