# SPDX-License-Identifier: Apache-2.0
"""A libvirt that is missing, refuses, hangs, or is restarted: what is told meanwhile, and that nobody waits for it.

libvirt itself is a stand-in here: a module with the few names that are called. The real one: tests/vm/test_libvirt.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from memsculpt.domain.vm import VmId, VmState
from memsculpt.domain.workload import Instance
from memsculpt.errors import Transient, Unavailable, Vanished
from memsculpt.host.linux.expected_balloons import ExpectedBalloons
from memsculpt.host.linux.libvirt_monitors import LibvirtMonitors, facts_from, features_from, state_of
from memsculpt.host.linux.monitors import Target
from memsculpt.host.linux.qmp import Command

UUID = "6d656d73-6375-4c70-9400-0000000000bb"
VM = Instance(pid=7, start_ticks=9)
TARGET = Target(id=VmId(UUID), name="web-1", uuid=UUID, process=VM, sockets=())
MIB = 1 << 20
ROW = {
    "state.state": 1,
    "state.reason": 1,
    "balloon.current": 200 * 1024,
    "balloon.maximum": 256 * 1024,
    "balloon.available": 230 * 1024,
    "balloon.usable": 150 * 1024,
    "balloon.swap_in": 3,
    "balloon.major_fault": 5,
    "balloon.last-update": 1_000,
    "vcpu.0.time": 2_000_000_000,
    "vcpu.1.time": 500_000_000,
    "block.0.rd.bytes": 4096,
    "block.1.rd.bytes": 1,
    "net.count": 1,
    "net.0.rx.bytes": 10,
    "net.0.tx.bytes": 20,
}


class FakeError(Exception):
    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return 42


class FakeLibvirt:
    """One domain; `refuses` and `hangs` are what a test turns."""

    libvirtError = FakeError  # noqa: N815  libvirt's own name
    VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE = 17
    VIR_DOMAIN_AFFECT_LIVE = 1
    VIR_DOMAIN_JOB_NONE = 0
    VIR_ERR_NO_DOMAIN = 42

    def __init__(self) -> None:
        self.refuses = False
        self.opened = 0
        self.job = 0
        self.asked_kib: list[int] = []
        self.periods: list[int] = []
        self.balloon_changed: Callable[..., None] | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.domain = SimpleNamespace(
            UUIDString=UUID.upper,
            name=lambda: "web-1",
            jobInfo=lambda: [self.job],
            XMLDesc=lambda: "<memballoon model='virtio' autodeflate='on'></memballoon>",
            setMemoryStatsPeriod=lambda period, _: self.periods.append(period),
            setMemoryFlags=lambda kib, _: self.asked_kib.append(kib),
            memoryStats=lambda: {"actual": 200 * 1024},
        )

    def registerErrorHandler(self, *_) -> None: ...  # noqa: N802  libvirt's own names, here and below
    def virEventRegisterDefaultImpl(self) -> None: ...  # noqa: N802
    def virEventAddTimeout(self, *_) -> None: ...  # noqa: N802

    def virEventRunDefaultImpl(self) -> None:  # noqa: N802
        time.sleep(0.01)

    def open(self, _uri: str):
        if self.refuses:
            raise FakeError("Failed to connect socket")
        self.opened += 1
        return SimpleNamespace(
            isAlive=lambda: not self.refuses,
            setKeepAlive=self._no_keepalive,
            domainEventRegisterAny=self._register,
            getAllDomainStats=self._stats,
            lookupByUUIDString=lambda _: self.domain,
            close=lambda: None,
        )

    def _no_keepalive(self, *_) -> None:
        raise FakeError("not supported by the driver")

    def _register(self, _domain, _kind, callback, _opaque) -> None:
        self.balloon_changed = callback

    def _stats(self):
        self.may_go_on.wait()
        if self.refuses:
            raise FakeError("client socket is closed")
        return [(self.domain, ROW)]


@pytest.fixture
def libvirt() -> Iterator[FakeLibvirt]:
    fake = FakeLibvirt()
    yield fake
    fake.may_go_on.set()


@pytest.fixture
def monitors(libvirt: FakeLibvirt) -> Iterator[LibvirtMonitors]:
    made = LibvirtMonitors(
        "qemu:///test", timeout_s=0.3, interval_s=0.02, load=lambda _: libvirt, wall_s=lambda: 1_001.0
    )
    made.follow({VM: TARGET})
    yield made
    libvirt.may_go_on.set()
    made.close()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.005)


def reached(monitors: LibvirtMonitors) -> bool:
    told = monitors.told().get(VM)
    return told is not None and told.is_reached


def test_a_domain_is_told_as_a_monitor_would_tell_it(monitors, libvirt):
    """Sizes are bytes, sums are over devices, the guest's word is aged; its statistics are polled, and put back."""
    wait_for(lambda: reached(monitors))
    told = monitors.told()[VM]
    assert told.facts.state is VmState.RUNNING
    assert (told.facts.ram_bytes, told.facts.balloon_bytes) == (256 * MIB, 200 * MIB)
    assert told.facts.guest.total_bytes == 230 * MIB
    assert told.facts.guest.available_bytes == 150 * MIB
    assert told.facts.guest.swapped_in_bytes == 3 * 1024
    assert told.facts.guest.major_faults_count == 5
    assert told.read_at_s - told.facts.guest.updated_at_s == pytest.approx(1.0, abs=0.01)
    assert (told.vcpu_s, told.facts.read_bytes, told.network_bytes) == (2.5, 4097, (10, 20))
    assert told.facts.features.deflate_on_oom
    assert libvirt.periods == [1]
    monitors.close()
    assert libvirt.periods == [1, 0]


