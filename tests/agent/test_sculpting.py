# SPDX-License-Identifier: Apache-2.0
"""The sculptor on the simulated host: what it moves, what it leaves, and what it takes back."""

import logging

import pytest

from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.plan import Reason, SculptPool
from memsculpt.domain.pool import ColdZone, HotZone, Prefetch, SculptStats, Verdict, Zone
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.errors import UsageError, Vanished
from memsculpt.host.simulated import Constant, Cycle, Leak, Program, SimulatedHost, SwapFull

MIB = 1 << 20
LEAKS = Leak(name="web", cgroup="web", base_bytes=64 * MIB, leak_bytes_per_s=64.0 * MIB, ceiling_bytes=256 * MIB)
UNIFORM = Constant(name="web", cgroup="web", size_bytes=256 * MIB, touches_per_s=200.0, skew=0.0)
BUSY = Constant(name="web", cgroup="web", size_bytes=128 * MIB, touches_per_s=20_000.0, skew=0.0)
SETTINGS = Settings(
    mode=Mode.APPLY,
    partitions=(PartitionSettings(name="web", match=Match(cgroup="web")),),
    plan=PlanSettings(page_out_bytes_per_s=512.0 * MIB),
)


class Scene:
    """One program on a host, looked at every ten seconds."""

    def __init__(self, program: Program, **more: object) -> None:
        self.host = SimulatedHost(1, workloads=(program,), **more)
        self.host.watch(SETTINGS.partitions)
        self.host.wait_until(self.host.now_s() + 5.0)
        self.sculpting = Sculpting(self.host, SETTINGS)

    def watch(self, seconds: float, *, may_act: bool = True) -> list[SculptStats]:
        """Let time pass, look every ten seconds, and settle every second; return what came of earlier sculpts."""
        settled: list[SculptStats] = []
        end_s = self.host.now_s() + seconds
        next_look_s = self.host.now_s()
        while self.host.now_s() < end_s:
            self.host.wait_until(self.host.now_s() + 1.0)
            observation = self.host.observe()
            if self.host.now_s() >= next_look_s:
                self.sculpting.look(observation)
                next_look_s += 10.0
            settled.extend(self.sculpting.settle(observation, may_act=may_act))
        return settled

    def sculpt(self, request, pool: str = "web", *, may_act: bool = True) -> SculptStats:
        return self.sculpting.sculpt(pool, request, self.host.observe(), may_act=may_act)


def test_what_leaked_leaves_and_stays_away():
    """Memory that nobody touches again is sent out, at the rate allowed; it pays, and the working part is left."""
    scene = Scene(LEAKS)
    scene.watch(160)
    stats = scene.sculpt(ColdZone(size_bytes=512 * MIB))
    assert stats.verdict is Verdict.UNDER_WAY
    assert stats.paged_out_bytes == pytest.approx(192 * MIB, abs=4 * MIB)
    assert stats.zone_bytes[Zone.COLD] == stats.paged_out_bytes
    assert stats.resident_before_bytes - stats.resident_after_bytes == stats.paged_out_bytes
    assert "idle for 120 s" in stats.reason
    assert scene.watch(115) == []  # what was idle for two minutes is watched for two
    (settled,) = scene.watch(10)
    assert settled.verdict is Verdict.PAID
    assert settled.faults_after_per_s == 0.0
    assert scene.host.record("web").major_faults_count == 0


def test_nothing_is_moved_that_is_not_known():
    """Before the second look nobody can tell what is cold or hot."""
    scene = Scene(LEAKS)
    scene.watch(5)
    before = scene.host.fingerprint()
    for request in (HotZone(size_bytes=64 * MIB), ColdZone(size_bytes=64 * MIB), Prefetch(window_s=10.0)):
        stats = scene.sculpt(request)
        assert stats.verdict is Verdict.NOTHING
        assert stats.reason
    assert scene.host.fingerprint() == before


def test_memory_touched_at_random_is_left():
    """Every chunk returns sooner or later, whatever its age: next to nothing is worth its price."""
    scene = Scene(UNIFORM)
    scene.watch(240)
    stats = scene.sculpt(ColdZone(size_bytes=256 * MIB))
    assert stats.paged_out_bytes <= 4 * MIB
    assert stats.reason


def test_what_returns_is_taken_back_and_refused():
    """A program that sleeps for long and then wants everything: it did not pay, it is undone, and remembered."""
    program = Cycle(
        name="web", cgroup="web", size_bytes=128 * MIB, period_s=400.0, work_s=40.0, touch_hz=4.0, offset_s=1.0
    )
    scene = Scene(program)
    scene.watch(360)
    stats = scene.sculpt(ColdZone(size_bytes=128 * MIB))
    assert stats.paged_out_bytes > 64 * MIB
    settled = scene.watch(120)
    assert [one.verdict for one in settled] == [Verdict.UNDONE]
    assert "returned" in settled[0].reason
    again = scene.sculpt(ColdZone(size_bytes=128 * MIB))
    assert again.verdict is Verdict.REFUSED
    assert "did not pay" in again.reason
    assert again.paged_out_bytes == stats.paged_out_bytes


