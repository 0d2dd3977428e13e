# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.settings import MIB, Settings
from memsculpt.domain.vm import GuestMemory, VmFeatures, VmId, VmReading, VmState
from memsculpt.domain.workload import Instance, WorkloadId
from memsculpt.profile.guests import OVERHEAD_LEAST_BYTES, STALE_S, SWAP_HALF_LIFE_S, KnownGuest
from memsculpt.profile.state import ProfileState
from memsculpt.profile.update import update
from tests.profile.world import running, see, watch

RAM = 512
RESERVED = 40  # what the guest's kernel keeps out of its MemTotal
WEB = WorkloadId("vm:web")


def guest(at_s, *, used=100.0, left=RAM, swapped_in=0.0, swapped_out=0.0, major=0, doom=False) -> GuestMemory:
    """A guest's figures; `left` is what its balloon leaves it. Sizes in MiB."""
    total = (RAM if doom else left) - RESERVED
    inside = used + (RAM - left if doom else 0)  # with deflate-on-oom the balloon looks like use
    return GuestMemory(
        updated_at_s=at_s,
        total_bytes=round(total * MIB),
        free_bytes=0,
        available_bytes=round((total - inside) * MIB),
        swapped_in_bytes=round(swapped_in * MIB),
        swapped_out_bytes=round(swapped_out * MIB),
        major_faults_count=major,
        minor_faults_count=0,
    )


def reading(at_s, memory, *, left=RAM, doom=False, pid=7, **more) -> VmReading:
    return VmReading(
        id=VmId("name:web"),
        name="web",
        workload=WEB,
        process=Instance(pid=pid, start_ticks=1),
        state=more.pop("state", VmState.RUNNING),
        read_at_s=at_s,
        ram_bytes=RAM * MIB,
        balloon_bytes=left * MIB,
        guest=memory,
        features=VmFeatures(balloon=True, deflate_on_oom=doom),
        **more,
    )


def look(at_s, one, *, resident=600.0):
    """QEMU with so much resident, and what its monitor says."""
    return replace(see(at_s, running(WEB, at_s=at_s, anon=resident)), vms=(one,))


def demands(*observations):
    return [profiles.guests[WEB] for profiles in watch(*observations)]


@pytest.mark.parametrize("doom", [False, True])
def test_the_need_is_what_the_guest_uses_not_what_qemu_holds(doom):
    (profiles,) = watch(look(1.0, reading(1.0, guest(1.0, used=100, doom=doom), doom=doom)))
    need = profiles.guests[WEB].need_bytes
    assert need == (100 + RESERVED) * MIB
    assert profiles.needed_bytes[0] == need + profiles.guests[WEB].overhead_bytes
    assert profiles.working_set_bytes[0] == profiles.needed_bytes[0]


