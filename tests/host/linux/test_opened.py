# SPDX-License-Identifier: Apache-2.0
"""A process held open: whether its own page tables tell what it touches."""

import os
from pathlib import Path

import pytest

from memsculpt.domain.workload import Instance
from memsculpt.errors import Unavailable
from memsculpt.host.linux.opened import KVM_GUEST, OpenedProcess


def process_in(proc: Path, *targets: str) -> OpenedProcess:
    """Open this process as a /proc in `proc` shows it, with descriptors of `targets`."""
    folder = proc / str(os.getpid())
    (folder / "fd").mkdir(parents=True)
    (folder / "stat").write_text(f"{os.getpid()} (qemu) S " + " ".join(["0"] * 18 + ["77"] + ["0"] * 30))
    for name in ("pagemap", "maps"):
        (folder / name).touch()
    for number, target in enumerate(targets):
        (folder / "fd" / str(number)).symlink_to(target)
    return OpenedProcess(Instance(pid=os.getpid(), start_ticks=77), str(proc))


def test_a_guest_under_kvm_touches_memory_in_tables_of_its_own(tmp_path):
    """The walk of the process's tables would call a busy guest idle: it is refused, and the fix names who can tell."""
    opened = process_in(tmp_path, "/dev/null", KVM_GUEST, "socket:[1]")
    with pytest.raises(Unavailable) as refused:
        opened.check_first_hand()
    assert "KVM" in refused.value.problem
    assert "IDLE_PAGE_TRACKING" in refused.value.fix
    opened.close()


def test_others_are_told_of_by_their_page_tables(tmp_path):
    """Also QEMU's emulation, and what merely has /dev/kvm open."""
    opened = process_in(tmp_path, "/dev/null", "/dev/kvm", "anon_inode:[eventpoll]")
    opened.check_first_hand()
    opened.close()
