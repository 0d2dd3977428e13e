# SPDX-License-Identifier: Apache-2.0
"""VMs that libvirt runs, asked through libvirtd: it owns their monitors. The same answers as monitors.py gives.

libvirt's calls have no time-out of their own, so they are made on a thread of its own: a tick takes what was read last,
and who needs an answer waits for `timeout_s` and no longer. A second thread runs libvirt's event loop, by which
balloons tell that they moved, and by which a connection that broke is noticed. libvirtd may be restarted at any time:
its VMs go on, and the connection is made anew, with pauses that double.

`import libvirt` (the extra `libvirt`) happens when a VM of libvirt's is there and [vms] names its URI, not before.
Source: libvirt's reference of virDomainListGetStats, virDomainMemoryStats (KiB), virDomainSetMemoryFlags and
virDomainQemuMonitorCommand, which marks the domain as tainted.
"""

import importlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from memsculpt.domain.vm import GuestMemory, VmFeatures, VmState, guest_memory
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished
from memsculpt.host.linux.expected_balloons import ExpectedBalloons
from memsculpt.host.linux.monitors import PAUSE_FIRST_S, PAUSE_MOST_S, Target, Told
from memsculpt.host.linux.qmp import Answer, Command, CommandError
from memsculpt.host.linux.vm_asking import VmFacts

KIB = 1024
FEATURES_EVERY_S = 60.0
KEEPALIVE_S, KEEPALIVE_COUNT = 5, 3
EVENT_TURN_MS = 200
MISSING = (
    "libvirt-python is not installed (fix: pip install 'memsculpt[libvirt]', the version of this machine's libvirt)"
)
NOT_FOUND = "libvirt knows no running domain of its UUID: is [vms] libvirt the URI it was started by?"

# virDomainState and virDomainPausedReason (include/libvirt/libvirt-domain.h).
_RUNNING, _BLOCKED, _PAUSED, _SHUTDOWN, _PM_SUSPENDED = 1, 2, 3, 4, 7
_PAUSED_FOR_MIGRATION, _PAUSED_FOR_SAVE = 2, 3
# Our names of what the guest tells (domain/vm.py reads QEMU's), libvirt's, and the unit of libvirt's.
_STATS: tuple[tuple[str, str, int], ...] = (
    ("stat-total-memory", "available", KIB),
    ("stat-free-memory", "unused", KIB),
    ("stat-available-memory", "usable", KIB),
    ("stat-disk-caches", "disk_caches", KIB),
    ("stat-swap-in", "swap_in", KIB),
    ("stat-swap-out", "swap_out", KIB),
    ("stat-major-faults", "major_fault", 1),
    ("stat-minor-faults", "minor_fault", 1),
)
_BALLOON = re.compile(r"<memballoon\b(?P<words>[^>]*)>(?P<rest>.*?)(?:</memballoon>|\Z)", re.DOTALL)
_PERIOD = re.compile(r"<stats period=['\"](\d+)['\"]")


@dataclass(slots=True)
class _Job:
    """Commands that somebody waits for."""

    target: Target
    commands: Sequence[Command]
    answers: "Future[list[Answer]]"


@dataclass(slots=True)
class _Domain:
    """What lasts of one domain."""

    features: VmFeatures
    at_s: float
    sets_period: bool = False  # its guest's statistics were not polled before us


