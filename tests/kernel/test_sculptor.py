# SPDX-License-Identifier: Apache-2.0
"""Sculpting real processes while they write, fork, unmap and end: nothing of theirs is ever changed."""

import contextlib
import functools
import random
import threading
import time
from pathlib import Path

import pytest

from memsculpt import act
from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.plan import Plan, Reason, SculptPool
from memsculpt.domain.pool import ColdZone, HotZone
from memsculpt.domain.settings import Mode, PartitionSettings, Settings
from memsculpt.domain.workload import Match
from memsculpt.errors import Transient, Vanished
from memsculpt.host import open_host
from memsculpt.host.linux import LinuxHost, sculptor
from memsculpt.plan import SculptRules
from tests.kernel.conftest import MIB, Child

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.needs("cgroup_v1_memory", elsewhere="tests/hosts runs the sculptor's contract on every host"),
    pytest.mark.needs("zram_control"),
    pytest.mark.needs("page_out"),
    pytest.mark.needs("collapse"),
    pytest.mark.usefixtures("own_swap"),
]

CODE = Path(__file__).with_name("scribe.py").read_text()


@pytest.fixture
def stack():
    with contextlib.ExitStack() as opened:
        yield opened


class Scribe:
    """A writing child, its areas by name, and random sculpts on them."""

    def __init__(self, child: Child) -> None:
        self.child, self.instance, self.ask = child, child.instance(), child.ask
        self.areas = {
            name: tuple(int(word) for word in where.split("-"))
            for name, _, where in (word.partition("=") for word in child.first.split())
        }

    def is_right(self) -> bool:
        """Whether all memory is what was written; also whether the writing went on."""
        return self.ask("check").startswith("right")


@pytest.fixture
def begin(start, own_folder, tmp_path):
    def begun(size_bytes: int = 64 * MIB) -> Scribe:
        code = CODE.replace("sys.argv[1]", str(size_bytes)).replace("sys.argv[2]", repr(str(tmp_path / "mapped")))
        return Scribe(start(code, own_folder))

    return begun


