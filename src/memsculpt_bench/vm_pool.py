# SPDX-License-Identifier: Apache-2.0
"""bench vm-pool: guest RAM as a pool. What of an idle guest leaves, what of a busy one is gathered, and its bytes.

A guest under QEMU's emulation holds a pattern and idles; it is found by its monitor, looked at and asked for ColdZone
again and again, as an agent under pressure would. Then half of it is read all the time, and HotZone is asked for. Arms
are what its RAM is made of:

    private   memory-backend-ram: huge pages from the start, which leave in parts, and are gathered when they return
    memfd     memory-backend-memfd: small pages, which lie off the borders of huge ones: not gathered, and said so

What is resident is the kernel's own count (smaps of the RAM's mapping), and the guest verifies every page, twice.
"""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memsculpt.agent.sculpting import Sculpting
from memsculpt.domain.pool import ColdZone, HotZone
from memsculpt.domain.settings import Mode, PartitionSettings, PlanSettings, Settings, VmSettings
from memsculpt.domain.vm import Backing, GuestRam, VmState
from memsculpt.domain.workload import Match
from memsculpt.errors import UsageError
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt_bench.contract import at_least, at_most, result
from memsculpt_bench.guests import debian, lab, small
from memsculpt_bench.guests.guest import GuestError
from memsculpt_bench.guests.small import SmallGuest, SmallMachine
from memsculpt_bench.lab import LabUnavailable, poll, zram_swap

MIB, PAGE = 1 << 20, 4096
ARMS = (Backing.PRIVATE, Backing.MEMFD)
MEMORY_BYTES, FILLED_BYTES = 512 * MIB, 256 * MIB
SWAP_BYTES = 2 << 30
# A look each so many seconds: the agent's is ten; here less, so that a round is over in a minute.
LOOK_S = 1.5
ASK_BYTES = 64 * MIB
ADAPT_S, QUICK_ADAPT_S = 45.0, 30.0
MORE_S, ADAPT_MOST_S = 10.0, 180.0
HOT_LOOKS = 4
VM = "memsculpt-lab-pool"
VM_UUID = "6d656d73-6375-4c70-9400-00000000000a"

