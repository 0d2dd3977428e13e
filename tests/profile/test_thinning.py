# SPDX-License-Identifier: Apache-2.0
"""Versions are thinned by age: young ones stay, old ones get fewer, the newest is never lost."""

from hypothesis import given
from hypothesis import strategies as st

from memsculpt.profile.store.thinning import LONGEST_S, versions_to_keep

NOW_S = 1_800_000_000
ages = st.lists(st.integers(0, 3 * LONGEST_S) | st.integers(0, 7200), max_size=60)


def kept(made_s: list[int], now_s: int) -> list[int]:
    return [each for each, stays in zip(made_s, versions_to_keep(made_s, now_s), strict=True) if stays]


@given(ages=ages)
def test_the_last_hour_stays_and_older_stretches_keep_one_each(ages):
    made_s = sorted(NOW_S - age for age in ages)
    stays = kept(made_s, NOW_S)

    assert [each for each in stays if each >= NOW_S - 3600] == [each for each in made_s if each >= NOW_S - 3600]
    hours = [each // 3600 for each in stays[:-1] if 3600 < NOW_S - each <= 86_400]
    days = [each // 86_400 for each in stays[:-1] if 86_400 < NOW_S - each <= 30 * 86_400]
    weeks = [each // (7 * 86_400) for each in stays[:-1] if NOW_S - each > 30 * 86_400]
    for stretches in (hours, days, weeks):
        assert len(stretches) == len(set(stretches))
    assert stays[-1:] == made_s[-1:]
    assert all(NOW_S - each <= LONGEST_S for each in stays[:-1])


@given(ages=ages)
def test_nothing_that_stands_for_a_stretch_of_time_is_lost(ages):
    """Every stretch in which there was a version has one still."""
    made_s = sorted(NOW_S - age for age in ages)
    stays = kept(made_s, NOW_S)
    for each in made_s:
        age_s = NOW_S - each
        if 86_400 < age_s <= 30 * 86_400:
            assert any(other // 86_400 == each // 86_400 for other in stays)


@given(ages=ages, steps=st.lists(st.integers(0, 40 * 86_400), max_size=6))
def test_thinning_often_is_as_thinning_late(ages, steps):
    """What stays does not depend on how often it was thinned on the way."""
    made_s = sorted(NOW_S - age for age in ages)
    often, now_s = made_s, NOW_S
    for step in [*steps, 0]:
        now_s += step
        often = kept(often, now_s)
    assert often == kept(made_s, now_s)


def test_a_clock_that_went_back_takes_nothing():
    """Versions from the future count as young."""
    made_s = [NOW_S + 10, NOW_S + 10_000, NOW_S + 10**7]
    assert kept(made_s, NOW_S) == made_s
