# SPDX-License-Identifier: Apache-2.0
"""bench sharing: how right the forecast of merging is, and that nothing is shared across trust groups.

Real guests (QEMU's emulator): two alike in a trust group, a third one, like them, in none. Their memory holds what a
booted kernel holds, and files in a tmpfs: pages that all three have, and pages that only one has. Each round boots
them, has memsculpt look, forecast, merge until it says that all is merged, end, and put everything back. Beside
memsculpt's own figures stand the kernel's: pages_sharing, Pss and KSM of smaps.

The figures: forecast over reached, whole and by VM; bytes of the outsider that are shared (KSM of its smaps, and its
pages merged), at any time; settings of KSM that are not as they were found.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memsculpt import act
from memsculpt.agent.sharing import Sharing
from memsculpt.domain.plan import Plan
from memsculpt.domain.settings import Mode, Settings, TrustGroup, VmSettings
from memsculpt.domain.sharing import Phase
from memsculpt.errors import Unavailable
from memsculpt.host import open_host
from memsculpt.host.protocol import Host
from memsculpt.plan import SharingRules
from memsculpt_bench.contract import Figure, at_least, at_most, result
from memsculpt_bench.guests import bare, debian, lab
from memsculpt_bench.guests.guest import Guest
from memsculpt_bench.lab import LabUnavailable, poll

MIB = 1 << 20
KSM = Path("/sys/kernel/mm/ksm")
KNOBS = ("run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode", "use_zero_pages", "max_page_sharing")
GUESTS = ("web-1", "web-2", "outside")
FILE_BYTES = 24 * MIB  # in each guest's tmpfs
COMMON_BYTES = 16 * MIB  # of these the same in all
# A round is to take a minute, not an hour: looks beside each other, and a tick that watches every second instead of a
# lease that may run out. The product's own: docs/methods/sharing.md.
RULES = SharingRules(least_bytes=4 * MIB, unwatched_s=2.0, cpu_most_ratio=0.1)
LOOK_RATIO, REST_S, TICK_S = 0.3, 5.0, 1.0
MERGED_WITHIN_S = 240.0

Say = Callable[[str], None]


def run(rounds: int = 5, *, quick: bool = False, say: Say | None = None) -> dict[str, Any]:
    """Run all rounds; return the object that `bench sharing --json` prints. Raises LabUnavailable."""
    tell = say or _nothing
    check_machine()
    file_bytes = FILE_BYTES // 2 if quick else FILE_BYTES
    columns: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, value in _run_round(number, file_bytes).items():
            columns.setdefault(name, []).append(value)
        last = {name: values[-1] for name, values in columns.items()}
        tell(
            f"round {number + 1} of {rounds}: forecast {last['forecast_bytes'] / MIB:.1f} MiB "
            f"({last['low_bytes'] / MIB:.1f} to {last['high_bytes'] / MIB:.1f}), reached "
            f"{last['reached_bytes'] / MIB:.1f} MiB, outside {last['outside_shared_bytes']:.0f} bytes shared"
        )
    return result("sharing", rounds, {"memsculpt": columns}, figures_of(columns), file_bytes=file_bytes)


def figures_of(columns: Mapping[str, list[float]]) -> dict[str, Figure]:
    """Return the figures with their bars."""
    ratios = [one / other for one, other in zip(columns["forecast_bytes"], columns["reached_bytes"], strict=True)]
    inside = [
        float(low <= reached <= high)
        for low, reached, high in zip(
            columns["low_bytes"], columns["reached_bytes"], columns["high_bytes"], strict=True
        )
    ]
    return {
        "forecast_over_reached": at_least(0.8, ratios, also=max(ratios) <= 1.25 and min(ratios) >= 0.8),
        "forecast_over_reached_most": at_most(1.25, ratios, also=max(ratios) <= 1.25),
        "reached_within_interval": at_least(0.5, inside),
        "outside_shared_bytes": at_most(
            0, columns["outside_shared_bytes"], also=not any(columns["outside_shared_bytes"])
        ),
        "settings_not_put_back": at_most(
            0, columns["settings_not_put_back"], also=not any(columns["settings_not_put_back"])
        ),
    }


def check_machine() -> None:
    """Raise LabUnavailable where an arm could not be what it says."""
    possible, reason = lab.probe()
    if not possible:
        raise LabUnavailable(reason)
    if not (KSM / "run").exists():
        raise LabUnavailable("the kernel has no KSM")
    in_use = "KSM is in use on this machine: this bench would merge with others' pages"
    if (KSM / "run").read_text().strip() != "0":
        raise LabUnavailable(in_use)
    try:  # pages of whoever has just ended are let go a little later
        poll(
            lambda: (KSM / "pages_shared").read_text().strip() == "0", what="merged pages to be let go", timeout_s=10.0
        )
    except TimeoutError as error:
        raise LabUnavailable(in_use) from error
    host = open_host(Settings())
    try:
        offerers = host.offerers()
    except Unavailable as error:
        raise LabUnavailable(str(error)) from error
    finally:
        host.close()
    if offerers:
        names = ", ".join(f"{one.name} (pid {one.process.pid})" for one in offerers)
        raise LabUnavailable(f"others offer memory to KSM: {names}; VMs: start them with -machine mem-merge=off")


@contextmanager
def ksm_as_found() -> Generator[dict[str, str]]:
    """Put KSM back as it was, whatever happens inside; gives what it was."""
    found = read_ksm()
    try:
        yield found
    finally:
        if read_ksm() != found:
            for text in ("2", found["run"].strip()):
                (KSM / "run").write_text(text)
            if "advisor_mode" in found:
                (KSM / "advisor_mode").write_text("none")
            for name in ("pages_to_scan", "sleep_millisecs", "smart_scan"):
                if name in found:
                    (KSM / name).write_text(found[name])
            if "advisor_mode" in found:
                (KSM / "advisor_mode").write_text(_chosen(found["advisor_mode"]))


def read_ksm() -> dict[str, str]:
    """Return KSM's settings as they stand."""
    return {name: (KSM / name).read_text() for name in KNOBS if (KSM / name).exists()}


