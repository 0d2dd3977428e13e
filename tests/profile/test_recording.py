# SPDX-License-Identifier: Apache-2.0
"""From ticks to the store: placed by the Unix clock, bounded in memory, and never in the way of a tick."""

import logging

import numpy as np
import pytest

from memsculpt.domain.series import METRICS, NAMES, SAMPLED
from memsculpt.domain.settings import ProfileSettings
from memsculpt.domain.workload import WorkloadId
from memsculpt.profile import Recorder
from memsculpt.profile.store import Reader, Store, find_set_aside
from tests.profile.shelf import BEGIN_S, MIB

A, B, C = (WorkloadId(name) for name in ("a", "b", "c"))
MONOTONIC_S = 12_345.6  # the host's clock has nothing to do with the Unix clock


class Clocks:
    """A Unix clock and a monotonic one that a test moves."""

    def __init__(self) -> None:
        self.unix_s, self.monotonic_s = float(BEGIN_S), MONOTONIC_S

    def move(self, by_s: float) -> None:
        self.unix_s += by_s
        self.monotonic_s += by_s


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def recorder(tmp_path, clocks):
    made = Recorder(str(tmp_path / "state"), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    yield made
    made.close()


def rows(*needed_bytes: float) -> np.ndarray:
    table = np.zeros((len(needed_bytes), SAMPLED))
    table[:, 0] = needed_bytes
    table[:, NAMES.index("anon_bytes")] = needed_bytes
    return table


def run(recorder: Recorder, clocks: Clocks, seconds: int, ids=(A,), sizes=(4 * MIB,), named=None) -> None:
    is_named = np.array(named if named is not None else [True] * len(ids))
    for _ in range(seconds):
        recorder.record(tuple(ids), rows(*sizes), is_named=is_named, now_s=clocks.monotonic_s)
        clocks.move(1.0)


def read(recorder: Recorder, workload: WorkloadId, resolution_s: int = 1):
    recorder.flush()
    return recorder.store.last(workload, resolution_s)


def test_what_is_flushed_is_there_and_the_rest_is_not_lost_at_the_end(recorder, clocks, tmp_path):
    run(recorder, clocks, 100)
    reader = Reader.open(tmp_path / "state")
    assert len(reader.last(A, 1).values) == 60  # so much would survive a kill now
    reader.close()
    recorder.close()
    reader = Reader.open(tmp_path / "state")
    found = reader.last(A, 1)
    assert (found.start_s, len(found.values)) == (BEGIN_S, 100)
    assert found.is_valid[:, 0].all()
    reader.close()


def test_uneven_ticks_make_neither_gap_nor_double(recorder, clocks):
    """Ticks that jitter around the border of a second are still one sample each."""
    chance = np.random.default_rng(3)
    for tick in range(200):
        late_s = float(chance.uniform(-0.2, 0.2))
        clocks.unix_s, clocks.monotonic_s = BEGIN_S + tick + 0.99 + late_s, MONOTONIC_S + tick + 0.99 + late_s
        recorder.record((A,), rows(4096.0 * tick), is_named=np.array([True]), now_s=clocks.monotonic_s)
    values, is_known = read(recorder, A).column("needed_bytes")
    assert is_known.all()
    assert values.tolist() == [4096.0 * tick for tick in range(200)]


def test_a_jump_ahead_leaves_a_gap(recorder, clocks):
    run(recorder, clocks, 30)
    clocks.unix_s += 1000.0
    run(recorder, clocks, 30)
    known = read(recorder, A).is_valid[:, 0]
    assert (known.sum(), len(known)) == (60, 1060)


def test_a_jump_back_overwrites(recorder, clocks):
    run(recorder, clocks, 90)
    clocks.unix_s -= 60.0
    run(recorder, clocks, 10, sizes=(8 * MIB,))
    found = read(recorder, A)
    assert (found.start_s, len(found.values)) == (BEGIN_S, 90)
    assert found.column("needed_bytes")[0].tolist() == [4 * MIB] * 30 + [8 * MIB] * 10 + [4 * MIB] * 50


def test_a_clock_before_1970_harms_nothing(recorder, clocks):
    clocks.unix_s = -5000.0
    run(recorder, clocks, 70)
    clocks.unix_s = BEGIN_S
    run(recorder, clocks, 70)
    assert read(recorder, A).is_valid[-70:, 0].all()
    assert recorder.problem == ""


def test_a_clock_that_jumped_by_years_thins_nothing_for_an_hour(tmp_path, clocks):
    """And what it stamped then leaves when it is right again."""
    recorder = Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    run(recorder, clocks, 4000)
    clocks.unix_s += 10 * 366 * 86_400
    run(recorder, clocks, 1200)
    clocks.unix_s -= 10 * 366 * 86_400
    run(recorder, clocks, 2 * 3600)
    recorder.flush()
    found = recorder.store.last(A, 1, 10**5)
    assert found.start_s == BEGIN_S
    assert found.times_s[-1] < clocks.unix_s
    recorder.close()


def test_only_the_named_and_the_largest_are_kept_by_the_second(tmp_path, clocks):
    recorder = Recorder(str(tmp_path), ProfileSettings(fine_count=2), clock_s=lambda: clocks.unix_s)
    run(recorder, clocks, 120, ids=(A, B, C), sizes=(MIB, 2 * MIB, 3 * MIB), named=[True, False, False])
    assert len(read(recorder, A).values) == len(read(recorder, C).values) == 120
    assert len(read(recorder, B).values) == 0
    for each, size in ((A, MIB), (B, 2 * MIB), (C, 3 * MIB)):
        found = read(recorder, each, 10)
        assert found.column("needed_bytes")[0].tolist() == [size] * 12
        assert found.column("needed_peak_bytes")[0].tolist() == [size] * 12
    recorder.close()


def test_a_long_interval_is_kept_by_ten_seconds(tmp_path, clocks):
    recorder = Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: clocks.unix_s, interval_s=10.0)
    for _ in range(60):
        recorder.record((A,), rows(MIB), is_named=np.array([True]), now_s=clocks.monotonic_s)
        clocks.move(10.0)
    assert len(read(recorder, A).values) == 0
    assert read(recorder, A, 10).is_valid[:, 0].all()
    recorder.close()


