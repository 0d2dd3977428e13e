# SPDX-License-Identifier: Apache-2.0
"""DAMON itself, on a kernel 6.12 where nobody else uses it: what its stretches tell, and that all is given back."""

from __future__ import annotations

import json

import pytest

from memsculpt_bench.guests.guest import Guest

PAGES = 64 << 8  # 64 MiB
KDAMONDS = "/sys/kernel/mm/damon/admin/kdamonds"
HOLD = "/tmp/hold.py"
HOLDER = """
import sys, time
from memsculpt.host import sources
source = sources.open_source("damon").source
readers = [source.open(sources.find_process(int(pid))) for pid in sys.argv[1:]]
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleeper(guest_612: Guest):
    """A program that sleeps; it and everything that looks at it are gone afterwards."""
    guest_612.check("python3.11 -c 'import time; time.sleep(600)' >/dev/null 2>&1 & echo $! > /tmp/sleeper.pid")
    guest_612.write_file(HOLD, HOLDER.encode())
    yield guest_612.check("cat /tmp/sleeper.pid")
    guest_612.check("kill -9 $(cat /tmp/sleeper.pid /tmp/hold.pid 2>/dev/null) 2>/dev/null || true; rm -f /tmp/*.pid")


def hold(guest: Guest, *pids: str) -> None:
    """Start a program that looks at these processes by DAMON, and wait until it does."""
    guest.check(
        f"rm -f /tmp/hold.log; python3.11 {HOLD} {' '.join(pids)} >/tmp/hold.log 2>&1 & echo $! > /tmp/hold.pid"
    )
    guest.wait_until("grep -q open /tmp/hold.log || { cat /tmp/hold.log; false; }", timeout_s=60.0)


def threads(guest: Guest) -> int:
    return int(guest.check("grep -l '^[0-9]* (kdamond' /proc/[0-9]*/stat 2>/dev/null | wc -l"))


def test_stretches_cover_what_is_touched_all_the_time(guest_612: Guest):
    """From its second interval on nearly all is found, and little else: a sample, so the bars leave it room."""
    told = json.loads(
        guest_612.check(
            f"python3.11 -m memsculpt_bench.guests.inside damon private {PAGES} blocks 2.9 6", timeout_s=120.0
        )
    )
    assert max(told["recall"]) > 0.9
    assert max(told["precision"]) > 0.6
    assert guest_612.check(f"cat {KDAMONDS}/nr_kdamonds") == "0"
    assert threads(guest_612) == 0


def test_what_was_touched_early_in_the_interval_is_known_by_its_age(guest_612: Guest):
    """The last aggregation saw nothing of it."""
    told = json.loads(
        guest_612.check(
            f"python3.11 -m memsculpt_bench.guests.inside damon private {PAGES} blocks 0.7 3", timeout_s=120.0
        )
    )
    assert max(told["recall"]) > 0.3


def test_heat_says_who_told_it(guest_612: Guest, sleeper: str):
    rc, output = guest_612.memsculpt("heat", sleeper, "--source", "damon", "--for", "1s", "--json", timeout_s=90.0)
    told = json.loads(output)
    assert rc == 0
    assert (told["source"], told["grain"]) == ("damon", "region")
    assert told["resident_pages"] > 0
    assert told["touched_pages"] <= told["resident_pages"]
    assert guest_612.check(f"cat {KDAMONDS}/nr_kdamonds") == "0"


def test_two_processes_are_watched_at_once_and_another_memsculpt_waits(guest_612: Guest, sleeper: str):
    hold(guest_612, sleeper, "1")
    assert threads(guest_612) == 2
    rc, output = guest_612.memsculpt("heat", sleeper, "--source", "damon", "--for", "100ms")
    assert rc == 3
    assert "another memsculpt" in output


def test_what_a_killed_memsculpt_left_is_taken_down_by_the_next(guest_612: Guest, sleeper: str):
    """Its kernel thread runs on until then."""
    hold(guest_612, sleeper)
    guest_612.check("kill -9 $(cat /tmp/hold.pid)")
    assert threads(guest_612) == 1
    rc, output = guest_612.memsculpt("heat", sleeper, "--source", "damon", "--for", "200ms", timeout_s=90.0)
    assert rc == 0, output
    assert guest_612.check(f"cat {KDAMONDS}/nr_kdamonds") == "0"
    assert threads(guest_612) == 0


def test_restore_takes_down_what_a_killed_memsculpt_left(guest_612: Guest, sleeper: str):
    hold(guest_612, sleeper)
    guest_612.check("kill -9 $(cat /tmp/hold.pid)")
    rc, output = guest_612.memsculpt("restore", timeout_s=90.0)
    assert rc == 0, output
    assert guest_612.check(f"cat {KDAMONDS}/nr_kdamonds") == "0"
    assert threads(guest_612) == 0


def test_somebody_else_s_monitor_is_left_alone(guest_612: Guest, sleeper: str):
    """Whatever is asked for, and doctor looks as well."""
    guest_612.check(f"echo 1 > {KDAMONDS}/nr_kdamonds; echo 1 > {KDAMONDS}/0/contexts/nr_contexts")
    before = guest_612.check(f"cd {KDAMONDS} && find . -type f | sort | xargs grep -H .")
    try:
        rc, output = guest_612.memsculpt("heat", sleeper, "--source", "damon", "--for", "100ms")
        doctor_rc, _ = guest_612.memsculpt("doctor")
        after = guest_612.check(f"cd {KDAMONDS} && find . -type f | sort | xargs grep -H .")
    finally:
        guest_612.check(f"echo 0 > {KDAMONDS}/nr_kdamonds")
    assert (rc, doctor_rc) == (3, 0)
    assert "somebody else" in output
    assert after == before


def test_who_ends_while_he_is_watched_ends_the_interval(guest_612: Guest, sleeper: str):
    guest_612.check(
        f"memsculpt heat {sleeper} --source damon --for 60s --json > /tmp/heat.json 2>/tmp/heat.err & echo $! > "
        "/tmp/hold.pid"
    )
    guest_612.wait_until(f"[ $(cat {KDAMONDS}/nr_kdamonds) != 0 ] && [ $(cat {KDAMONDS}/0/state) = on ]")
    guest_612.check("kill -9 $(cat /tmp/sleeper.pid)")
    guest_612.wait_until("! kill -0 $(cat /tmp/hold.pid) 2>/dev/null", timeout_s=60.0)
    assert guest_612.check(f"cat {KDAMONDS}/nr_kdamonds") == "0"
    assert threads(guest_612) == 0
