# SPDX-License-Identifier: Apache-2.0
"""Identical pages of trusting VMs on the simulated host: merged inside of a group, never beyond, and put back."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt import act
from memsculpt.agent.sharing import Sharing
from memsculpt.domain.outcome import Applied, Status
from memsculpt.domain.plan import Plan, SetSharing
from memsculpt.domain.settings import Mode, Settings, TrustGroup, VmSettings
from memsculpt.domain.sharing import Phase, SharingStep
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import Instance
from memsculpt.host.simulated import SimulatedHost, VirtualMachine
from memsculpt.plan import SharingRules

MIB = 1 << 20
PAGE = 4096
RULES = SharingRules(least_bytes=1 * MIB, unwatched_s=2.0, cpu_most_ratio=0.02, refused_s=60.0)
WEB = TrustGroup(name="web", vms=("web-*",))
COMMON = list(range(1, 3001))
KNOBS = ("run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode")


def own(vm: int, count: int = 1000) -> list[int]:
    """Contents that nobody else has."""
    return list(range(1_000_000 * (vm + 1), 1_000_000 * (vm + 1) + count))


class Scene:
    """Three VMs, of which two trust each other."""

    def __init__(self, folder: Path, *, trust=(WEB,), contents=None) -> None:
        names = ("web-1", "web-2", "db-1", "db-2")
        vms = [VirtualMachine(name=name, ram_bytes=64 * MIB, demand=lambda _: 32 * MIB) for name in names]
        self.host = SimulatedHost(5, workloads=vms, chunk_bytes=MIB)
        self.host.wait_until(self.host.now_s() + 2.0)
        self.settings = Settings(mode=Mode.APPLY, vms=VmSettings(trust=tuple(trust)))
        self.journal = act.Journal.open(folder, machine_lock=None)
        self.sharing = Sharing(self.host, self.settings, rules=RULES, rest_s=2.0, look_ratio=1.0)
        self.ids = act.ActionIds()
        self.applied: list[Applied] = []
        readings = self.host.observe().vms
        self.process = {one.name: one.process for one in readings}
        self.vm = {one.name: VmId(one.id) for one in readings}
        for number, name in enumerate(names):
            self.hold(name, (contents or {}).get(name, COMMON + own(number)))

    def hold(self, name: str, contents: list[int], **more) -> None:
        self.host.hold(self.process[name], contents, vm=self.vm[name], **more)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            observation = self.host.observe()
            chosen = self.sharing.choose(Plan(made_at_s=observation.time_s), observation)
            applied = act.apply(self.host, self.journal, chosen, self.ids)
            self.sharing.note(applied)
            self.applied.extend(applied)
            self.host.wait_until(self.host.now_s() + 1.0)

    def until(self, phase: Phase, most: int = 200) -> None:
        for _ in range(most):
            if self.sharing.report.phase is phase:
                return
            self.tick()
        pytest.fail(f"never {phase}: {self.sharing.report}")

    def knobs(self) -> dict[str, str]:
        return {name: self.host.read_ksm(name) for name in KNOBS}

    def merging_pages(self, process: Instance) -> int:
        return sum(one.merging_pages for one in self.host.offerers() if one.process == process)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.journal.close()


def test_twins_of_one_group_are_merged_and_nobody_else(scene: Scene):
    """What was forecast is saved, the VMs' parts add up, and the outsiders' equal pages stay their own."""
    scene.until(Phase.KEPT)

    report = scene.sharing.report
    assert report.group == "web"
    assert report.forecast.size_bytes == pytest.approx(len(COMMON) * PAGE)
    assert 0.8 <= report.forecast.size_bytes / report.saved_bytes <= 1.25
    members = next(one for one in report.groups if one.name == "web").members
    assert sum(one.saved_bytes for one in members) == pytest.approx(report.saved_bytes, rel=0.01)
    assert scene.merging_pages(scene.process["db-1"]) == scene.merging_pages(scene.process["db-2"]) == 0


def test_everything_is_put_back(scene: Scene):
    """KSM's settings, and who offers memory, are as they were; nothing is merged any more."""
    before = scene.knobs()
    scene.until(Phase.KEPT)
    assert scene.knobs() != before

    report = act.restore(scene.host, scene.journal)

    assert report.is_complete, report
    assert scene.knobs() == before
    assert scene.host.merging().saved_pages == 0
    assert not scene.host.offerers()