def test_workloads_come_and_go(recorder, clocks):
    run(recorder, clocks, 65, ids=(A,))
    run(recorder, clocks, 65, ids=(A, B), sizes=(MIB, 2 * MIB))
    run(recorder, clocks, 65, ids=(B, C), sizes=(2 * MIB, 3 * MIB))
    assert len(read(recorder, A).values) == 130
    found = read(recorder, C, 10)
    assert found.is_valid[:, 0].all()
    assert set(read(recorder, B, 10).column("needed_bytes")[0].tolist()) == {2.0 * MIB}


def test_hours_become_chunks_while_it_runs(recorder, clocks):
    run(recorder, clocks, 3 * 3600 + 200)
    hours = {hour for hour, _ in recorder.store.unsealed(0)}
    assert hours == {BEGIN_S // 3600 + 3}
    found = recorder.store.last(A, 3600)
    assert found.is_valid[:3, 0].all()
    assert recorder.store.check() == []


def test_what_a_killed_agent_flushed_becomes_chunks_of_the_next(tmp_path, clocks):
    first = Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    run(first, clocks, 1800)
    first.flush()
    first.store.close()  # as a kill would: nothing sealed
    clocks.move(7200.0)
    second = Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    run(second, clocks, 100)
    assert second.store.unsealed(int(clocks.unix_s)) == []
    assert second.store.last(A, 300).start_s == BEGIN_S
    second.close()


@pytest.mark.parametrize("broken", ["a file in the way", "a newer version"])
def test_where_it_cannot_be_kept_it_is_said_once_and_ticks_go_on(broken, tmp_path, clocks, caplog):
    folder = tmp_path / "state"
    if broken == "a file in the way":
        folder.write_text("no folder\n")
    else:
        Store.open_to_write(folder, now_s=BEGIN_S).close()
        content = bytearray((folder / "profile.db").read_bytes())
        content[60:64] = (99).to_bytes(4, "big")
        (folder / "profile.db").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        recorder = Recorder(str(folder), ProfileSettings(), clock_s=lambda: clocks.unix_s)
        run(recorder, clocks, 300)
    assert len([one for one in caplog.records if "profiles are not kept" in one.message]) == 1
    assert len(recorder.notes) == 1
    recorder.close()


def test_it_goes_on_when_it_can_again(tmp_path, clocks, caplog):
    folder = tmp_path / "state"
    folder.write_text("in the way\n")
    recorder = Recorder(str(folder), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    run(recorder, clocks, 100)
    folder.unlink()
    run(recorder, clocks, 100)
    assert recorder.notes == ()
    assert len(read(recorder, A).values) > 60
    recorder.close()


def test_a_store_that_breaks_while_it_runs_is_set_aside(tmp_path, clocks):
    recorder = Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: clocks.unix_s)
    run(recorder, clocks, 130)
    path = tmp_path / "profile.db"
    recorder.store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    path.write_bytes(b"\xff" * size)
    recorder.store._connection.execute("PRAGMA shrink_memory")  # or it would work on with what it has read before
    run(recorder, clocks, 200)
    assert any("set aside" in note for note in recorder.notes)
    (aside,) = find_set_aside(tmp_path)
    assert aside.stat().st_size >= size
    assert len(read(recorder, A).values) > 60
    recorder.close()


def test_memory_is_bounded_by_one_interval(recorder, clocks):
    """A thousand workloads, a tenth of them by the second: what is gathered stays below 8 MiB."""
    ids = tuple(WorkloadId(f"w{number:04}") for number in range(1000))
    run(recorder, clocks, 59, ids=ids, sizes=tuple(MIB * (1 + number) for number in range(1000)))
    held = sum(
        part.nbytes for grid in (recorder._fine, recorder._coarse) for part in (grid._sums, grid._counts, grid._peaks)
    )
    assert held < 8 * MIB
    assert len(METRICS) == SAMPLED + 1