@contextmanager
def three_guests(folder: Path, *, outside_merges: bool = False) -> Generator[dict[str, Guest]]:
    """Boot the three, one after another: two cores. Raises LabUnavailable."""
    try:
        kernel, initial = bare.prepare(lab.cache(), folder)
    except debian.Unavailable as error:
        raise LabUnavailable(str(error)) from error
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                bare.guest(
                    bare.BareMachine(
                        kernel_image=kernel,
                        initramfs=initial,
                        name=name,
                        merge=outside_merges and name == "outside",
                        memory_backend=name != "web-2",  # the default RAM, too, can be offered
                        monitor=folder / f"{name}.qmp",
                    ),
                    folder / name,
                )
            )
            for name in GUESTS
        }


def fill(guest: Guest, seed: int, common_bytes: int, own_bytes: int) -> None:
    """Fill a tmpfs of a guest: pages that all have, and pages of its own; no two within a guest are alike."""
    for name, pages in (("common", common_bytes // 4096), (f"own{seed}", own_bytes // 4096)):
        program = f'BEGIN {{ for (i = 0; i < {pages}; i++) printf "%-4095s\\n", "{name}." i }}'
        guest.check(f"awk '{program}' > /tmp/{name}", timeout_s=120)


def go_on_until(
    host: Host, sharing: Sharing, journal: act.Journal, phase: Phase, within_s: float, each: Callable[[], None]
) -> None:
    """Tick, as the agent does, until sharing is in a phase. Raises LabUnavailable when it never is."""
    ids, end_s = act.ActionIds(), time.monotonic() + within_s
    while sharing.report is None or sharing.report.phase is not phase:
        if time.monotonic() > end_s:
            raise LabUnavailable(f"not {phase.value} after {within_s:.0f} s: {sharing.report}")
        begin_s = time.monotonic()
        observation = host.observe()
        applied = act.apply(host, journal, sharing.choose(Plan(made_at_s=observation.time_s), observation), ids)
        sharing.note(applied)
        each()
        time.sleep(max(0.0, begin_s + TICK_S - time.monotonic()))


def shared_bytes(pid: int) -> int:
    """Return what of a process is merged, as its page tables have it: KSM of smaps_rollup (Linux 6.8)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("KSM:"):
            return int(line.split()[1]) * 1024
    raise LabUnavailable("/proc/PID/smaps_rollup has no KSM")


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LabUnavailable("/proc/PID/smaps_rollup has no Pss")


def merging_pages(pid: int) -> int:
    """Return how many uses of merged pages a process has, by the kernel's count."""
    for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines():
        if line.startswith("ksm_merging_pages"):
            return int(line.split()[1])
    raise LabUnavailable("/proc/PID/ksm_stat has no ksm_merging_pages")


def _run_round(number: int, file_bytes: int) -> dict[str, float]:
    settings = Settings(
        mode=Mode.APPLY, vms=VmSettings(trust=(TrustGroup(name="web", vms=("web-*",)),)), interval_s=TICK_S
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memsculpt-lab-")))
        found = stack.enter_context(ksm_as_found())
        guests = stack.enter_context(three_guests(folder))
        common = file_bytes * COMMON_BYTES // FILE_BYTES
        for seed, guest in enumerate(guests.values()):
            fill(guest, 10 * number + seed, common, file_bytes - common)
        host = open_host(settings)
        stack.callback(host.close)
        journal = act.Journal.open(folder / "state", machine_lock=None)
        stack.callback(journal.close)
        sharing = Sharing(host, settings, rules=RULES, rest_s=REST_S, look_ratio=LOOK_RATIO)
        outside: list[float] = []
        outside_pid = guests["outside"].pid

        def look() -> None:
            outside.append(float(max(shared_bytes(outside_pid), merging_pages(outside_pid) * 4096)))

        pids = {name: guests[name].pid for name in ("web-1", "web-2")}
        pss = {name: pss_bytes(pid) for name, pid in pids.items()}
        begin_s = time.monotonic()
        go_on_until(host, sharing, journal, Phase.MERGING, MERGED_WITHIN_S, look)
        looked_s = time.monotonic() - begin_s
        go_on_until(host, sharing, journal, Phase.KEPT, MERGED_WITHIN_S, look)
        merged_s = time.monotonic() - begin_s - looked_s
        report, now = sharing.report, host.merging()
        if report is None or report.forecast is None:
            raise LabUnavailable("merging began without a forecast")
        reached = report.saved_bytes
        pss_saved = sum(pss[name] - pss_bytes(pid) for name, pid in pids.items())
        members = {one.name: one.saved_bytes for one in report.groups[0].members}
        restored = act.restore(host, journal)
        look()
        return {
            "forecast_bytes": report.forecast.size_bytes,
            "low_bytes": report.forecast.low_bytes,
            "high_bytes": report.forecast.high_bytes,
            "reached_bytes": float(reached),
            "kernel_merged_bytes": float(now.saved_pages * 4096),
            "pss_saved_bytes": float(pss_saved),
            **{f"{name}_saved_bytes": float(size) for name, size in members.items()},
            "outside_shared_bytes": max(outside),
            "settings_not_put_back": float(sum(found[name] != text for name, text in read_ksm().items()))
            + (not restored.is_complete),
            "look_s": looked_s,
            "merge_s": merged_s,
            "ksmd_cpu_s": now.cpu_s,
        }


def say_to_stderr(line: str) -> None:
    """Tell people how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _chosen(text: str) -> str:
    return text[text.find("[") + 1 : text.find("]")]


def _nothing(_line: str) -> None:
    return