def test_a_stranger_pauses_merging_until_he_is_gone(scene: Scene):
    """Who offers memory outside of the group stops it at once, and shares nothing; then it goes on."""
    scene.until(Phase.KEPT)
    saved = scene.host.merging().saved_pages
    stranger = Instance(pid=99_999, start_ticks=1)
    scene.host.hold(stranger, COMMON, name="miner", is_offered=True)
    scene.tick()

    assert scene.sharing.report.phase in {Phase.PAUSED, Phase.KEPT}
    scene.tick(20)
    assert scene.sharing.report.phase is Phase.PAUSED
    assert "miner (pid 99999)" in scene.sharing.report.reason
    assert scene.merging_pages(stranger) == 0
    assert scene.host.merging().saved_pages == saved
    scene.host.let_go(stranger)
    scene.until(Phase.MERGING)


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 5])
def test_who_comes_while_nobody_looks_is_not_reached_in_that_time(scene: Scene, ticks: int):
    """An agent that dies looks no more: until its changes are undone a newcomer is still behind everybody else."""
    scene.until(Phase.MERGING)
    scene.tick(ticks)
    stranger = Instance(pid=99_999, start_ticks=1)
    scene.host.hold(stranger, COMMON, is_offered=True)
    scene.host.wait_until(scene.host.now_s() + RULES.unwatched_s - 0.01)
    scanned = scene.host.merging().scanned_pages

    assert scene.merging_pages(stranger) == 0
    assert scene.knobs()["run"] == "1\n"
    scene.host.wait_until(scene.host.now_s() + 10 * RULES.unwatched_s)
    assert scene.host.merging().scanned_pages > scanned
    assert scene.merging_pages(stranger) > 0  # what would come of it


def test_while_a_vm_outside_offers_memory_nothing_begins(scene: Scene):
    """QEMU's own default, mem-merge=on, of a VM in no group: the reason names it and what helps."""
    scene.hold("db-1", COMMON, is_offered=False)
    scene.host.offer(scene.vm["db-1"], to_ksm=True)
    scene.tick(40)

    assert scene.sharing.report.phase is Phase.IDLE
    assert "mem-merge=off" in scene.sharing.report.reason
    assert not scene.applied
    assert scene.knobs()["run"] == "0\n"


def test_of_two_groups_the_better_one_is_merged(tmp_path: Path):
    """One at a time: while the first is, the other's memory is not even offered."""
    groups = (TrustGroup(name="db", vms=("db-*",)), WEB)
    contents = {"db-1": COMMON[:600] + own(7), "db-2": COMMON[:600] + own(8)}
    scene = Scene(tmp_path, trust=groups, contents=contents)
    scene.until(Phase.KEPT)

    assert scene.sharing.report.group == "web"
    assert {one.name: one.gain.total.size_bytes for one in scene.sharing.report.groups} == {
        "db": pytest.approx(600 * PAGE),
        "web": pytest.approx(3000 * PAGE),
    }
    assert not scene.host.is_offered(scene.vm["db-1"])


def test_what_does_not_pay_does_not_begin(tmp_path: Path):
    """VMs that have little in common are left alone, and the reason carries the figures."""
    contents = {f"web-{number}": COMMON[:50] + own(number, 3000) for number in (1, 2)}
    scene = Scene(tmp_path, contents=contents)
    scene.tick(30)

    assert not scene.applied
    assert "less than" in scene.sharing.report.reason


def test_what_does_not_pay_any_more_ends_and_is_refused_for_a_while(scene: Scene):
    """The guests diverge: merging is taken apart, values are put back, and it is not tried at once again."""
    scene.until(Phase.KEPT)
    before_s = scene.host.now_s()
    for number in (1, 2):
        scene.hold(f"web-{number}", own(20 + number, 4000))
    scene.until(Phase.IDLE, most=3000)

    last = [one for one in scene.applied if isinstance(one.action, SetSharing)][-1]
    assert last.action.step is SharingStep.END
    assert last.action.reason.code == "sharing-does-not-pay"
    assert scene.knobs()["run"] == "0\n"
    assert scene.host.now_s() > before_s


