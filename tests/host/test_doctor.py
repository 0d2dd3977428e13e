# SPDX-License-Identifier: Apache-2.0
"""What doctor says of kernels that were made up, and of this one."""

import pytest

from memsculpt.host import sources
from memsculpt.host.bpf.program import explained
from memsculpt.host.doctor import KernelFacts, capabilities_from, examine
from memsculpt.host.linux.vm_probe import FoundVm
from memsculpt.host.sources import Tried

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


def test_a_slow_node_is_named_and_its_absence_explained():
    """Where there is none nothing is broken; where it may not be used, root helps."""
    there = capabilities_from(KernelFacts(is_root=True, slow_nodes=(2, 3), slow_node=""))["slow_node"]
    assert there.available
    assert there.reason.startswith("node 2, 3:")
    absent = capabilities_from(KernelFacts(is_root=True, slow_node="one node"))["slow_node"]
    assert (absent.available, absent.reason) == (False, "one node")
    assert absent.fix.startswith("none needed")
    denied = capabilities_from(KernelFacts(slow_nodes=(1,), slow_node="this user may not"))["slow_node"]
    assert (denied.available, denied.fix) == (False, "run as root")


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


BPF, IDLE, DAMON, SMAPS = ((name, tells) for name, tells, _ in sources.SOURCES)
OLD_WORDS = "invalid func unknown#181; libbpf: prog 'walk_pages': failed to load: -22"


def tried(*problems: str, fix: str = "kernel 9") -> tuple[Tried, ...]:
    """Sources as tried on a kernel that was made up: "" works."""
    return tuple(
        Tried(name=name, tells=tells, problem=problem, fix=fix if problem else "")
        for (name, tells), problem in zip((BPF, IDLE, DAMON, SMAPS), problems, strict=True)
    )


@pytest.mark.parametrize(
    ("problems", "used", "better"),
    [
        (("", "absent", "taken", ""), "bpf", ()),
        (("", "", "", ""), "bpf", ()),
        (("no bpf_loop", "", "", ""), "page_idle", ("bpf: no bpf_loop (fix: kernel 9)",)),
        (("no BTF", "absent", "", ""), "damon", ("bpf: no BTF", "page_idle: absent")),
        (
            ("not root", "not root", "not root", ""),
            "smaps",
            ("bpf: not root", "page_idle: not root", "damon: not root"),
        ),
    ],
)
def test_page_access_names_the_source_in_use_and_what_would_be_better(problems, used, better):
    row = capabilities_from(KernelFacts(page_sources=tried(*problems)))["page_access"]
    assert row.available
    assert row.reason.startswith(f"{used}: ")
    assert ("better, but not here" in row.reason) == bool(better)
    assert all(words in row.reason for words in better)


def test_a_machine_without_any_source_says_what_each_one_lacks():
    row = capabilities_from(KernelFacts(page_sources=tried("no BTF", "absent", "taken", "not built in")))["page_access"]
    assert not row.available
    assert row.fix
    assert all(f"{name}: " in row.reason for name in sources.NAMES)


def test_doctor_and_the_one_who_chooses_agree():
    """Opened for real, without asking DAMON for anything: it only reads until a process is opened."""
    found, passed = sources.first_working(sources.try_each())
    choice = sources.open_source()
    choice.source.close()
    assert (found.name, passed) == (choice.source.name, choice.passed)


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (OLD_WORDS, "the kernel has no bpf_loop", "a kernel from 5.17 on"),
        ("unknown func bpf_loop#181", "the kernel has no bpf_loop", "a kernel from 5.17 on"),
        ("libbpf: kernel BTF is missing", "libbpf: kernel BTF is missing", "a kernel from 5.15 on with BTF"),
        ("invalid func unknown#999", "invalid func unknown#999", "5.15"),
    ],
)
def test_what_the_kernel_says_of_a_program_is_explained(words, problem, fix):
    told = explained(words)
    assert told[0] == problem
    assert fix in told[1]


def test_this_machine_is_examined():
    """Trying changes nothing, and the names are those of the rules."""
    assert set(examine()) == set(capabilities_from(KernelFacts()))


def test_virtual_machines_are_counted_and_what_keeps_them_is_said():
    """A monitor in another client's hands is no fault (the agent may have it); one that is not there is."""
    assert capabilities_from(KernelFacts())["vms"].available
    web, db = FoundVm(pid=1, name="web"), FoundVm(pid=2, name="db", problem="does not greet", is_busy=True)
    found = capabilities_from(KernelFacts(vms=(web, db)))["vms"]
    assert found.available
    assert found.reason.startswith("2 run, 1 can be asked; 1 in another client's hands")
    mute = tuple(FoundVm(pid=number, name=f"m{number}", problem="no QMP monitor") for number in range(3, 9))
    found = capabilities_from(KernelFacts(vms=(web, *mute)))["vms"]
    assert not found.available
    assert "m3: no QMP monitor" in found.reason
    assert found.reason.endswith("and 3 more")
    assert "-qmp unix:" in found.fix
