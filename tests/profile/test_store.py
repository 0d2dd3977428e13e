# SPDX-License-Identifier: Apache-2.0
"""The store, whole: what was written is read, at every resolution, from blocks and from chunks alike; bounds hold."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.domain.series import METRICS, NAMES, RESOLUTIONS_S, SAMPLED, Series
from memsculpt.domain.settings import ProfileSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import Refused, Unavailable, UsageError
from memsculpt.profile import codec
from memsculpt.profile.series import fold
from memsculpt.profile.store import Reader, Store
from tests.profile import shelf
from tests.profile.shelf import BEGIN_S, MIB, ODD, REDIS, block, steps

pytestmark = pytest.mark.timeout(60)
KEEP = ProfileSettings().keep_by_resolution()


@pytest.fixture
def store(tmp_path):
    opened = Store.open_to_write(tmp_path / "state", now_s=BEGIN_S)
    yield opened
    opened.close()


def seal(store: Store, now_s: int = BEGIN_S + 10**6) -> None:
    for hour, team in store.unsealed(now_s):
        store.seal(hour, team)


def test_the_same_is_read_before_and_after_an_hour_is_sealed(store):
    """Blocks and chunks are two places of one series, at every resolution."""
    values = steps(3600)
    store.append([block(BEGIN_S + 600 * number, values[600 * number :][:600], REDIS) for number in range(6)])
    before = [store.last(REDIS, each) for each in RESOLUTIONS_S]
    seal(store)
    after = [store.last(REDIS, each) for each in RESOLUTIONS_S]

    assert store.unsealed(BEGIN_S + 10**6) == []
    for one, other, resolution_s in zip(before, after, RESOLUTIONS_S, strict=True):
        assert one.start_s == other.start_s == BEGIN_S
        assert len(one.values) == 3600 // resolution_s
        assert (one.values == other.values).all()
        assert (one.is_valid == other.is_valid).all()


def test_coarse_samples_are_means_and_peaks_of_the_fine_ones(store):
    values = steps(3600)
    values[1234, 0] = 9e9
    store.append([block(BEGIN_S, values, REDIS)])
    seal(store)
    hour = store.last(REDIS, 3600)

    mean, _ = hour.column("needed_bytes")
    peak, _ = hour.column("needed_peak_bytes")
    assert mean[0] == pytest.approx(values[:, 0].mean(), rel=2e-3)
    assert peak[0] == pytest.approx(9e9, rel=2e-3)


def test_gaps_are_told_apart_from_zeros(store):
    """Seconds without a sample, a metric never known, and a workload that came late."""
    values = steps(60)
    values[:, 3] = np.nan
    values[10:20] = np.nan
    values[30, 0] = 0.0
    store.append([block(BEGIN_S, values, REDIS)])
    store.append([block(BEGIN_S + 300, steps(60), ODD)])
    seal(store)
    found = store.last(REDIS, 1)

    assert found.is_valid[:, 0].tolist() == [not 10 <= second < 20 for second in range(60)]
    assert not found.is_valid[:, 3].any()
    assert found.is_valid[30, 0]
    assert found.values[30, 0] == 0.0
    assert store.last(ODD, 1).start_s == BEGIN_S + 300


def test_what_cannot_be_measured_is_kept_as_unknown_or_as_it_is(store):
    """NaN and infinity are unknown, negative values stay negative, what is too large stays large."""
    values = steps(4)
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, 0], values[2, 0] = -4096.0 * 5, 2.0**63
    store.append([block(BEGIN_S, values, REDIS)])
    found = store.read(REDIS, 1, BEGIN_S, BEGIN_S + 4)

    assert not found.is_valid[0, :3].any()
    assert found.values[1, 0] == -4096.0 * 5
    assert found.values[2, 0] == pytest.approx(2.0**63, rel=1e-3)


def test_the_later_sample_counts_where_a_clock_went_back(store):
    first, second = np.full((60, SAMPLED), 4096.0), np.full((60, SAMPLED), 8192.0)
    store.append([block(BEGIN_S, first, REDIS)])
    store.append([block(BEGIN_S + 30, second, REDIS)])
    before = store.last(REDIS, 1).column("needed_bytes")[0].tolist()
    seal(store)
    store.append([block(BEGIN_S + 80, first[:5], REDIS)])
    seal(store)
    after = store.last(REDIS, 1).column("needed_bytes")[0].tolist()

    assert before == [4096.0] * 30 + [8192.0] * 60
    assert after == [4096.0] * 30 + [8192.0] * 50 + [4096.0] * 5 + [8192.0] * 5


def test_the_last_four_weeks_come_as_arrays_with_a_mask(store):
    """As a slow forecast asks for them: 8,064 samples of five minutes, the newest last."""
    count = 8064 + 100
    values = np.repeat(np.arange(count)[:, np.newaxis] % 500 * 4096.0, len(METRICS), axis=1)
    start_s = BEGIN_S // 86_400 * 86_400
    series = Series(
        workload=REDIS, resolution_s=300, start_s=start_s, values=values, is_valid=np.ones(values.shape, np.bool_)
    )
    store.insert([series])
    found = store.last(REDIS, 300)

    assert found.values.shape == (8064, len(METRICS))
    assert found.is_valid.all()
    assert found.times_s[-1] == start_s + (count - 1) * 300
    assert (found.values[:, 0] == values[100:, 0]).all()
    assert store.last(REDIS, 300, 5, until_s=start_s + 3000).times_s[-1] == start_s + 2700


def test_who_is_unknown_has_no_series(store):
    assert store.last(WorkloadId("nobody"), 300).values.shape == (0, len(METRICS))
    assert store.newest_s(WorkloadId("nobody"), 1) is None
    assert store.get(WorkloadId("nobody"), "model") is None


@pytest.mark.parametrize("wrong", [0, 2, 61, 86_400])
def test_a_resolution_that_is_not_kept_is_refused(store, wrong):
    with pytest.raises(UsageError, match="none that is kept"):
        store.last(REDIS, wrong)


def test_more_than_fits_in_memory_is_refused(store):
    with pytest.raises(UsageError, match="at once"):
        store.read(REDIS, 1, 0, 10**9)


def test_every_update_is_a_version(store):
    numbers = [store.put(REDIS, "model", content, made_s=BEGIN_S + at) for at, content in enumerate((b"a", b"b", b"b"))]
    store.put(REDIS, "prior", b"other", made_s=BEGIN_S)

    assert numbers == sorted(set(numbers))
    assert [one.number for one in store.versions(REDIS, "model")] == numbers
    assert store.get(REDIS, "model") == b"b"
    assert store.get(REDIS, "model", numbers[0]) == b"a"
    assert store.get(REDIS, "prior") == b"other"
    assert store.get(REDIS, "heat") is None
    with pytest.raises(UsageError, match="none that is kept"):
        store.put(REDIS, "modle", b"", made_s=0)


def test_names_that_are_no_text_survive(store):
    store.put(ODD, "model", b"it", made_s=BEGIN_S)
    assert [one.id for one in store.workloads()] == [ODD]
    assert store.get(ODD, "model") == b"it"


def test_everything_survives_a_restart(tmp_path):
    path = shelf.filled(tmp_path)
    reader = Reader.open(tmp_path)
    assert [one.id for one in reader.workloads()] == sorted([REDIS, ODD])
    assert len(reader.last(REDIS, 1, 10**5).values) == 2 * 3600 + 20 * 60
    assert reader.get(REDIS, "model") == b"better weights"
    assert reader.check() == []
    reader.close()
    assert sorted(os.listdir(path.parent)) == ["profile.db", "profile.lock"]  # reading leaves nothing behind


def test_a_reader_sees_what_a_writer_flushed(store):
    store.append([block(BEGIN_S, steps(60), REDIS)])
    reader = Reader.open(store.path.parent)
    store.append([block(BEGIN_S + 60, steps(60), REDIS)])
    assert len(reader.last(REDIS, 1).values) == 120
    reader.close()


def test_two_cannot_write_one_store(store):
    with pytest.raises(Refused, match="another memsculpt writes"):
        Store.open_to_write(store.path.parent, now_s=BEGIN_S)


def test_where_there_is_no_store_it_is_said(tmp_path):
    with pytest.raises(Unavailable, match="no profile store"):
        Reader.open(tmp_path)


def test_what_is_too_old_leaves_by_resolution(store):
    """After ten days the seconds of the first day are gone, its five minutes are there."""
    for day in range(11):
        store.append([block(BEGIN_S + day * 86_400, steps(3600, seed=day), REDIS)])
    now_s = BEGIN_S + 10 * 86_400 + 3600
    seal(store, now_s + 3600)
    store.thin(now_s, KEEP, 1 << 30)

    first_day = (BEGIN_S, BEGIN_S + 86_400)
    assert not store.read(REDIS, 1, *first_day).is_valid.any()
    assert not store.read(REDIS, 10, *first_day).is_valid.any()
    assert store.read(REDIS, 60, *first_day).is_valid.any()
    assert store.read(REDIS, 300, *first_day).is_valid.any()
    assert store.read(REDIS, 1, BEGIN_S + 10 * 86_400, now_s).is_valid[:3600, 0].all()


def test_samples_of_a_clock_far_ahead_leave(store):
    store.append([block(BEGIN_S, steps(60), REDIS), block(BEGIN_S + 10**9, steps(60), REDIS)])
    seal(store, BEGIN_S + 3600)
    store.thin(BEGIN_S + 3600, KEEP, 1 << 30)
    assert store.last(REDIS, 1, 100).start_s == BEGIN_S


def test_who_was_not_seen_for_as_long_as_anything_is_kept_is_forgotten(store):
    store.append([block(BEGIN_S, steps(60), REDIS)])
    store.put(REDIS, "model", b"it", made_s=BEGIN_S)
    seal(store)
    store.thin(BEGIN_S + 3 * 366 * 86_400, KEEP, 1 << 30)
    assert store.workloads() == []
    assert store.versions(REDIS, "model") == []
    store.append([block(BEGIN_S + 4 * 366 * 86_400, steps(60), REDIS)])  # and may come again
    assert store.newest_s(REDIS, 1) is not None


def test_the_size_bound_takes_the_finest_and_oldest_first(store):
    for hour in range(40):
        store.append([block(BEGIN_S + hour * 3600, steps(3600, seed=hour) * (1 + hour), REDIS, ODD)])
    now_s = BEGIN_S + 40 * 3600
    seal(store, now_s)
    bound = store.size_bytes() * 2 // 3
    store.thin(now_s, dict.fromkeys(RESOLUTIONS_S, 1e9), bound)

    assert store.size_bytes() <= bound
    assert store.last(REDIS, 300, 10**5).start_s == BEGIN_S
    seconds = store.last(REDIS, 1, 10**6)
    assert seconds.start_s > BEGIN_S
    assert seconds.times_s[-1] == now_s - 1
    assert store.check() == []


def test_thinning_gives_room_back_to_the_disk(tmp_path):
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    for hour in range(20):
        store.append([block(BEGIN_S + hour * 3600, steps(3600, seed=hour), REDIS)])
    seal(store)
    store.close()
    before = store.path.stat().st_size
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    store.thin(BEGIN_S + 20 * 3600, dict.fromkeys(RESOLUTIONS_S, 3600.0), 1 << 30)
    store.close()
    assert store.path.stat().st_size < before / 2


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7300), st.integers(1, 200), st.sampled_from([1, 10])), max_size=6
    ),
    seals=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_any_order_of_flushes_and_seals_reads_as_an_array_would(tmp_path_factory, pieces, seals):
    """The oracle is a plain dictionary from second to code, written in the same order."""
    store = Store.open_to_write(tmp_path_factory.mktemp("state"), now_s=BEGIN_S)
    truth: dict[tuple[int, int], np.ndarray] = {}
    for (who, at, count, step_s), sealed in zip(pieces, seals, strict=False):
        start_s = (BEGIN_S + at) // step_s * step_s
        width = SAMPLED if step_s == 1 else len(METRICS)
        values = steps(count, seed=at, width=width)
        store.append([block(start_s, values, WorkloadId(f"w{who}"), resolution_s=step_s)])
        if step_s == 1:
            for number, row in enumerate(codec.restore(codec.quantise(values))[0]):
                truth[who, start_s + number] = row
        if sealed:
            seal(store)
    for who in range(4):
        found = store.read(WorkloadId(f"w{who}"), 1, BEGIN_S, BEGIN_S + 7500)
        for second in range(7500):
            expected = truth.get((who, BEGIN_S + second))
            assert found.is_valid[second, 0] == (expected is not None)
            if expected is not None:
                assert (found.values[second, :SAMPLED] == expected).all()
    assert store.check() == []
    store.close()


@given(
    values=st.lists(st.none() | st.integers(0, 1000), min_size=1, max_size=50), factor=st.sampled_from([1, 2, 6, 10])
)
def test_folding_means_what_is_known_and_keeps_the_peak(values, factor):
    column = np.array([np.nan if one is None else float(one) for one in values])
    table = np.tile(column[:, np.newaxis], (1, SAMPLED))
    found = fold(np.nan_to_num(table), np.isfinite(table), factor)
    for number, row in enumerate(found):
        known = column[number * factor :][:factor]
        known = known[np.isfinite(known)]
        assert np.isnan(row[0]) == (known.size == 0)
        if known.size:
            assert row[0] == pytest.approx(known.mean())
            assert row[NAMES.index("needed_peak_bytes")] == known.max()


def test_a_store_of_version_1_is_readable_for_ever(tmp_path):
    """The golden file, written by hand byte by byte."""
    path = tmp_path / "profile.db"
    shelf.version_1(path)
    reader = Reader.open(tmp_path)
    found = reader.last(REDIS, 300)

    assert reader.check() == []
    assert found.start_s == BEGIN_S
    needed, is_known = found.column("needed_bytes")
    assert needed[is_known].tolist() == [100 * 4096.0, 103 * 4096.0]
    assert found.column("minor_faults_per_s")[0].tolist() == pytest.approx([7.0, 7.0, 7.0])
    assert reader.get(REDIS, "model") == b"model"
    reader.close()
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    assert store.notes == []
    store.append([block(BEGIN_S + 900, steps(60), REDIS)])
    assert len(store.last(REDIS, 300).values) == 4
    store.close()


def test_the_state_folder_is_private(tmp_path):
    path = shelf.filled(Path(tmp_path) / "new", hours=1, minutes=0)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.stat().st_size < MIB