class LibvirtMonitors:
    """Asks one libvirt. As monitors.Monitors for those who use it."""

    def __init__(
        self,
        uri: str,
        *,
        timeout_s: float,
        interval_s: float,
        expected: ExpectedBalloons | None = None,
        on_foreign_balloon: Callable[[], None] | None = None,
        load: Callable[[str], Any] = importlib.import_module,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """Start the thread; nothing is connected yet. `timeout_s` is for one answer.

        `on_foreign_balloon` is called from another thread when a balloon is told to be where it is not `expected`.
        """
        self._expected = expected if expected is not None else ExpectedBalloons()
        self._on_foreign_balloon = on_foreign_balloon
        self._uri, self._timeout_s = uri, timeout_s
        self.interval_s = interval_s  # may be set from any thread; counts from the next question on
        self._load, self._now_s, self._wall_s = load, now_s, wall_s
        self._libvirt: Any = None
        self._connection: Any = None
        self._failures = 0
        self._problem = "libvirt was not asked yet"
        self._changed = threading.Condition()
        self._targets: Mapping[Instance, Target] = {}
        self._told: dict[Instance, Told] = {}
        self._jobs: deque[_Job] = deque()
        self._domains: dict[str, _Domain] = {}
        self._busy_since_s: float | None = None
        self._ends = False
        self._events: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name="vm-libvirt", daemon=True)
        self._thread.start()

    def follow(self, targets: Mapping[Instance, Target]) -> None:
        """Ask about these from now on, and nobody else."""
        with self._changed:
            if targets != self._targets:
                self._targets = dict(targets)
                self._told = {one: told for one, told in self._told.items() if one in targets}
                self._changed.notify_all()

    def told(self) -> Mapping[Instance, Told]:
        """Return the latest that is known of each. While libvirt does not answer none of them is reached."""
        with self._changed:
            waits_s = 0.0 if self._busy_since_s is None else self._now_s() - self._busy_since_s
            if waits_s > self._timeout_s:
                problem = f"{self._uri} has not answered for {waits_s:.0f} s"
                return {one: replace(told, is_reached=False, problem=problem) for one, told in self._told.items()}
            return dict(self._told)

    def ask(self, process: Instance, commands: Sequence[Command]) -> list[Answer]:
        """Have commands answered, waiting no longer than for one answer.

        A balloon is moved by libvirt's own call, so that it knows; everything else goes to the monitor as it is. Raises
        Vanished, Unavailable where libvirt is not reached, Transient where it does not answer in time.
        """
        with self._changed:
            target, told = self._targets.get(process), self._told.get(process)
            if target is None:
                raise Vanished(place=f"process {process.pid}")
            if told is None or not told.is_reached:
                problem = told.problem if told is not None else self._problem
                raise Unavailable(place=f'VM "{target.name}"', problem=problem, fix="see `memsculpt vms`")
            job = _Job(target, commands, Future())
            self._jobs.append(job)
            self._changed.notify_all()
        try:
            return job.answers.result(self._timeout_s)
        except NotInTime as error:
            job.answers.cancel()
            raise Transient(
                place=f'VM "{target.name}"',
                problem=f"{self._uri} gave no answer within {self._timeout_s:g} s",
                retry_in_s=PAUSE_FIRST_S,
            ) from error

    def close(self) -> None:
        """Put back what was changed, and end the threads; one that hangs in a call is left behind. Twice is as once."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(self._timeout_s)
        if self._events is not None:
            self._events.join(self._timeout_s)

    # ---- the thread

    def _run(self) -> None:
        due_s = self._now_s()
        while True:
            with self._changed:
                if not self._ends and not self._jobs and self._now_s() < due_s:
                    self._changed.wait(due_s - self._now_s())
                ends, job = self._ends, self._jobs.popleft() if self._jobs else None
                targets = dict(self._targets)
                self._busy_since_s = self._now_s()
            if ends:
                self._hang_up()
                return
            if job is not None:
                self._do(job)
            elif targets and self._now_s() >= due_s:
                due_s = self._now_s() + self._look(targets)
            elif self._now_s() >= due_s:
                due_s = self._now_s() + self.interval_s
            with self._changed:
                self._busy_since_s = None

    def _look(self, targets: Mapping[Instance, Target]) -> float:
        """Read all; return after how long to do so again."""
        try:
            self._connect()
            rows = {domain.UUIDString().lower(): (domain, row) for domain, row in self._connection.getAllDomainStats()}
            told = {one: self._told_of(target, rows.get(target.uuid)) for one, target in targets.items()}
        except Unavailable as error:
            return self._failed(error.problem, targets)
        except self._libvirt.libvirtError as error:
            return self._failed(f"{self._uri}: {_words_of(error)}", targets)
        self._failures = 0
        for one, each in told.items():
            self._expected.take(one, each.facts.balloon_bytes)
        with self._changed:
            self._told = {one: each for one, each in told.items() if one in self._targets}
        return self.interval_s

    def _failed(self, problem: str, targets: Mapping[Instance, Target]) -> float:
        self._hang_up()
        self._failures += 1
        self._problem = problem
        with self._changed:
            for one in targets:
                before = self._told.get(one) or _nothing_of()
                self._told[one] = replace(before, is_reached=False, problem=problem)
        return min(PAUSE_FIRST_S * 2.0 ** (self._failures - 1), PAUSE_MOST_S)

    def _connect(self) -> None:
        """Connect, where there is no connection. Raises Unavailable, libvirtError."""
        if self._libvirt is None:
            try:
                self._libvirt = self._load("libvirt")
            except ImportError as error:
                raise Unavailable(place=self._uri, problem=MISSING, fix="") from error
            self._libvirt.registerErrorHandler(_keep_quiet, None)  # it would print every error itself
            self._libvirt.virEventRegisterDefaultImpl()  # before the first connection
            self._libvirt.virEventAddTimeout(EVENT_TURN_MS, _keep_quiet, None)
            self._events = threading.Thread(target=self._run_events, name="vm-libvirt-events", daemon=True)
            self._events.start()
        if self._connection is not None and self._connection.isAlive():
            return
        self._hang_up()
        self._connection = self._libvirt.open(self._uri)
        with suppress(self._libvirt.libvirtError):  # a driver within this process has nothing to keep alive
            self._connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        kind = self._libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE
        self._connection.domainEventRegisterAny(None, kind, self._balloon_changed, None)

    def _run_events(self) -> None:
        while not self._ends:
            self._libvirt.virEventRunDefaultImpl()

    def _balloon_changed(self, _connection: object, domain: Any, actual_kib: int, _opaque: object) -> None:
        """Take what a balloon tells; called on the event loop's thread."""
        uuid = domain.UUIDString().lower()
        is_news = False
        with self._changed:
            for one, target in self._targets.items():
                if target.uuid == uuid and one in self._told:
                    told = self._told[one]
                    self._told[one] = replace(told, facts=replace(told.facts, balloon_bytes=actual_kib * KIB))
                    is_news |= not self._expected.take(one, actual_kib * KIB)
        if is_news and self._on_foreign_balloon is not None:
            self._on_foreign_balloon()

    def _told_of(self, target: Target, found: tuple[Any, Mapping[str, Any]] | None) -> Told:
        if found is None:
            return replace(_nothing_of(), problem=NOT_FOUND)
        domain, row = found
        now_s, wall_s = self._now_s(), self._wall_s()
        known = self._known_of(domain, target.uuid, now_s)
        state = state_of(row)
        if state in {VmState.RUNNING, VmState.PAUSED} and domain.jobInfo()[0] != self._libvirt.VIR_DOMAIN_JOB_NONE:
            state = VmState.MIGRATING  # also while it is saved or dumped
        facts = facts_from(row, uuid=target.uuid, name=domain.name(), state=state, now_s=now_s, wall_s=wall_s)
        facts.features = known.features
        network = None
        if int(row.get("net.count", 0)):
            network = _sum(row, "net", "rx.bytes"), _sum(row, "net", "tx.bytes")
        return Told(
            facts=facts,
            read_at_s=now_s,
            vcpu_s=_sum(row, "vcpu", "time") / 1e9,
            network_bytes=network,
            problem="",
            is_reached=True,
        )

    def _known_of(self, domain: Any, uuid: str, now_s: float) -> _Domain:
        known = self._domains.get(uuid)
        if known is None or now_s - known.at_s >= FEATURES_EVERY_S:
            features, period_s = features_from(domain.XMLDesc())
            sets_period = known is not None and known.sets_period
            if features.balloon and period_s == 0 and not sets_period:
                domain.setMemoryStatsPeriod(max(1, round(self.interval_s)), self._libvirt.VIR_DOMAIN_AFFECT_LIVE)
                sets_period = True
            known = self._domains[uuid] = _Domain(features, now_s, sets_period)
        return known

    def _do(self, job: _Job) -> None:
        if not job.answers.set_running_or_notify_cancel():
            return
        place = f'VM "{job.target.name}"'
        try:
            self._connect()
            domain = self._connection.lookupByUUIDString(job.target.uuid)
            job.answers.set_result([self._answer(domain, one) for one in job.commands])
        except MemsculptError as error:
            job.answers.set_exception(error)
        except self._libvirt.libvirtError as error:
            gone = error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN
            problem = f"{self._uri}: {_words_of(error)}"
            job.answers.set_exception(
                Vanished(place=place) if gone else Transient(place=place, problem=problem, retry_in_s=PAUSE_FIRST_S)
            )

    def _answer(self, domain: Any, command: Command) -> Answer:
        arguments = dict(command.arguments or {})
        if command.name == "balloon":
            try:
                domain.setMemoryFlags(int(arguments["value"]) // KIB, self._libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except self._libvirt.libvirtError as error:
                return CommandError("GenericError", _words_of(error))
            return {}
        if command.name == "query-balloon":
            return {"actual": int(domain.memoryStats().get("actual", 0)) * KIB}
        asked = json.dumps({"execute": command.name, "arguments": arguments})
        told = json.loads(self._load("libvirt_qemu").qemuMonitorCommand(domain, asked, 0))
        if "error" in told:
            return CommandError(str(told["error"].get("class", "")), str(told["error"].get("desc", "")))
        return told.get("return")

    def _hang_up(self) -> None:
        """Put back the intervals of statistics as far as it answers, and close the connection."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        live = self._libvirt.VIR_DOMAIN_AFFECT_LIVE
        for uuid, known in self._domains.items() if self._ends else ():
            if known.sets_period:
                with suppress(self._libvirt.libvirtError):  # it has gone, or libvirtd has: nothing more can be done
                    connection.lookupByUUIDString(uuid).setMemoryStatsPeriod(0, live)
        with suppress(self._libvirt.libvirtError):  # it was broken already
            connection.close()


def state_of(row: Mapping[str, Any]) -> VmState:
    """Return what becomes of a domain, by `state.state` and `state.reason` of its stats."""
    state, reason = row.get("state.state"), row.get("state.reason")
    if state in {_RUNNING, _BLOCKED}:
        return VmState.RUNNING
    if state == _PAUSED and reason in {_PAUSED_FOR_MIGRATION, _PAUSED_FOR_SAVE}:
        return VmState.MIGRATING
    return VmState.PAUSED if state in {_PAUSED, _PM_SUSPENDED} else VmState.ENDING


def facts_from(row: Mapping[str, Any], *, uuid: str, name: str, state: VmState, now_s: float, wall_s: float) -> VmFacts:
    """Return what a row of virDomainListGetStats tells; sizes in it are KiB."""
    ram_bytes = int(row.get("balloon.maximum", 0)) * KIB
    balloon = row.get("balloon.current")
    return VmFacts(
        uuid=uuid,
        name=name,
        state=state,
        ram_bytes=ram_bytes,
        balloon_bytes=int(balloon) * KIB if balloon is not None else None,
        guest=_guest_from(row, ram_bytes, now_s, wall_s),
        read_bytes=_sum(row, "block", "rd.bytes"),
        written_bytes=_sum(row, "block", "wr.bytes"),
    )


def features_from(xml: str) -> tuple[VmFeatures, int]:
    """Return what a domain's devices offer, and how often its statistics are polled, in seconds; 0: never."""
    found = _BALLOON.search(xml)
    if found is None or re.search(r"model=['\"]none['\"]", found["words"]):
        return VmFeatures(), 0
    period = _PERIOD.search(found["rest"])
    return VmFeatures(
        balloon=True,
        deflate_on_oom=re.search(r"autodeflate=['\"]on['\"]", found["words"]) is not None,
        free_page_reporting=re.search(r"freePageReporting=['\"]on['\"]", found["words"]) is not None,
        virtio_mem="<memory model='virtio-mem'" in xml,
    ), (int(period[1]) if period is not None else 0)


def _guest_from(row: Mapping[str, Any], ram_bytes: int, now_s: float, wall_s: float) -> GuestMemory | None:
    """Return what the guest says. libvirt leaves out what it did not tell; without a time it never told anything."""
    told_at = row.get("balloon.last-update", 0)
    if not isinstance(told_at, int) or told_at <= 0:
        return None
    stats = {
        ours: value * unit
        for ours, theirs, unit in _STATS
        if isinstance(value := row.get(f"balloon.{theirs}"), int) and not isinstance(value, bool)
    }
    age_s = min(max(wall_s - told_at, 0.0), now_s)
    return guest_memory(stats, ram_bytes=ram_bytes, updated_at_s=now_s - age_s)


def _sum(row: Mapping[str, Any], group: str, name: str) -> int:
    pattern = re.compile(rf"{re.escape(group)}\.\d+\.{re.escape(name)}\Z")
    return sum(int(value) for key, value in row.items() if pattern.match(key))


def _nothing_of() -> Told:
    return Told(facts=VmFacts(), read_at_s=float("-inf"), vcpu_s=0.0, network_bytes=None, problem="", is_reached=False)


def _words_of(error: Any) -> str:
    return str(error.get_error_message() or error)


def _keep_quiet(*_: object) -> None:
    return
