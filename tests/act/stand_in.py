# SPDX-License-Identifier: Apache-2.0
"""A small real process that stands for the agent, or for `memsculpt restore`, on a host of text files.

stand_in.py agent HOST STATE LEASE_S     journal, guardian, one squeeze; then renews the lease until stdin ends
stand_in.py restore HOST STATE           undo; what the guardian runs
"""

import select
import sys
import time
from pathlib import Path

from memsculpt.act import ActionIds, Journal, Lease, apply, restore
from memsculpt.domain.plan import Plan
from tests.act.builders import MIB, set_limit
from tests.act.text_host import TextHost


def run_agent(host_dir: str, state_dir: str, lease_s: float) -> None:
    """Be an agent: renew every 50 ms; "hang" on stdin stops renewing, end of file is a normal end."""
    host = TextHost(Path(host_dir))
    journal = Journal.open(state_dir, machine_lock=None)
    command = (sys.executable, "-m", "tests.act.stand_in", "restore", host_dir, state_dir)
    lease = Lease.start(state_dir, lease_s=lease_s, now_s=time.monotonic(), command=("env", "-C", str(ROOT), *command))
    apply(host, journal, Plan(made_at_s=0.0, actions=(set_limit(to_bytes=MIB, lift_at_s=5.0),)), ActionIds())
    print(lease.pid, flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.05)
        if readable:
            if sys.stdin.readline() == "hang\n":
                time.sleep(600)
            break
        lease.renew(time.monotonic())
    restore(host, journal)
    lease.end()
    journal.close()


def run_restore(host_dir: str, state_dir: str) -> None:
    """Undo, as the command does."""
    journal = Journal.open(state_dir, machine_lock=None)
    print(restore(TextHost(Path(host_dir)), journal))
    journal.close()


ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    if sys.argv[1] == "agent":
        run_agent(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        run_restore(sys.argv[2], sys.argv[3])
