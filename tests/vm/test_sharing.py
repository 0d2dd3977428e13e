# SPDX-License-Identifier: Apache-2.0
"""Identical pages of real guests: merged inside of their trust group, never beyond it, and put back after a kill."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent.sharing import Sharing
from memsculpt.domain.plan import Plan
from memsculpt.domain.settings import Mode, Settings, TrustGroup, VmSettings
from memsculpt.domain.sharing import Phase
from memsculpt.domain.vm import VmId
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt.plan import SharingRules
from memsculpt_bench import sharing as bench
from memsculpt_bench.guests.guest import QEMU, Guest
from memsculpt_bench.lab import LabUnavailable, poll

# KSM is one for the machine, and tests of the machine offer memory to it: not beside them.
pytestmark = pytest.mark.xdist_group("machine")

MIB = 1 << 20
RULES = SharingRules(least_bytes=4 * MIB, unwatched_s=0.6, cpu_most_ratio=0.2)
TICK_S = 0.3
SETTINGS = Settings(mode=Mode.APPLY, interval_s=TICK_S, vms=VmSettings(trust=(TrustGroup(name="web", vms=("web-*",)),)))


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Guest]]:
    """Two in the group and one, like them, outside; KSM is as it was after them."""
    try:
        bench.check_machine()
    except LabUnavailable as error:
        pytest.skip(f"sharing: {error}")
    with ExitStack() as stack:
        stack.enter_context(bench.ksm_as_found())
        found = stack.enter_context(bench.three_guests(tmp_path_factory.mktemp("sharing")))
        for seed, guest in enumerate(found.values()):
            bench.fill(guest, seed, common_bytes=6 * MIB, own_bytes=2 * MIB)
        yield found


@pytest.fixture
def host(guests: dict[str, Guest]) -> Iterator[Host]:
    host = open_host(SETTINGS)
    poll(lambda: guests.keys() <= {one.name for one in host.observe().vms if one.ram_bytes}, what="monitors to tell")
    yield host
    host.close()


@pytest.fixture
def journal(tmp_path: Path, host: Host) -> Iterator[act.Journal]:
    journal = act.Journal.open(tmp_path / "state", machine_lock=None)
    yield journal
    act.restore(host, journal)
    journal.close()


def go_on_until(host: Host, journal: act.Journal, sharing: Sharing, phase: Phase, outside: list[int], pid: int) -> None:
    ids, end_s = act.ActionIds(), time.monotonic() + 60.0
    while sharing.report.phase is not phase:
        assert time.monotonic() < end_s, sharing.report
        observation = host.observe()
        chosen = sharing.choose(Plan(made_at_s=observation.time_s), observation)
        sharing.note(act.apply(host, journal, chosen, ids))
        outside.append(max(bench.shared_bytes(pid), bench.merging_pages(pid)))
        time.sleep(TICK_S)


def vm_of(host: Host, name: str) -> VmId:
    return next(one.id for one in host.observe().vms if one.name == name)


def test_what_was_forecast_is_saved_and_nothing_is_shared_beyond_the_group(guests, host, journal):
    """The kernel's own count agrees, the outsider shares no byte at any moment, and all is put back."""
    before, outside = bench.read_ksm(), []
    pss = {name: bench.pss_bytes(guests[name].pid) for name in ("web-1", "web-2")}
    sharing = Sharing(host, SETTINGS, rules=RULES, rest_s=1.0, look_ratio=0.5)
    go_on_until(host, journal, sharing, Phase.KEPT, outside, guests["outside"].pid)

    report, reached = sharing.report, host.merging().saved_pages * 4096
    assert 0.8 <= report.forecast.size_bytes / reached <= 1.25
    assert outside
    assert not any(outside)
    fallen = sum(pss[name] - bench.pss_bytes(guests[name].pid) for name in pss)
    assert fallen == pytest.approx(reached, rel=0.3)
    assert sum(one.saved_bytes for one in report.groups[0].members) == pytest.approx(reached, rel=0.01)

    assert act.restore(host, journal).is_complete
    assert bench.read_ksm() == before
    assert not any(bench.shared_bytes(guest.pid) for guest in guests.values())
    assert not host.offerers()
    assert guests["web-1"].check("cat /tmp/common | head -c 8") == "common.0"


def test_a_vm_outside_that_offers_memory_keeps_ksm_off(guests, host, journal):
    """Also when it offers late: merging is paused before its pages are reached."""
    outside: list[int] = []
    pid = guests["outside"].pid
    sharing = Sharing(host, SETTINGS, rules=RULES, rest_s=0.3, look_ratio=0.5)
    go_on_until(host, journal, sharing, Phase.MERGING, outside, pid)
    host.offer(vm_of(host, "outside"), to_ksm=True)
    try:
        go_on_until(host, journal, sharing, Phase.PAUSED, outside, pid)
        assert bench.read_ksm()["run"] == "0\n"
        assert not any(outside)
        assert f"(pid {pid})" in sharing.report.reason
    finally:
        assert host.offer(vm_of(host, "outside"), to_ksm=False) is False
    go_on_until(host, journal, sharing, Phase.MERGING, outside, pid)


def test_firmware_of_a_vm_that_was_started_with_merging_stays_offered(tmp_path):
    """QEMU's default offers more than RAM, which no monitor takes back: such a VM cannot be kept out otherwise."""
    monitor = tmp_path / "default.qmp"
    command = [QEMU, "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-machine", "q35,mem-merge=on"]
    process = subprocess.Popen([*command, "-m", "64M", "-name", "late", "-qmp", f"unix:{monitor},server=on,wait=off"])
    host = open_host(SETTINGS)
    try:
        poll(monitor.exists, what="QEMU's monitor")
        poll(lambda: any(one.name == "late" and one.ram_bytes for one in host.observe().vms), what="it to tell")
        vm = vm_of(host, "late")

        assert host.is_offered(vm)
        assert host.offer(vm, to_ksm=False) is False
        assert not host.is_offered(vm)
        assert process.pid in [one.process.pid for one in host.offerers() if one.is_offered]
    finally:
        host.close()
        process.kill()
        process.wait()


AGENT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.vm import test_sharing as scene
from memsculpt import act
from memsculpt.agent.sharing import Sharing
from memsculpt.domain.sharing import Phase
from memsculpt.host import open_host
host = open_host(scene.SETTINGS)
journal = act.Journal.open(sys.argv[1], machine_lock=None)
sharing = Sharing(host, scene.SETTINGS, rules=scene.RULES, rest_s=0.3, look_ratio=0.5)
scene.go_on_until(host, journal, sharing, Phase.MERGING, [], int(sys.argv[3]))
print("merging", flush=True)
time.sleep(600)
"""


def test_after_a_kill_restore_puts_everything_back(guests, tmp_path):
    """KSM's settings byte for byte, nothing merged, nobody's memory offered: from the journal alone."""
    host = open_host(SETTINGS)  # asks no monitor before it observes: each of them talks with one at a time
    before = bench.read_ksm()
    root, state = str(Path(__file__).parents[2]), str(tmp_path / "state")
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, state, root, str(guests["outside"].pid)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout.readline() == "merging\n"
        poll(lambda: host.merging().saved_pages > 1000, what="pages to be merged")
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.communicate()
    assert bench.read_ksm()["run"] == "1\n"

    done = subprocess.run(
        [sys.executable, "-m", "memsculpt", "restore", "--state", state], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.read_ksm() == before
    assert host.merging().saved_pages == 0
    assert not host.offerers()
    host.close()