def test_hot_regions_are_gathered():
    """What all of its pages are in use of becomes huge pages, with no memory filled for it."""
    scene = Scene(BUSY)
    scene.watch(25)
    stats = scene.sculpt(HotZone(size_bytes=32 * MIB))
    assert stats.collapsed_bytes == 32 * MIB
    assert (stats.huge_before_bytes, stats.huge_after_bytes) == (0, 32 * MIB)
    assert stats.longest_run_after_bytes > stats.longest_run_before_bytes
    assert stats.resident_after_bytes == stats.resident_before_bytes
    assert stats.zone_bytes[Zone.HOT] == 32 * MIB
    (settled,) = scene.watch(35)
    assert settled.verdict is Verdict.PAID
    scene.sculpting.close(may_act=True)
    assert scene.sculpting.stats("web").zone_bytes[Zone.HOT] == 32 * MIB
    assert int(scene.host.frames(scene.host.instances("web")[0], [(1 << 32, 1 << 33)]).huge_bytes[0]) == 0


@pytest.mark.parametrize(
    "request_",
    [
        *(HotZone(size_bytes=0), HotZone(size_bytes=-1), ColdZone(size_bytes=1.5), ColdZone(size_bytes=True)),
        *(ColdZone(size_bytes="1GiB"), Prefetch(window_s=0.0), Prefetch(window_s=float("nan")), Prefetch(window_s=1e9)),
        *("hot", None, 7),
    ],
)
def test_a_request_without_meaning_is_refused_and_logged(request_, caplog):
    """A clear error, a line in the log, and nothing moved."""
    scene = Scene(BUSY)
    scene.watch(25)
    before = scene.host.fingerprint()
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match="fix: ask for hot or cold"):
        scene.sculpt(request_)
    assert "not sculpted" in caplog.text
    assert scene.host.fingerprint() == before


def test_only_what_a_partition_names_is_a_pool():
    scene = Scene(BUSY)
    scene.watch(2)
    assert [one.pool for one in scene.sculpting.pools()] == ["web"]
    for name in ("init", "web#1", ""):
        with pytest.raises(UsageError, match="none of this name"):
            scene.sculpt(HotZone(size_bytes=MIB), name)
    (process,) = scene.host.instances("web")
    assert scene.sculpting.stats(f"web#{process.pid}").pool == "web"


def test_observing_says_what_it_would_do():
    scene = Scene(LEAKS)
    scene.watch(160)
    before = scene.host.fingerprint()
    stats = scene.sculpt(ColdZone(size_bytes=64 * MIB), may_act=False)
    assert stats.verdict is Verdict.REHEARSED
    assert "64.0 MiB idle for" in stats.reason
    assert stats.moved_bytes == 0
    assert scene.host.fingerprint() == before


def test_a_full_swap_takes_nothing():
    """The swap may be filled to a share only; a full one is no error, there is just nothing to be done."""
    scene = Scene(LEAKS, faults=(SwapFull(from_s=0.0, until_s=1e6),), swap_bytes=256 * MIB)
    scene.watch(160)
    stats = scene.sculpt(ColdZone(size_bytes=64 * MIB))
    assert stats.paged_out_bytes == 0
    assert "swap" in stats.reason
    small = Scene(LEAKS, swap_bytes=64 * MIB)
    small.watch(160)
    assert small.sculpt(ColdZone(size_bytes=256 * MIB)).paged_out_bytes <= 0.8 * 64 * MIB


def test_who_ends_is_no_pool_any_more():
    scene = Scene(BUSY)
    scene.watch(25)
    scene.sculpt(HotZone(size_bytes=8 * MIB))
    (process,) = scene.host.instances("web")
    scene.host.kill(process)
    scene.sculpting.look(scene.host.observe())
    assert scene.sculpting.pools() == ()


def test_a_plan_is_told_what_may_leave_and_what_is_gone():
    """The summary says what a sculpt would move; after it what is gone, and where it moved nothing it rests."""
    scene = Scene(LEAKS)
    scene.watch(160)
    (before,) = scene.sculpting.summaries(scene.host.observe())
    assert before.cold_bytes == pytest.approx(192 * MIB, abs=4 * MIB)
    assert before.idle_least_s == pytest.approx(120.0, abs=5.0)
    assert (before.gone_bytes, before.hot_bytes) == (0, 0)
    action = SculptPool(
        partition="web",
        workload=before.workload,
        process=before.process,
        pool=before.pool,
        request=ColdZone(size_bytes=64 * MIB),
        reason=Reason(code="cold-blocks", text=""),
    )
    moved = scene.sculpting.carry_out(action, 32 * MIB, scene.host.observe())
    assert moved.moved_bytes == pytest.approx(32 * MIB, abs=MIB)
    scene.watch(5)
    (after,) = scene.sculpting.summaries(scene.host.observe())
    assert after.gone_bytes == moved.moved_bytes
    assert after.cold_bytes == pytest.approx(before.cold_bytes - moved.moved_bytes, abs=MIB)
    scene.host.kill(before.process)
    scene.sculpting.kept.watch(scene.host.observe())
    assert scene.sculpting.summaries(scene.host.observe()) == ()
    with pytest.raises(Vanished):
        scene.sculpting.carry_out(action, 32 * MIB, scene.host.observe())