def test_a_balloon_that_stands_still_is_remembered_by_two_sightings():
    """However long it stands; and of one that moves, the last seconds."""
    state = ProfileState()
    for second in range(1, 40):
        one = reading(float(second), None, left=300 if second < 20 else 300 - second)
        state, _ = update(state, look(float(second), one), Settings())
        path = state.guests[one.id].path
        assert len(path) <= 2 if second < 20 else all(second - 12 < at_s <= second for at_s, _ in path)
    assert [size // MIB for _, size in path] == [300 - second for second in range(28, 40)]


@pytest.mark.parametrize("doom", [False, True])
@given(left=st.integers(200, RAM), used=st.integers(10, 150))
def test_a_balloon_that_stands_still_changes_no_need(doom, left, used):
    """However much the balloon holds, and whether or not the guest counts it as its own."""
    full = demands(look(1.0, reading(1.0, guest(1.0, used=used, doom=doom), doom=doom)))[0]
    taken = demands(
        look(1.0, reading(1.0, guest(1.0, used=used, doom=doom), doom=doom)),
        look(2.0, reading(2.0, guest(1.0, used=used, doom=doom), left=left, doom=doom)),
        look(4.0, reading(4.0, guest(4.0, used=used, left=left, doom=doom), left=left, doom=doom)),
    )[-1]
    assert taken.need_bytes == full.need_bytes


@pytest.mark.parametrize("doom", [False, True])
def test_figures_that_a_moving_balloon_has_overtaken_do_not_lower_the_need(doom):
    """The balloon has taken 200 MiB since the guest spoke; taking these off its use would ask for more and more."""
    before, during = demands(
        look(1.0, reading(1.0, guest(1.0, doom=doom), doom=doom)),
        look(2.0, reading(2.0, guest(1.5, doom=doom), left=312, doom=doom)),
    )
    assert during.need_bytes == before.need_bytes


def test_what_the_guest_has_swapped_is_need_and_is_forgotten_when_nobody_goes_back_to_it():
    first = look(1.0, reading(1.0, guest(1.0)))
    out = look(2.0, reading(2.0, guest(2.0, swapped_out=64)))
    later_s = 2.0 + SWAP_HALF_LIFE_S
    late = look(later_s, reading(later_s, guest(later_s, swapped_out=64)))
    none, some, half = demands(first, out, late)
    assert some.need_bytes - none.need_bytes == pytest.approx(64 * MIB, rel=0.05)
    assert half.swapped_bytes == pytest.approx(some.swapped_bytes / 2, rel=0.01)


def test_a_guest_that_thrashes_keeps_its_swap_as_need():
    """As much comes in as goes out: it goes back to all of it."""
    seen = [look(1.0, reading(1.0, guest(1.0)))]
    seen += [
        look(at_s, reading(at_s, guest(at_s, swapped_out=64 + 10 * at_s, swapped_in=10 * at_s)))
        for at_s in map(float, range(2, 62))
    ]
    last = demands(*seen)[-1]
    assert last.swapped_bytes == 64 * MIB
    assert last.swap_in_bytes_per_s == pytest.approx(10 * MIB)


def test_a_reboot_forgets_what_was_swapped():
    last = demands(
        look(1.0, reading(1.0, guest(1.0))),
        look(2.0, reading(2.0, guest(2.0, swapped_out=64, swapped_in=1))),
        look(3.0, reading(3.0, guest(3.0))),
    )[-1]
    assert last.swapped_bytes == 0
    assert last.swap_in_bytes_per_s == 0.0


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (reading(1.0, None), "tells nothing"),
        (reading(1.0, GuestMemory(updated_at_s=1.0)), "tells nothing"),
        (reading(1.0, guest(1.0 - STALE_S - 1.0)), "s old"),
        (reading(1.0, guest(1.0), state=VmState.PAUSED), "paused"),
    ],
)
def test_without_the_guests_word_the_hosts_view_counts_and_it_is_said(one, why):
    (profiles,) = watch(look(1.0, one, resident=300))
    assert profiles.guests[WEB].need_bytes is None
    assert why in profiles.guests[WEB].problem
    assert profiles.needed_bytes[0] == 300 * MIB


def test_qemus_own_memory_is_found_once_the_guest_cannot_hold_so_much():
    """512 MiB for the guest and 600 held: at least 88 are QEMU's, and stay so when the guest shrinks."""
    first, second = demands(
        look(1.0, reading(1.0, guest(1.0)), resident=600),
        look(2.0, reading(2.0, guest(2.0)), resident=200),
    )
    assert first.overhead_bytes == 88 * MIB
    assert second.overhead_bytes == 88 * MIB
    assert demands(look(1.0, reading(1.0, guest(1.0)), resident=200))[0].overhead_bytes == OVERHEAD_LEAST_BYTES


def test_processors_devices_faults_and_dirty_pages_drive_the_forecast():
    first = reading(1.0, guest(1.0), vcpu_s=10.0, read_bytes=0)
    second = reading(
        3.0,
        guest(3.0, major=200),
        vcpu_s=11.0,
        read_bytes=6 * MIB,
        sent_bytes=2 * MIB,
        dirtied_bytes_per_s=4096.0 * 50,
    )
    _, profiles = watch(look(1.0, first), look(3.0, second))
    assert profiles.cpu_ratio[0] == pytest.approx(0.5)
    assert profiles.io_bytes_per_s[0] == pytest.approx(4 * MIB)
    assert profiles.minor_faults_per_s[0] == pytest.approx(100 + 50)


def test_another_process_is_another_vm():
    last = demands(
        look(1.0, reading(1.0, guest(1.0, used=100), pid=7)),
        look(2.0, reading(2.0, guest(2.0, used=100, swapped_out=300, swapped_in=300), pid=8)),
    )[-1]
    assert last.swapped_bytes == 0
    assert last.swap_in_bytes_per_s == 0.0


def test_a_host_without_vms_has_no_guests():
    (profiles,) = watch(see(1.0, running(at_s=1.0)))
    assert profiles.guests == {}


def test_a_copy_of_what_is_known_has_all_of_it():
    """Whatever field there is, also one that is added later."""
    known = KnownGuest(process=Instance(pid=1, start_ticks=1), balloon_bytes=1, moved_at_s=2.0)
    for number, one in enumerate(fields(KnownGuest)):
        setattr(known, one.name, f"value {number}")
    copied = known.copy()
    assert copied == known
    copied.need_bytes = 3
    assert known.need_bytes != 3