def test_balloons_move_by_libvirts_own_call_and_their_events_are_heard(monitors, libvirt):
    """libvirt knows of it; a balloon that moved is known before the next look."""
    wait_for(lambda: reached(monitors))
    before, done = monitors.ask(VM, [Command("query-balloon"), Command("balloon", {"value": 128 * MIB})])
    assert (before, done) == ({"actual": 200 * MIB}, {})
    assert libvirt.asked_kib == [128 * 1024]
    libvirt.may_go_on.clear()  # no further look
    libvirt.balloon_changed(None, libvirt.domain, 140 * 1024, None)
    wait_for(lambda: monitors.told()[VM].facts.balloon_bytes == 140 * MIB)


def test_a_balloon_that_somebody_else_moves_is_news_and_our_own_is_not(libvirt):
    """An operator's `virsh setmem` wakes the agent at the first step; what we asked for does not, wherever it is."""
    expected, news = ExpectedBalloons(), []
    made = LibvirtMonitors(
        "qemu:///test",
        timeout_s=0.3,
        interval_s=0.02,
        expected=expected,
        on_foreign_balloon=lambda: news.append(True),
        load=lambda _: libvirt,
    )
    try:
        made.follow({VM: TARGET})
        wait_for(lambda: reached(made))
        libvirt.may_go_on.clear()  # no further look
        expected.expect(VM, 200 * MIB, 128 * MIB)
        for size in (180, 140, 128):
            libvirt.balloon_changed(None, libvirt.domain, size * 1024, None)
        assert news == []
        libvirt.balloon_changed(None, libvirt.domain, 127 * 1024, None)
        assert news == [True]
        libvirt.balloon_changed(None, libvirt.domain, 140 * 1024, None)  # where it was on its way, but no more
        assert news == [True, True]
    finally:
        libvirt.may_go_on.set()
        made.close()


def test_a_job_under_way_is_a_migration(monitors, libvirt):
    """Also a save or a dump: its memory is being read."""
    libvirt.job = 2
    wait_for(lambda: reached(monitors) and monitors.told()[VM].facts.state is VmState.MIGRATING)


def test_nobody_waits_for_a_libvirt_that_hangs(monitors, libvirt):
    """What is told comes at once and says so; who asks gets an error in time; and it goes on when libvirt does."""
    wait_for(lambda: reached(monitors))
    libvirt.may_go_on.clear()
    wait_for(lambda: not reached(monitors))
    assert "has not answered" in monitors.told()[VM].problem
    with pytest.raises((Transient, Unavailable)):
        monitors.ask(VM, [Command("query-balloon")])
    libvirt.may_go_on.set()
    wait_for(lambda: reached(monitors))


def test_a_libvirtd_that_is_restarted_is_connected_anew(monitors, libvirt):
    """While it is away its VMs are not reached, with libvirt's own words."""
    wait_for(lambda: reached(monitors))
    libvirt.refuses = True
    wait_for(lambda: not reached(monitors))
    assert any(words in monitors.told()[VM].problem for words in ("client socket is closed", "Failed to connect"))
    with pytest.raises(Unavailable):
        monitors.ask(VM, [Command("query-balloon")])
    libvirt.refuses = False
    wait_for(lambda: reached(monitors))
    assert libvirt.opened >= 2


def test_without_libvirt_python_it_is_said_and_what_helps():
    """The import fails on the thread, not in the agent."""

    def missing(name: str):
        raise ImportError(name)

    made = LibvirtMonitors("qemu:///test", timeout_s=0.3, interval_s=0.02, load=missing)
    try:
        made.follow({VM: TARGET})
        wait_for(lambda: VM in made.told())
        assert "memsculpt[libvirt]" in made.told()[VM].problem
        with pytest.raises(Vanished):
            made.ask(Instance(pid=8, start_ticks=1), [Command("query-balloon")])
    finally:
        made.close()


@pytest.mark.parametrize(
    ("state", "reason", "wanted"),
    [
        (1, 1, VmState.RUNNING),
        (2, 0, VmState.RUNNING),
        (3, 1, VmState.PAUSED),
        (3, 2, VmState.MIGRATING),
        (3, 3, VmState.MIGRATING),
        (7, 0, VmState.PAUSED),
        (4, 1, VmState.ENDING),
        (6, 0, VmState.ENDING),
        (99, 0, VmState.ENDING),
    ],
)
def test_states_that_are_not_running_are_never_taken_for_it(state, reason, wanted):
    assert state_of({"state.state": state, "state.reason": reason}) is wanted


def test_what_libvirt_leaves_out_is_not_told():
    """A domain without balloon, without statistics and with a lying guest."""
    bare = facts_from({"balloon.maximum": 1024}, uuid=UUID, name="x", state=VmState.RUNNING, now_s=5.0, wall_s=9.0)
    assert (bare.balloon_bytes, bare.guest, bare.ram_bytes) == (None, None, MIB)
    lying = facts_from(
        ROW | {"balloon.usable": 1 << 50}, uuid=UUID, name="x", state=VmState.RUNNING, now_s=5.0, wall_s=9.0
    )
    assert lying.guest.available_bytes is None
    assert features_from("<memballoon model='none'/>") == (features_from("")[0], 0)
    assert features_from("<memballoon model='virtio'><stats period='10'/></memballoon>")[1] == 10
