# SPDX-License-Identifier: Apache-2.0
"""The store, broken: by a kill at any point, a flipped bit, a missing end, a newer version. Never silently."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsculpt.errors import CorruptStore, Refused
from memsculpt.profile.store import Reader, Store, find_set_aside
from tests.house.tree import ROOT
from tests.profile import shelf
from tests.profile.shelf import BEGIN_S, ODD, REDIS, block, steps

# Writes a minute of samples after the other, seals hours, thins, keeps models; tells each flush when it is done.
WRITER = """
import sys
from memsculpt.profile.store import Store
from memsculpt.domain.series import RESOLUTIONS_S
from tests.profile.shelf import BEGIN_S, ODD, REDIS, block, steps
store = Store.open_to_write(sys.argv[1], now_s=BEGIN_S)
at = int(sys.argv[2])
while True:
    store.append([block(BEGIN_S + at * 600, steps(600, seed=at), REDIS, ODD)])
    store.put(REDIS, "model", b"%d" % at, made_s=BEGIN_S + at * 600)
    print(at, flush=True)
    at += 1
    if at % 6 == 0:
        for hour, team in store.unsealed(BEGIN_S + at * 600):
            store.seal(hour, team)
        store.thin(BEGIN_S + at * 600, dict.fromkeys(RESOLUTIONS_S, 1e9), 1 << 30)
"""
ROUNDS = 12

pytestmark = pytest.mark.timeout(60)


@pytest.mark.timeout(90)
def test_killed_at_any_point_it_loses_nothing_that_was_flushed(tmp_path):
    """Real processes, SIGKILL after a random number of flushes and a random while; the next one goes on."""
    chance = random.Random(7)
    folder, done = tmp_path / "state", 0
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(done)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        last = done
        for _ in range(chance.randint(1, 25)):
            last = int(child.stdout.readline())
        if chance.random() < 0.5:
            os.sched_yield()  # somewhere in the next flush, seal or thinning
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split()]
        child.wait()
        child.stdout.close()
        done = max([last, *told]) + 1

        reader = Reader.open(folder)
        assert reader.check() == []
        found = reader.last(REDIS, 1, done * 600 + 3600)
        assert found.start_s == BEGIN_S
        assert len(found.values) >= done * 600
        assert found.is_valid[: done * 600, 0].all()
        assert int(reader.get(REDIS, "model")) >= done - 1
        reader.close()
        assert find_set_aside(folder) == []
    expected = np.concatenate([steps(600, seed=at)[:, 0] for at in range(done)])
    assert np.allclose(found.values[: done * 600, 0], expected, rtol=1e-3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store to be copied and broken."""
    return shelf.filled(tmp_path_factory.mktemp("whole"))


def truth(path: Path):
    reader = Reader.open(path.parent)
    try:
        return {one: reader.read(one, 1, BEGIN_S, BEGIN_S + 9000) for one in (REDIS, ODD)}
    finally:
        reader.close()


