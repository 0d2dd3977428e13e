# SPDX-License-Identifier: Apache-2.0
"""What doctor says of kernels that were made up, and of this one."""

from memsculpt.host.doctor import KernelFacts, capabilities_from, examine

V1_ROOT = KernelFacts(
    is_root=True, v1_memory="/cg/memory", v2="/cg/unified", memory_is_writable=True, has_psi=True, swap_bytes=1 << 30
)
V2_ROOT = KernelFacts(
    is_root=True, v2="/cg", v2_has_memory=True, memory_is_writable=True, has_reclaim=True, has_psi=True, init="systemd"
)


def test_v1_with_root_can_limit():
    """The reason says which version serves it."""
    found = capabilities_from(V1_ROOT)
    assert found["cgroup_limits"].available
    assert found["cgroup_limits"].reason == "cgroup v1"
    assert not found["memory_reclaim"].available
    assert not found["systemd"].available


def test_v2_with_systemd():
    """Reclaim is there, and units go through systemd."""
    found = capabilities_from(V2_ROOT)
    assert found["cgroup_v2_memory"].available
    assert found["cgroup_limits"].reason == "cgroup v2"
    assert found["memory_reclaim"].available
    assert found["systemd"].available


def test_without_privilege_the_fix_is_root():
    """Denied is told apart from absent."""
    found = capabilities_from(KernelFacts(v1_memory="/cg/memory"))
    assert not found["cgroup_limits"].available
    assert found["cgroup_limits"].fix == "run as root"
    assert "may not be written" in found["cgroup_limits"].reason


def test_without_any_memory_controller():
    """Root does not help there."""
    found = capabilities_from(KernelFacts(is_root=True))
    assert not found["cgroup_limits"].available
    assert "no memory controller" in found["cgroup_limits"].reason


def test_the_kernels_own_words_are_kept():
    """What was tried and failed says why."""
    found = capabilities_from(KernelFacts(page_out="Function not implemented"))
    assert not found["page_out"].available
    assert "Function not implemented" in found["page_out"].reason
    assert found["page_out"].fix


def test_every_row_has_a_reason_and_what_lacks_has_a_fix():
    """Nobody is left with a bare no, on any kernel."""
    for facts in (KernelFacts(), V1_ROOT, V2_ROOT):
        for row in capabilities_from(facts).values():
            assert row.reason
            assert row.available == (row.fix == "")


def test_this_machine_is_examined():
    """Trying changes nothing, and the names are those of the rules."""
    assert set(examine()) == set(capabilities_from(KernelFacts()))