Say = Callable[[str], None]


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Run all arms; return the object that `bench vm-pool --json` prints."""
    possible, reason = lab.probe()
    if not possible:
        raise LabUnavailable(reason)
    arms: dict[str, dict[str, list[float]]] = {arm.value: {} for arm in ARMS}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="memsculpt-lab-") as place, zram_swap(SWAP_BYTES):
        try:
            machine = small.saved(Path(place), FILLED_BYTES, memory_bytes=MEMORY_BYTES)
        except (GuestError, debian.Unavailable) as error:
            raise LabUnavailable(str(error)) from error
        for number in range(rounds):
            for arm in ARMS:
                folder = Path(place) / f"{arm.value}-{number}"
                column, reasons[arm.value] = _run_arm(
                    replace(machine, backing=arm, name=VM, uuid=VM_UUID, listens=True),
                    folder,
                    QUICK_ADAPT_S if quick else ADAPT_S,
                )
                for name, value in column.items():
                    arms[arm.value].setdefault(name, []).append(value)
                if say is not None:
                    told = arms[arm.value]
                    say(
                        f"round {number + 1} of {rounds}, {arm.value}: {told['returned_ratio'][-1]:.0%} of "
                        f"{told['resident_before_bytes'][-1] / MIB:.0f} MiB left, "
                        f"{told['gathered_bytes'][-1] / MIB:.0f} MiB gathered, {told['bad_pages'][-1]:.0f} pages differ"
                    )
    memfd, private = arms[Backing.MEMFD.value], arms[Backing.PRIVATE.value]
    bad = [*private["bad_pages"], *memfd["bad_pages"]]
    figures = {
        "private_returned": at_least(0.5, private["returned_ratio"]),
        "memfd_returned": at_least(0.5, memfd["returned_ratio"]),
        "private_hot_gathered": at_least(0.9, private["hot_huge_ratio"]),
        "memfd_not_gathered": at_most(0.0, memfd["gathered_bytes"], also="border of 2 MiB" in reasons["memfd"]),
        "pages_that_differ": at_most(0.0, [max(bad)]),
    }
    pages = sum(private["verified_pages"]) + sum(memfd["verified_pages"])
    return result("vm-pool", rounds, arms, figures, look_s=LOOK_S, verified_pages=pages, hot_reasons=reasons)


def _run_arm(machine: SmallMachine, folder: Path, adapt_s: float) -> tuple[dict[str, float], str]:
    partitions = (PartitionSettings(name="lab", match=Match(vm=VM)),)
    settings = Settings(
        mode=Mode.APPLY,
        partitions=partitions,
        plan=PlanSettings(page_out_bytes_per_s=float(2 * ASK_BYTES)),
        # Only this guest's monitor: others on this machine are none of a bench's business.
        vms=VmSettings(discover=False, sockets=(str(folder / "agent"),)),
    )
    with SmallGuest(machine, folder) as guest:
        ram = guest.ram()
        host = open_host(settings)
        try:
            host.watch(partitions)
            sculpting = Sculpting(host, settings)
            poll(lambda: _is_found(sculpting, host), what="the guest's monitor to tell where its memory lies")
            before = _ram_bytes(guest.pid, ram, "Rss")
            begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
            _cool(sculpting, host, adapt_s)
            cpu_ratio = (time.thread_time() - begin_cpu_s) / (time.monotonic() - begin_s)
            after = _ram_bytes(guest.pid, ram, "Rss")
            cold = sculpting.stats(VM_UUID)
            good, bad = guest.verify()
            gathered, hot_ratio, reason = _heat(sculpting, host, guest, ram)
            more_good, more_bad = guest.verify()
            sculpting.close(may_act=False)
        finally:
            host.close()
    return {
        "resident_before_bytes": float(before),
        "resident_after_bytes": float(after),
        "returned_ratio": 1.0 - after / before,
        "paged_out_bytes": float(cold.paged_out_bytes),
        "undone_bytes": float(cold.undone_bytes),
        "gathered_bytes": float(gathered),
        "hot_huge_ratio": hot_ratio,
        "verified_pages": float(good + bad + more_good + more_bad),
        "bad_pages": float(bad + more_bad),
        "agent_cpu_ratio": cpu_ratio,
    }, reason


def _is_found(sculpting: Sculpting, host: Host) -> bool:
    observation = host.observe()
    if not any(one.name == VM and one.state is VmState.RUNNING for one in observation.vms):
        return False
    sculpting.kept.watch(observation)
    try:
        return sculpting.stats(VM_UUID).guest is not None
    except UsageError:  # its process is not among the partition's yet
        return False


def _cool(sculpting: Sculpting, host: Host, adapt_s: float) -> None:
    """Look at an idle guest, and ask for what is cold, for so long; longer while there is more (a slow machine)."""
    begin_s = time.monotonic()
    look_at_s, last_moved_s, moved = begin_s, begin_s, 0
    while (now_s := time.monotonic()) < begin_s + adapt_s or (
        now_s < last_moved_s + MORE_S and now_s < begin_s + ADAPT_MOST_S
    ):
        observation = host.observe()
        if now_s >= look_at_s:
            look_at_s = now_s + LOOK_S
            sculpting.look(observation)
        sculpting.settle(observation, may_act=True)
        stats = sculpting.sculpt(VM_UUID, ColdZone(size_bytes=ASK_BYTES), observation, may_act=True)
        if stats.paged_out_bytes > moved + ASK_BYTES // 4:
            last_moved_s, moved = time.monotonic(), stats.paged_out_bytes
        time.sleep(max(0.0, now_s + 0.5 - time.monotonic()))


def _heat(sculpting: Sculpting, host: Host, guest: SmallGuest, ram: GuestRam) -> tuple[int, float, str]:
    """Have half of the pattern read all the time and gather it.

    Returns how much was gathered, which share of what is hot lies in huge pages then, and what the verdict says.
    """
    hot_bytes = FILLED_BYTES // 2
    guest.tell(f"loop 0 {hot_bytes // PAGE}")
    for _ in range(HOT_LOOKS):
        time.sleep(LOOK_S)
        observation = host.observe()
        sculpting.settle(observation, may_act=True)
        sculpting.look(observation)
    kind = "ShmemPmdMapped" if ram.is_shared else "AnonHugePages"
    before = _ram_bytes(guest.pid, ram, kind)
    stats = sculpting.sculpt(VM_UUID, HotZone(size_bytes=MEMORY_BYTES), host.observe(), may_act=True)
    after = _ram_bytes(guest.pid, ram, kind)
    guest.tell("loop 0 0")
    told = "; ".join(filter(None, (stats.reason, *(f"{size >> 20} MiB: {why}" for why, size in stats.problems))))
    return max(0, after - before), min(1.0, after / hot_bytes), told


def _ram_bytes(pid: int, ram: GuestRam, name: str) -> int:
    """Return a count of /proc/PID/smaps for the RAM's mapping: the kernel's own, beside what memsculpt says."""
    start, _ = ram.host_ranges()[0]
    content = Path(f"/proc/{pid}/smaps").read_text()
    parts = re.split(rf"^{start:x}-[0-9a-f]+ ", content, maxsplit=1, flags=re.MULTILINE)
    found = re.search(rf"^{name}: +(\d+) kB", parts[-1], re.MULTILINE) if len(parts) == 2 else None
    if found is None:
        raise LabUnavailable(f"/proc/PID/smaps has no {name} for the guest's memory")
    return int(found[1]) * 1024