def as_the_agent_does(path: Path) -> tuple[Store, bool]:
    """Open to write and use everything; return the store, and whether anything was said."""
    store = Store.open_to_write(path.parent, now_s=BEGIN_S)
    try:
        store.append([block(BEGIN_S + 20_000, steps(10), REDIS)])
        store.seal(BEGIN_S // 3600 + 2, 0)
        problems = store.check()
    except CorruptStore as error:
        problems = []
        store.set_aside(error, BEGIN_S)
    return store, bool(problems or store.notes or store.problems)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_told_or_changes_nothing(whole, tmp_path_factory, at, bit):
    """Set aside and begun anew, or the one record is told of; else every sample is as it was."""
    folder = tmp_path_factory.mktemp("flipped")
    path = folder / whole.name
    content = bytearray(whole.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    if content[60:64] > whole.read_bytes()[60:64]:  # the bit made it a newer version: left as it is
        with pytest.raises(Refused, match="newer"):
            as_the_agent_does(path)
        assert path.read_bytes() == bytes(content)
        shutil.rmtree(folder)
        return
    store, was_told = as_the_agent_does(path)
    aside = find_set_aside(folder)
    if aside:
        assert any("set aside" in note for note in store.notes)
        assert len(aside[0].read_bytes()) >= len(content)  # what was there is kept, whole
    for workload, before in truth(whole).items():
        after = store.read(workload, 1, BEGIN_S, BEGIN_S + 9000)
        known = after.is_valid & before.is_valid
        assert (after.values[known] == before.values[known]).all()  # a wrong value is never shown
        assert was_told or (after.is_valid == before.is_valid).all()
    store.append([block(BEGIN_S + 30_000, steps(10), REDIS)])  # and it goes on
    store.close()
    shutil.rmtree(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(0, 10**9))
def test_a_missing_end_is_told(whole, tmp_path_factory, keep):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / whole.name
    content = whole.read_bytes()
    left = keep % len(content)
    path.write_bytes(content[:left])
    store, was_told = as_the_agent_does(path)
    assert was_told
    aside = find_set_aside(folder)
    assert all(one.name.startswith("profile.db.corrupt-2027") for one in aside)
    # A cut within the last page is filled with zeros by SQLite: the records there are told of, the others are whole.
    assert len(aside) == 1 or (len(content) - left < 4096 and store.problems)
    store.close()
    shutil.rmtree(folder)


def test_a_broken_store_is_no_reader_s_to_move(whole, tmp_path):
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(CorruptStore):
        Reader.open(tmp_path).workloads()
    assert path.stat().st_size == 5000
    assert find_set_aside(tmp_path) == []


def test_two_broken_stores_of_one_second_do_not_replace_one_another(tmp_path):
    for content in (b"first", b"second"):
        (tmp_path / "profile.db").write_bytes(content)
        Store.open_to_write(tmp_path, now_s=BEGIN_S).close()
    assert sorted(one.read_bytes() for one in find_set_aside(tmp_path)) == [b"first", b"second"]


def test_the_log_of_a_broken_store_goes_with_it(whole, tmp_path):
    """Its pages must not be taken for those of the fresh one."""
    (tmp_path / "profile.db").write_bytes(b"nothing of ours")
    (tmp_path / "profile.db-wal").write_bytes(b"log")
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    assert store.check() == []
    store.close()
    (aside,) = find_set_aside(tmp_path)
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"log"


def test_a_store_of_a_newer_version_is_refused_and_untouched(whole, tmp_path):
    path = tmp_path / whole.name
    content = bytearray(whole.read_bytes())
    content[60:64] = (2).to_bytes(4, "big")
    path.write_bytes(content)
    for opening in (lambda: Store.open_to_write(tmp_path, now_s=BEGIN_S), lambda: Reader.open(tmp_path)):
        with pytest.raises(Refused, match="newer memsculpt"):
            opening()
    assert path.read_bytes() == bytes(content)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["profile.db", "profile.lock"]


def test_a_broken_chunk_is_put_aside_within_the_file_when_its_place_is_needed(tmp_path):
    """The hour is written again, the broken bytes stay in the table `broken`, and `check` tells."""
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    store.append([block(BEGIN_S, steps(60), REDIS)])
    store.seal(BEGIN_S // 3600, 0)
    store._connection.execute("UPDATE chunk SET content = X'00112233' || substr(content, 5) WHERE place < 1 << 51")
    assert not store.read(REDIS, 1, BEGIN_S, BEGIN_S + 60).is_valid.any()
    assert len(store.problems) == 1
    store.append([block(BEGIN_S + 60, steps(60), REDIS)])
    store.seal(BEGIN_S // 3600, 0)
    assert store.last(REDIS, 1).start_s == BEGIN_S + 60
    assert any("put aside" in problem for problem in store.check())
    store.close()
