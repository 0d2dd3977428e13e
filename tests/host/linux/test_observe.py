# SPDX-License-Identifier: Apache-2.0
"""One look at a machine of text files: who belongs where, what is counted, what goes away."""

import errno
import os
import pwd
import shutil

import pytest

from memsculpt.domain.settings import PartitionSettings
from memsculpt.domain.workload import Match
from memsculpt.errors import Transient, Unavailable, Vanished
from memsculpt.host.linux.cgroup1 import CgroupV1
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.observe import LinuxObserver
from tests.trees.proc import KERNEL_THREAD_FLAGS, STATUS, write_cgroup1, write_proc, write_process

BY_CGROUP = PartitionSettings(name="lab", match=Match(cgroup="lab"))
BY_EXE = PartitionSettings(name="jobs", match=Match(exe="/bin/job"))


class Machine:
    def __init__(self, folder) -> None:
        self.proc = write_proc(folder / "proc")
        self.root = write_cgroup1(folder / "memory")
        self.observer = LinuxObserver(CgroupV1(str(self.root)), None, str(self.proc))
        self.now_s = 100.0

    def look(self, *partitions):
        self.now_s += 1.0
        return self.observer.observe(self.now_s, partitions, 10.0)


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.observer.processes.close()


def column(seen, name):
    return dict(zip(seen.workloads.ids, getattr(seen.workloads, name).tolist(), strict=True))


def test_each_process_belongs_where_the_first_fitting_rule_says(machine):
    """Adopted cgroup, then program of a rule, then its own cgroup, then its program; kernel threads nowhere."""
    write_cgroup1(machine.root / "lab", (10,))
    write_process(machine.proc, 10, exe="/bin/job", cgroup="/lab")
    write_process(machine.proc, 11, exe="/bin/job", cgroup="/other")
    write_process(machine.proc, 12, cgroup="/other")
    write_process(machine.proc, 13)
    write_process(machine.proc, 2, flags=KERNEL_THREAD_FLAGS)
    seen = machine.look(BY_CGROUP, BY_EXE)

    assert seen.workloads.ids == ("exe:/bin/job", "exe:/bin/tenant", "lab", "other")
    assert seen.workloads.partitions == ("jobs", None, "lab", None)
    assert column(seen, "process_count") == {"exe:/bin/job": 1, "exe:/bin/tenant": 1, "lab": 1, "other": 1}
    assert seen.processes.pids.tolist() == [10, 11, 12, 13]


def test_partitions_that_divide_one_programs_processes_get_a_workload_each(machine):
    """What the rule names besides the program is a part of the workload's name; two processes of one are one."""
    for pid, cgroup in ((10, "/red/1"), (11, "/blue/1"), (12, "/blue/1"), (13, "/green")):
        write_process(machine.proc, pid, exe="/bin/job", cgroup=cgroup)
    red, blue = (
        PartitionSettings(name=name, match=Match(exe="/bin/job", cgroup=f"{name}/*")) for name in ("red", "blue")
    )
    seen = machine.look(red, blue)

    assert column(seen, "process_count") == {
        "exe:/bin/job cgroup:blue/1": 2,
        "exe:/bin/job cgroup:red/1": 1,
        "green": 1,
    }
    assert seen.workloads.partitions == ("blue", "red", None)


def test_a_rule_by_user_names_the_user(machine):
    """So that another partition may have the same program of another user."""
    user = pwd.getpwuid(os.getuid()).pw_name
    write_process(machine.proc, 10, exe="/bin/job")
    seen = machine.look(PartitionSettings(name="mine", match=Match(exe="/bin/*", user=user)))

    assert seen.workloads.ids == (f"exe:/bin/job user:{user}",)