def test_a_setting_that_somebody_else_has_changed_ends_it_and_stays(scene: Scene):
    """ksmtuned takes over pages_to_scan: our own changes go, his stays, and we do not come back."""
    scene.until(Phase.KEPT)
    scene.host.write_ksm("pages_to_scan", "4321")
    scene.host.hold(Instance(pid=9, start_ticks=9), own(9), is_offered=True)
    scene.tick(2)
    scene.host.let_go(Instance(pid=9, start_ticks=9))
    scene.tick(30)

    assert scene.knobs() == {**scene.knobs(), "run": "0\n", "pages_to_scan": "4321\n", "smart_scan": "1\n"}
    assert scene.sharing.report.phase is Phase.IDLE
    assert any(one.status is Status.LEFT_ALONE for one in scene.applied)
    assert "left alone" in scene.sharing.report.reason


def test_ksm_that_runs_already_is_somebody_elses(scene: Scene):
    """It is not touched, and said."""
    scene.host.write_ksm("run", "1")
    scene.tick(30)

    assert not scene.applied
    assert "did not start it" in scene.sharing.report.reason


def test_too_little_memory_to_take_pages_apart_leaves_them_merged_and_journalled(scene: Scene):
    """Undoing must not run the machine out of memory: merging stops, and another restore does the rest."""
    before = scene.knobs()
    scene.until(Phase.KEPT)
    scene.host.begin_scarcity(1 * MIB)
    report = act.restore(scene.host, scene.journal)

    assert not report.is_complete
    assert scene.knobs()["run"] == "0\n"
    assert scene.host.merging().saved_pages > 0
    scene.host.begin_scarcity(1 << 30)
    assert act.restore(scene.host, scene.journal).is_complete
    assert scene.knobs() == before
    assert scene.host.merging().saved_pages == 0


events = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.integers(1, 25)),
        st.tuples(st.just("stranger"), st.integers(0, 3)),
        st.tuples(st.just("change"), st.integers(0, 3)),
        st.tuples(st.just("offer"), st.booleans()),
        st.tuples(st.just("late"), st.integers(1, 2)),
    ),
    max_size=12,
)


@settings(max_examples=15)
@given(events=events)
def test_whatever_happens_nothing_is_shared_beyond_the_group_and_all_is_put_back(events):
    """Strangers at any moment, also while nobody looks; VMs outside that are offered; contents that change."""
    with TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        before, strangers = scene.knobs(), [Instance(pid=5000 + number, start_ticks=1) for number in range(4)]
        held: set[Instance] = set()
        outside = {*strangers, scene.process["db-1"], scene.process["db-2"]}
        scene.tick(10)
        for kind, value in events:
            if kind == "tick":
                scene.tick(value)
            elif kind == "late":  # the agent is late, but not dead
                scene.host.wait_until(scene.host.now_s() + RULES.unwatched_s - 1.0 - value / 10)
            elif kind == "offer":
                scene.host.offer(scene.vm["db-1"], to_ksm=value)
            elif kind == "change":
                scene.hold("web-1", COMMON[: 1000 * value] + own(30 + value, 1000))
            elif strangers[value] in held:
                scene.host.let_go(strangers[value])
                held.remove(strangers[value])
            else:
                scene.host.hold(strangers[value], COMMON, is_offered=True, name="stranger")
                held.add(strangers[value])
            assert not any(one.merging_pages for one in scene.host.offerers() if one.process in outside)
        scene.host.offer(scene.vm["db-1"], to_ksm=False)
        assert act.restore(scene.host, scene.journal).is_complete
        assert scene.knobs() == before
        assert not {one.process for one in scene.host.offerers()} - held
        assert np.sum([one.merging_pages for one in scene.host.offerers()]) == 0
        scene.journal.close()
