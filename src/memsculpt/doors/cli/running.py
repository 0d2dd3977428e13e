# SPDX-License-Identifier: Apache-2.0
"""The heavy half of `run`: host, journal, agent and API put together, and taken apart again in order.

Order on the way in: settings, host, journal (which refuses a second agent and undoes what an earlier one left),
API, guardian, ticks. On the way out: ticks end, everything is undone, the guardian is dismissed, the API ends.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from memsculpt import act, profile
from memsculpt.agent import Agent, Pace
from memsculpt.config import load_source
from memsculpt.domain.settings import Mode, Settings
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import places, words
from memsculpt.doors.api.server import ApiServer, Listening, check_loopback
from memsculpt.doors.cli import preparing
from memsculpt.doors.cli.restore import report_lines, report_view
from memsculpt.errors import ConfigError, Unavailable, UsageError
from memsculpt.host import doctor, open_host, share_one_heap
from memsculpt.host.protocol import Host

# What `--apply` cannot do without; the rest degrades.
NEEDED_TO_APPLY = ("root", "cgroup_limits")
WORTH_TELLING = ("root", "psi", "page_out", "page_in", "swap")
PORTS_TRIED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line asked for."""

    config: str | None
    apply: bool | None  # None: as the configuration says
    duration_s: float | None
    listen: str | None  # None: socket only; "": the default, or a free port near it
    socket: str | None
    state: str | None
    as_json: bool


def run(wanted: Wanted) -> int:
    """Run the agent until it is told to end; return the exit code."""
    settings = settings_for(wanted)
    addresses = addresses_of(wanted, settings)
    for host_name, _ in addresses:
        check_loopback(host_name)
    if settings.mode is Mode.APPLY:
        check_may_apply("--apply" if wanted.apply else 'mode = "apply"')
    share_one_heap()
    with ExitStack() as stack:
        host = open_host(settings)
        stack.callback(host.close)
        watch(host, settings, wanted.config)
        journal = act.Journal.open(settings.state, machine_lock=places.machine_lock())
        stack.callback(journal.close)
        for note in journal.notes:
            tell(f"note: {note}")
        undone = act.restore(host, journal) if settings.mode is Mode.APPLY else None
        if undone is not None and undone.changes:
            tell("an earlier agent left changes behind; undone:")
            for line in report_lines(report_view(undone)):
                tell(f"  {line}")
        places.make_private(places.Path(settings.socket).parent)  # not before it is known that we may run
        recorder = None
        if settings.profile.keep:
            recorder = profile.Recorder(
                settings.state, settings.profile, clock_s=time.time, interval_s=settings.interval_s
            )
            stack.callback(recorder.close)
            for note in recorder.notes:
                tell(f"note: {note}")
        agent = Agent(
            host=host,
            settings=settings,
            journal=journal,
            recorder=recorder,
            gate=preparing.read_gate(places.Path(settings.state), tell),
            refitting=preparing.refitting_for(settings),
            looks_beside=True,
            pace=Pace(settings),
            sharing_seat=act.SharingSeat(places.SHARING_GROUP),
        )
        api = ApiServer(agent, socket_path=settings.socket, addresses=addresses)
        listening = api.start()
        stack.callback(api.stop)
        greet(agent, listening, journal)
        guarded = Guarded(settings, journal)
        guarded.renew(host.now_s())
        agent.on_tick = guarded.renew
        stop = threading.Event()
        with told_to_end(stop, host):
            try:
                agent.run(stop, wanted.duration_s)
            finally:
                report = agent.close()
                guarded.end()
        summary = summary_of(agent, report)
        print(json.dumps(summary) if wanted.as_json else summary_words(summary))
        return 0 if report is None or report.is_complete else 1


def settings_for(wanted: Wanted) -> Settings:
    """Return the settings of the file with what the command line overrides."""
    settings = preparing.read_settings(wanted.config, is_named=wanted.config is not None)
    if wanted.apply is not None:
        settings = replace(settings, mode=Mode.APPLY if wanted.apply else Mode.OBSERVE)
    if wanted.socket is not None:
        settings = replace(settings, socket=wanted.socket)
    if wanted.state is not None:
        settings = replace(settings, state=wanted.state)
    return settings


def check_may_apply(asked_by: str) -> None:
    """Raise Unavailable when this machine or user cannot act at all; `asked_by` says where acting was asked for."""
    found = doctor.examine()
    for name in NEEDED_TO_APPLY:
        if not found[name].available:
            raise Unavailable(
                place=asked_by, problem=found[name].reason, fix=found[name].fix or "run with --observe instead"
            )


def watch(host: Host, settings: Settings, config: str | None) -> None:
    """Hand the partitions to the host; its complaint is given the line of the configuration."""
    try:
        host.watch(settings.partitions)
    except ConfigError as error:
        path = places.config_path(config)
        if path is None:
            raise
        source = load_source(path, preparing.total_memory_bytes())
        name = next((one.name for one in settings.partitions if f'"{one.name}"' in error.place), None)
        if name is None:
            raise
        raise ConfigError(place=source.locate(name), problem=error.problem, fix=error.fix) from error