def some_ranges(chance: random.Random, low: int, high: int) -> list[tuple[int, int]]:
    """A few disjoint ranges of whole pages between two addresses, ascending."""
    edges = sorted(chance.sample(range(low // 4096, high // 4096), 2 * chance.randint(1, 40)))
    return [(4096 * one, 4096 * two) for one, two in zip(edges[::2], edges[1::2], strict=True)]


def sculpt_at_random(host: LinuxHost, scribe: Scribe, seed: int, count: int) -> dict[str, int]:
    """Do `count` sculpts on ranges anywhere from the lowest to the highest area; return what was left, by cause."""
    chance = random.Random(seed)
    low = min(start for start, _ in scribe.areas.values()) - 8 * MIB
    high = max(end for _, end in scribe.areas.values()) + 8 * MIB
    left: dict[str, int] = {}
    for _ in range(count):
        where = chance.choice([(low, high), *scribe.areas.values()])
        ranges = some_ranges(chance, *where)
        match chance.randrange(5):
            case 0:
                told = host.collapse(scribe.instance, [where], chance.choice([0, 1 << 21]))
            case 1:
                told = host.split(scribe.instance, ranges)
            case 2 | 3:
                told = host.page_out_ranges(scribe.instance, ranges)
            case _:
                told = host.bring_in_ranges(scribe.instance, [where])
        assert int(told.done_bytes.sum()) == told.moved_bytes <= told.asked_bytes
        for cause, size_bytes in told.problems.items():
            left[cause] = left.get(cause, 0) + size_bytes
    return left


@pytest.mark.parametrize("seed", range(4))
def test_nothing_changes_however_memory_is_moved(host, begin, seed):
    """Memory of every kind, one area of it written all the time; what may not be moved is left and told by cause."""
    scribe = begin()
    left = sculpt_at_random(host, scribe, seed, 40)
    assert scribe.is_right()
    assert {"locked", "shared memory", "a file's", "not writable", "not mapped"} <= left.keys()
    host.bring_in_ranges(scribe.instance, [scribe.areas["plain"]])
    sculpt_at_random(host, scribe, seed + 100, 20)
    assert scribe.is_right()


def test_memory_that_is_unmapped_meanwhile_is_passed_over(host, begin):
    """Eight MiB that come and go all the time: whatever is met, the calls go on and nothing else changes."""
    scribe = begin()
    start, end = (int(word) for word in scribe.ask("flap").split("-"))
    for _ in range(10):
        host.page_out_ranges(scribe.instance, [(start, end)])
        host.collapse(scribe.instance, [(start, end)], 2 * MIB)
        host.bring_in_ranges(scribe.instance, [(start, end)])
        host.split(scribe.instance, [(start, end)])
    assert int(scribe.ask("flaps")) > 1
    assert scribe.is_right()


def test_what_a_forked_child_shares_stays(host, begin):
    """Pages that both have are left, and told; both find theirs as they were."""
    scribe = begin()
    assert scribe.ask("fork") == "forked"
    told = host.page_out_ranges(scribe.instance, [scribe.areas["plain"]])
    assert told.moved_bytes < MIB
    assert told.problems[sculptor.SHARED_BY_FORK] > 60 * MIB
    sculpt_at_random(host, scribe, 3, 30)
    assert scribe.is_right()
    assert scribe.ask("join") == "right"


@pytest.mark.parametrize("name", ["page_out_ranges", "collapse", "bring_in_ranges"])
def test_a_process_that_ends_meanwhile_is_vanished(host, begin, name):
    """It is killed while its memory is moved: the call ends by saying so."""
    scribe = begin()
    area = [scribe.areas["plain"]]
    killer = threading.Timer(0.05, scribe.child.popen.kill)
    killer.start()

    def go_on() -> None:
        while True:
            host.page_out_ranges(scribe.instance, area)
            getattr(host, name)(scribe.instance, area)
            host.bring_in_ranges(scribe.instance, area)

    with pytest.raises(Vanished):
        go_on()
    killer.join()


def test_a_full_swap_takes_what_it_can(host, begin):
    """What finds no room stays where it is, and is told; the next call has nothing to begin with."""
    deadline_s = time.monotonic() + 40.0  # tests that run beside take their swap away again
    while len(swaps := [line.split() for line in Path("/proc/swaps").read_text().splitlines()[1:]]) > 1:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.5)
    if len(swaps) != 1:
        pytest.skip(f"{len(swaps)} swap devices: others' are no part of this test, and may not be filled")
    scribe = begin(320 * MIB)
    area = [scribe.areas["plain"]]
    told = host.page_out_ranges(scribe.instance, area)
    assert 150 * MIB < told.moved_bytes < 256 * MIB
    assert told.problems["no room in the swap"] > 60 * MIB

    def go_on() -> None:
        while True:  # the last pages may have stayed in a processor's batch
            host.page_out_ranges(scribe.instance, area)

    with pytest.raises(Transient, match="swap is full"):
        go_on()
    assert scribe.is_right()


def test_many_huge_pages_apart_are_all_counted(host, begin):
    """Every other region is gathered: more runs than the kernel tells of in one go."""
    scribe = begin(16 * MIB)
    address = int(scribe.ask("apart 1200"))
    regions = [(address + 2 * MIB * row, address + 2 * MIB * (row + 1)) for row in range(0, 1200, 2)]
    told = host.collapse(scribe.instance, regions, 2 * MIB)
    assert told.moved_bytes == 1200 * MIB
    frames = host.frames(scribe.instance, [(address, address + 2400 * MIB)])
    assert frames.huge_bytes.tolist() == [1200 * MIB]
    assert host.split(scribe.instance, [(address, address + 2400 * MIB)]).moved_bytes == 1200 * MIB


@pytest.mark.needs("page_walk")
def test_a_real_pool_is_sculpted(begin, own_cgroup_name, stack):
    """What lies still leaves, but for what would not get smaller; what is written all the time is gathered."""
    scribe = begin()
    partitions = (PartitionSettings(name="own", match=Match(cgroup=own_cgroup_name)),)
    settings = Settings(mode=Mode.APPLY, partitions=partitions)
    host = stack.enter_context(contextlib.closing(open_host(settings)))  # one that finds a source of touched pages
    sculpting = Sculpting(host, settings, SculptRules(returns_least_page_s=1.0))
    host.split(scribe.instance, [scribe.areas["busy"]])  # the kernel gave huge pages where they were asked for
    host.watch(partitions)
    for _ in range(16):
        sculpting.look(host.observe())
        host.wait_until(host.now_s() + 0.05)
    (pool,) = (one.pool for one in sculpting.pools())
    cold = sculpting.sculpt(pool, ColdZone(size_bytes=256 * MIB), host.observe(), may_act=True)
    assert 32 * MIB < cold.paged_out_bytes < 60 * MIB
    assert dict(cold.problems)["hardly compressible"] > 8 * MIB
    assert cold.resident_after_bytes < cold.resident_before_bytes - 24 * MIB
    hot = sculpting.sculpt(pool, HotZone(size_bytes=64 * MIB), host.observe(), may_act=True)
    assert hot.collapsed_bytes >= 2 * MIB, hot.reason
    assert hot.huge_after_bytes - hot.huge_before_bytes == hot.collapsed_bytes
    assert scribe.is_right()
    sculpting.close(may_act=True)
    assert int(host.frames(scribe.instance, [scribe.areas["busy"]]).huge_bytes[0]) == 0


def test_cold_blocks_leave_a_busy_process_as_a_plan_asks(begin, own_cgroup_name, stack, tmp_path):
    """From what the pool's pages tell to an action that is carried out and journalled; the process writes on."""
    scribe = begin()
    partitions = (PartitionSettings(name="own", match=Match(cgroup=own_cgroup_name)),)
    settings = Settings(mode=Mode.APPLY, partitions=partitions)
    host = stack.enter_context(contextlib.closing(open_host(settings)))
    journal = stack.enter_context(contextlib.closing(act.Journal.open(tmp_path / "state", machine_lock=None)))
    sculpting = Sculpting(host, settings, SculptRules(returns_least_page_s=1.0))
    host.watch(partitions)
    for _ in range(16):
        sculpting.look(host.observe())
        host.wait_until(host.now_s() + 0.05)
    observation = host.observe()
    (summary,) = sculpting.summaries(observation)
    assert summary.cold_bytes > 32 * MIB
    action = SculptPool(
        partition="own",
        workload=summary.workload,
        process=summary.process,
        pool=summary.pool,
        request=ColdZone(size_bytes=16 * MIB),
        reason=Reason(code="cold-blocks", text=""),
    )
    before_bytes = int(host.frames(scribe.instance, sorted(scribe.areas.values())).resident_bytes.sum())
    plan = Plan(made_at_s=observation.time_s, actions=(action,))
    sculptor = functools.partial(sculpting.carry_out, observation=observation)
    (done,) = act.apply(host, journal, plan, act.ActionIds(), sculptor=sculptor)
    after_bytes = int(host.frames(scribe.instance, sorted(scribe.areas.values())).resident_bytes.sum())
    assert done.done_bytes > 4 * MIB, done.problem
    assert "hardly compressible" in done.problem
    assert done.done_bytes <= 16 * MIB
    assert before_bytes - after_bytes >= done.done_bytes // 2  # it writes on meanwhile
    assert scribe.is_right()
    (told,) = sculpting.summaries(host.observe())
    assert 0 < told.gone_bytes <= done.done_bytes
    sculpting.close(may_act=True)
