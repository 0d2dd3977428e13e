# SPDX-License-Identifier: Apache-2.0
"""Models are fitted beside the ticks, once a day, the largest first; they last, and a worker's end is not ours."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from memsculpt import profile
from memsculpt.agent import Agent
from memsculpt.agent.refitting import AGAIN_S, GAP_S, Refitting
from memsculpt.domain.settings import PartitionSettings, ProfileSettings, Settings
from memsculpt.domain.workload import Match, WorkloadId
from memsculpt.forecast import longterm
from memsculpt.host.simulated import Constant, SimulatedHost
from memsculpt.profile.store import Reader, Store
from memsculpt.workers import Bounds
from tests.forecast.longterm.test_moment import wave
from tests.forecast.longterm.test_watch import kept
from tests.refitting import tasks

pytestmark = pytest.mark.timeout(200)  # workers give way to everybody
MIB = 1 << 20
SMALL = Bounds(timeout_s=30.0, memory_bytes=512 * MIB)
W, NAMED = WorkloadId("w"), WorkloadId("named")
BEGIN_S = 1_800_000_000
SERIES = kept(wave(1200) * 2**20)


@pytest.fixture
def recorder(tmp_path):
    made = profile.Recorder(str(tmp_path), ProfileSettings(), clock_s=lambda: float(BEGIN_S))
    yield made
    made.close()


def refitting(select=tasks.last_value, *, count=2, bounds=SMALL):
    return Refitting(count=count, bounds=bounds, select=select)


def offered(one, recorder, now_s, sizes=None):
    """Offer, and let the worker come to its end; return whether one was begun."""
    one.offer(SERIES, 1 << 40, None, {W: 1} if sizes is None else sizes, now_s)
    began = one.is_busy
    one.join(30.0)
    one.collect(recorder, [W], now_s)
    return began


def test_a_model_is_fitted_once_a_day_and_kept(recorder, tmp_path):
    one = refitting()
    assert one.choice_for(W, recorder) is None
    assert offered(one, recorder, 0.0)
    assert one.choice_for(W, recorder).form == "ARIMA(0,1,0)"
    assert not offered(one, recorder, AGAIN_S - 1.0)
    assert one.problem == ""
    after = refitting()  # the agent was started again
    assert after.choice_for(W, recorder) == one.choice_for(W, recorder)
    assert not offered(after, recorder, 0.0)
    with_outlook = longterm.outlook_from(SERIES, 1 << 40, None, 0.0, after.choice_for(W, recorder))
    assert with_outlook.weighed_by == "prior and ARIMA(0,1,0)"


def test_the_largest_have_their_turn_and_one_at_a_time(recorder):
    others = {WorkloadId("a"): 9, WorkloadId("b"): 8}
    one = refitting()
    assert not offered(one, recorder, 0.0, {W: 1, **others})
    assert offered(one, recorder, 0.0, {W: 10, **others})
    again = refitting()
    again.offer(SERIES, 1 << 40, None, {W: 1}, 0.0)
    thread = threading.active_count()
    again.offer(kept(wave(1200)), 1 << 40, None, {W: 1}, GAP_S + 1.0)
    assert threading.active_count() <= thread
    again.join(30.0)


def test_what_is_kept_and_broken_is_fitted_anew(recorder):
    recorder.keep(W, "model", b"{}", now_s=0.0)
    one = refitting()
    assert one.choice_for(W, recorder) is None
    assert offered(one, recorder, 0.0)
    assert one.choice_for(W, recorder) is not None


@pytest.mark.parametrize(
    ("select", "words", "bounds"),
    [
        (tasks.crash, "killed by SIGSEGV", SMALL),
        (tasks.hang, "no result in 3 s", Bounds(timeout_s=3.0)),
        (tasks.eat, "needs more than 512 MiB", SMALL),
        (tasks.break_down, "LookupError: a bug", SMALL),
    ],
    ids=["crash", "hang", "eat", "bug"],
)
def test_a_worker_that_fails_costs_its_model_and_no_more(recorder, select, words, bounds):
    one = refitting(select, bounds=bounds)
    assert offered(one, recorder, 0.0)
    assert words in one.problem
    assert one.choice_for(W, recorder) is None
    assert not offered(one, recorder, GAP_S * 2)  # not tried again before a day is over
    assert offered(one, recorder, AGAIN_S + 1.0)


@pytest.fixture
def scene(tmp_path):
    """A simulated host with one workload of a partition, and four days of its history in the store."""
    host = SimulatedHost(
        1,
        total_bytes=4096 * MIB,
        swap_bytes=1024 * MIB,
        workloads=(Constant(name="named", cgroup="named", size_bytes=256 * MIB),),
    )
    settings = Settings(interval_s=60.0, partitions=(PartitionSettings(name="named", match=Match(cgroup="named")),))
    host.watch(settings.partitions)
    began_s = host.now_s()
    store = Store.open_to_write(tmp_path, now_s=BEGIN_S)
    store.insert([replace(SERIES, workload=NAMED, start_s=BEGIN_S - 300 * len(SERIES.values))])
    store.close()
    recorder = profile.Recorder(
        str(tmp_path), ProfileSettings(), clock_s=lambda: BEGIN_S + host.now_s() - began_s, interval_s=60.0
    )

    def run(select):
        one = refitting(select)
        agent = Agent(host=host, settings=settings, recorder=recorder, refitting=one)
        for _ in range(14):
            agent.tick()
            one.join(30.0)
            host.wait_until(host.now_s() + 60.0)
        agent.close()
        return agent.report

    yield run
    recorder.close()


def test_the_agent_has_models_fitted_and_works_with_them(scene, tmp_path):
    """From the store to a worker to the store and the outlook; a second reader finds it on disk."""
    (outlook,) = scene(tasks.last_value).outlooks
    assert outlook.weighed_by == "prior and ARIMA(0,1,0)"
    assert np.isfinite(outlook.path_bytes).all()
    reader = Reader.open(tmp_path)
    try:
        (version,) = reader.versions(NAMED, longterm.KIND)
        choice = longterm.choice_from_bytes(reader.get(NAMED, longterm.KIND))
    finally:
        reader.close()
    assert choice.form == "ARIMA(0,1,0)"
    assert BEGIN_S <= version.made_s <= BEGIN_S + 14 * 60


def test_an_agent_whose_workers_fail_ticks_on(scene):
    report = scene(tasks.crash)
    assert (report.tick_count, report.failed_count) == (14, 0)
    assert any("killed by SIGSEGV" in note for note in report.notes)
    assert report.outlooks[0].weighed_by == "prior"