class Guarded:
    """The guardian that undoes everything should the agent die or hang, from the moment on that it can act."""

    def __init__(self, settings: Settings, journal: act.Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._lease: act.Lease | None = None

    def renew(self, now_s: float) -> None:
        """Start the guardian when changes can be journalled, then renew its lease; called before and after ticks."""
        if self._lease is not None:
            self._lease.renew(now_s)
        elif self._settings.mode is Mode.APPLY and self._journal.writable:
            lease_s = act.lease_for(self._settings.interval_s)
            self._lease = act.Lease.start(self._settings.state, lease_s=lease_s, now_s=now_s)

    def end(self) -> None:
        """Dismiss the guardian: everything was undone."""
        if self._lease is not None:
            self._lease.end()


def addresses_of(wanted: Wanted, settings: Settings) -> list[tuple[str, int]]:
    """Return the loopback addresses to try, in order."""
    if wanted.listen is None:
        return []
    text = wanted.listen or settings.listen or places.DEFAULT_LISTEN
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(place=f"--listen {text}", problem="is no address", fix="say --listen 127.0.0.1:8472")
    first = int(port)
    count = 1 if wanted.listen or settings.listen else PORTS_TRIED
    return [(host.strip("[]"), number) for number in range(first, min(first + count, 65536))]


@contextmanager
def told_to_end(stop: threading.Event, host: Host) -> Generator[None]:
    """Have SIGTERM, SIGINT and a closed terminal (unless under nohup) end the ticks in good order."""

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        host.wake()

    # nohup means SIGHUP; a SIGINT that is ignored only tells that a script started us in the background.
    has_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    heard = (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if has_terminal else ()))
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def greet(agent: Agent, listening: Listening, journal: act.Journal) -> None:
    """Say where the agent answers, what it does, and what is degraded."""
    report = agent.report
    verb = "observing: it plans and changes nothing" if report.mode is Mode.OBSERVE else "applying plans"
    if report.mode is Mode.APPLY and not journal.writable:
        verb = f"observing only, because the journal cannot be written: {journal.problem}"
    partitions = report.settings.partitions
    count = f"{len(partitions)} partition{'' if len(partitions) == 1 else 's'} named"
    tell(f"memsculpt is {verb} (pid {report.pid}, every {format_duration_s(report.settings.interval_s)}, {count})")
    tell(
        f"API  unix:{listening.socket_path}" + (f"  and, for reading, {listening.address}" if listening.address else "")
    )
    for fact in report.capabilities:
        if fact.name in WORTH_TELLING and not fact.available:
            tell(f"degraded: {fact.name}: {fact.reason}" + (f" (fix: {fact.fix})" if fact.fix else ""))


def summary_of(agent: Agent, restored: "act.RestoreReport | None") -> dict[str, Any]:
    """Return what the run came to."""
    report = agent.report
    workloads = 0 if report.observation is None else len(report.observation.workloads.ids)
    processes = 0 if report.observation is None else len(report.observation.processes.pids)
    scores = report.scores
    return {
        "mode": report.mode.value,
        "duration_s": report.now_s - report.started_at_s,
        "tick_count": report.tick_count,
        "late_count": report.late_count,
        "failed_count": report.failed_count,
        "workload_count": workloads,
        "process_count": processes,
        "plan_count": report.plan_count,
        "actions": dict(report.applied_counts),
        "scored_count": 0 if scores is None else scores.scored_count,
        "levels": [] if scores is None else list(scores.levels),
        "covered_ratio": [] if scores is None else scores.covered_ratio.tolist(),
        "agent": {"cpu_share": report.agent.cpu_share, "peak_resident_bytes": report.agent.peak_resident_bytes},
        "restored": None if restored is None else report_view(restored),
    }


def summary_words(summary: dict[str, Any]) -> str:
    """Return the summary for people."""
    actions = ", ".join(f"{count} {status}" for status, count in sorted(summary["actions"].items())) or "none"
    covered = ", ".join(
        f"{words.level_name(level)} held {words.percent(ratio)}"
        for level, ratio in zip(summary["levels"], summary["covered_ratio"], strict=True)
    )
    agent = summary["agent"]
    ticks = f"{summary['late_count']} late, {summary['failed_count']} failed"
    lines = [
        (
            f"{summary['tick_count']} ticks in {format_duration_s(summary['duration_s'])} ({ticks}): "
            f"{summary['workload_count']} workloads, {summary['process_count']} processes"
        ),
        f"plans with something to do: {summary['plan_count']}; actions: {actions}",
        f"forecasts scored: {summary['scored_count']}" + (f" ({covered})" if covered else ""),
        (
            f"the agent itself: {words.percent(agent['cpu_share'])} of one processor, "
            f"{format_bytes(agent['peak_resident_bytes'])} resident at most"
        ),
    ]
    if summary["restored"] is not None:
        undone = [line for line in report_lines(summary["restored"]) if line]
        lines.append("undone on the way out:" if undone else "nothing was left to undo")
        lines.extend(f"  {line}" for line in undone)
    return "\n".join(lines)


def tell(line: str) -> None:
    """Say a line to people, who read stderr; stdout is for results."""
    print(words.printable(line), file=sys.stderr, flush=True)
