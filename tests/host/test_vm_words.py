# SPDX-License-Identifier: Apache-2.0
"""What of a guest's word is believed, and where guest memory lies."""

from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.vm import (
    NO_UUID,
    Backing,
    GuestRam,
    GuestRange,
    guest_memory,
    vm_id,
)
from memsculpt.domain.workload import Instance

MIB = 1 << 20
RAM = 512 * MIB
TOLD = {
    "stat-total-memory": 480 * MIB,
    "stat-free-memory": 100 * MIB,
    "stat-available-memory": 300 * MIB,
    "stat-disk-caches": 150 * MIB,
    "stat-swap-in": 4096,
    "stat-swap-out": 8192,
    "stat-major-faults": 7,
    "stat-minor-faults": 70_000,
}
NOT_TOLD = (1 << 64) - 1


def test_an_honest_guest_is_believed() -> None:
    guest = guest_memory(TOLD, ram_bytes=RAM, updated_at_s=5.0)
    assert guest.used_bytes == 180 * MIB
    assert (guest.free_bytes, guest.cache_bytes) == (100 * MIB, 150 * MIB)
    assert (guest.swapped_in_bytes, guest.swapped_out_bytes) == (4096, 8192)
    assert (guest.major_faults_count, guest.minor_faults_count) == (7, 70_000)


def test_what_is_not_told_is_none() -> None:
    guest = guest_memory(dict.fromkeys(TOLD, NOT_TOLD), ram_bytes=RAM, updated_at_s=5.0)
    assert guest.total_bytes is None
    assert guest.used_bytes is None
    assert guest.swapped_in_bytes is None


@given(
    st.dictionaries(
        st.sampled_from([*TOLD, "stat-nonsense"]),
        st.one_of(st.integers(-(1 << 70), 1 << 70), st.integers(0, RAM), st.none(), st.text(), st.booleans()),
    )
)
def test_a_liar_never_gets_beyond_its_memory(stats: dict[str, object]) -> None:
    guest = guest_memory(stats, ram_bytes=RAM, updated_at_s=5.0)
    total = guest.total_bytes
    assert total is None or 0 < total <= RAM
    for part in (guest.free_bytes, guest.available_bytes, guest.cache_bytes):
        assert part is None or (total is not None and 0 <= part <= total)
    assert guest.used_bytes is None or 0 <= guest.used_bytes <= RAM


def test_a_vm_is_known_by_its_uuid() -> None:
    uuid = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
    assert vm_id(uuid, "web-1") == uuid.lower()
    assert vm_id(NO_UUID, "web-1") == "name:web-1"
    assert vm_id("", "web-1") == "name:web-1"


def test_memory_around_the_pci_hole_is_one_stretch_in_the_host() -> None:
    """As q35 with 4 GiB has it: guest addresses from 4 GiB on lie at 2 GiB of the block."""
    gib, base = 1 << 30, 0x7F0000000000
    ram = GuestRam(
        id=vm_id("", "big"),
        process=Instance(pid=1, start_ticks=1),
        ranges=(
            GuestRange(guest_start=0, host_start=base, size_bytes=2 * gib),
            GuestRange(guest_start=4 * gib, host_start=base + 2 * gib, size_bytes=2 * gib),
        ),
        backing=Backing.PRIVATE,
    )
    assert ram.host_ranges() == ((base, base + 4 * gib),)
    assert ram.host_address(4 * gib + 5) == base + 2 * gib + 5
    assert ram.host_address(3 * gib) is None