def test_an_adopted_cgroup_is_what_the_kernel_accounts(machine):
    """Its columns come from memory.stat, not from adding up its processes."""
    write_cgroup1(machine.root / "lab", (10,))
    write_process(machine.proc, 10, cgroup="/lab")
    seen = machine.look(BY_CGROUP)

    assert column(seen, "anon_bytes") == {"lab": 700000}
    assert column(seen, "kernel_bytes") == {"lab": 48576}
    assert column(seen, "oom_kills_count") == {"lab": 1}
    assert column(seen, "limit_hits_count") == {"lab": 3}
    assert seen.workloads.instance_keys[0] == (machine.root / "lab").stat().st_ino
    assert seen.processes.cpu_s[0] == 2.000000001


@pytest.mark.parametrize("cgroup", ["/", "/lab"])
def test_counters_outlast_processes(machine, cgroup):
    """When one of two ends, what it had used stays counted, and the workload is not taken for restarted."""
    write_cgroup1(machine.root / "lab", (10, 11) if cgroup == "/lab" else ())
    write_process(machine.proc, 10, cgroup=cgroup)
    write_process(machine.proc, 11, cgroup=cgroup)
    before = machine.look(BY_CGROUP)
    shutil.rmtree(machine.proc / "10")
    after = machine.look(BY_CGROUP)

    for name in ("cpu_s", "read_bytes", "written_bytes", "minor_faults_count", "instance_keys"):
        assert column(after, name) == column(before, name), name
    assert sum(column(after, "process_count").values()) == 1


def test_a_member_that_slept_is_not_read_again_until_it_runs_or_is_due(machine):
    """A microsecond in schedstat is enough; what sleeps is read anew once in the detail interval all the same."""
    write_cgroup1(machine.root / "lab", (10,))
    folder = write_process(machine.proc, 10, cgroup="/lab")

    def anon_kib():
        return int(machine.look(BY_CGROUP).processes.anon_bytes[0]) // 1024

    assert anon_kib() == 100
    (folder / "status").write_text(STATUS % 300)
    assert anon_kib() == 100
    (folder / "task" / "10" / "schedstat").write_text("2000001001 5 10\n")
    assert anon_kib() == 300
    (folder / "status").write_text(STATUS % 500)
    assert [anon_kib() for _ in range(10)][-1] == 500


def test_a_cgroup_that_goes_away_takes_its_row_along(machine):
    """And a note says that the rule fits nothing now."""
    write_cgroup1(machine.root / "lab")
    assert machine.look(BY_CGROUP).workloads.ids == ("lab",)
    shutil.rmtree(machine.root / "lab")
    seen = machine.look(BY_CGROUP)

    assert seen.workloads.ids == ()
    assert seen.cgroups == ()
    assert "lab" in seen.notes[0]


def test_a_process_with_half_of_its_files_gone_is_counted_as_vanished(machine):
    """It ended while it was being read."""
    write_process(machine.proc, 10)
    (machine.proc / "10" / "status").unlink()
    seen = machine.look()

    assert seen.processes.pids.size == 0
    assert seen.vanished_count == 1


def test_own_cgroups_are_found_by_the_planners_name(machine):
    """A slash in a partition's name leads nowhere else."""
    write_cgroup1(machine.root / "memsculpt" / "a_b", (10,))
    write_process(machine.proc, 10, exe="/bin/job", cgroup="/memsculpt/a_b")
    (state,) = machine.look(PartitionSettings(name="a/b", match=Match(exe="/bin/job"))).cgroups

    assert (state.cgroup, state.partition, state.is_own) == ("memsculpt/a_b", "a/b", True)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, Vanished),
        (errno.ESRCH, Vanished),
        (errno.ENODEV, Vanished),
        (errno.EAGAIN, Transient),
        (errno.EBUSY, Transient),
        (errno.ENOSPC, Transient),
        (errno.EPERM, Unavailable),
        (errno.EROFS, Unavailable),
        (errno.EMFILE, Unavailable),
    ],
)
def test_an_errno_says_who_reacts(number, kind):
    """Gone, later, or not here; each with the place and something to do."""
    error = translate(OSError(number, "words"), "somewhere")

    assert type(error) is kind
    assert error.place == "somewhere"
    assert error.fix
