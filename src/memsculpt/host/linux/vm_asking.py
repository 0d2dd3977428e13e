# SPDX-License-Identifier: Apache-2.0
"""What a VM's monitor is asked, how often, and what its answers mean. No I/O, no clock: both are the caller's.

Source: QEMU's QAPI (qapi/machine.json, block-core.json, migration.json) and docs/interop/virtio-balloon-stats.rst. An
answer may be any JSON: what does not have the shape or cannot be true counts as not told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from memsculpt.domain.vm import COUNT_MOST, NO_UUID, GuestMemory, VmFeatures, VmState, guest_memory
from memsculpt.host.linux.qmp import Answer, Command, CommandError, Event

DEVICES_EVERY_S = 60.0  # a balloon may be plugged in
SLOW_EVERY_S = 10.0  # memory and processors that are plugged, block devices
STATS_INTERVAL_MOST_S = 10  # a slower poll that somebody else has set is made faster
VCPUS_MOST = 1024
SIZE_MOST_BYTES = 1 << 50

CHECKED_EVERY_S = 3.0  # a migration that has begun, and what events tell: one may be lost
STIRS_FOR_S = 5.0  # after a balloon has moved, or the VM was changed, it is looked at every time
NO_FEATURES = VmFeatures()
QUERY_STATUS, QUERY_MIGRATE = Command("query-status"), Command("query-migrate")
QUERY_BALLOON = Command("query-balloon")

# After a reboot, for one, the guest begins anew with its balloon.
STIRRING = frozenset({"RESUME", "STOP", "SHUTDOWN", "RESET", "POWERDOWN", "SUSPEND", "WAKEUP", "BALLOON_CHANGE"})

Handler: TypeAlias = Callable[[Any], None]
Question: TypeAlias = tuple[Command, Handler]

# qapi/run-state.json, RunState. What is not here is new: not running, so nothing is done to it.
_STATES = {
    "running": VmState.RUNNING,
    "inmigrate": VmState.ARRIVING,
    "finish-migrate": VmState.MIGRATING,
    "postmigrate": VmState.MIGRATING,
    "save-vm": VmState.MIGRATING,
    "shutdown": VmState.ENDING,
    "guest-panicked": VmState.ENDING,
    "colo": VmState.MIGRATING,
}
# qapi/migration.json, MigrationStatus: under way, so a balloon would fight the copying.
_MIGRATES = frozenset({"setup", "active", "postcopy-active", "postcopy-paused", "postcopy-recover", "device",
                       "pre-switchover", "colo", "wait-unplug", "cancelling"})  # fmt: skip


@dataclass(slots=True)
class VmFacts:
    """What the monitor has told so far."""

    uuid: str = ""  # "" before it was asked
    name: str = ""
    state: VmState = VmState.UNREACHABLE
    ram_bytes: int = 0
    balloon_bytes: int | None = None
    guest: GuestMemory | None = None
    features: VmFeatures = NO_FEATURES
    vcpu_threads: tuple[int, ...] = ()
    read_bytes: int = 0
    written_bytes: int = 0
    dirtied_bytes_per_s: float = float("nan")
    refusals: dict[str, str] = field(default_factory=dict[str, str])  # by command, in QEMU's words

    def copy(self) -> "VmFacts":
        """Return facts that no longer change; by place, for dataclasses.replace takes five times as long."""
        return VmFacts(
            self.uuid,
            self.name,
            self.state,
            self.ram_bytes,
            self.balloon_bytes,
            self.guest,
            self.features,
            self.vcpu_threads,
            self.read_bytes,
            self.written_bytes,
            self.dirtied_bytes_per_s,
            dict(self.refusals),
        )


class VmAsking:
    """The questions for one connection."""

    def __init__(self, *, stats_interval_s: int, dirty_every_s: float = 0.0, past: VmFacts | None = None) -> None:
        """Begin a connection; `past` are the facts of an earlier one to the same process: counters never fall."""
        self.facts = past if past is not None else VmFacts()
        self.facts.uuid = ""
        self._stats_interval_s = stats_interval_s
        self._dirty_every_s = dirty_every_s
        self._devices_at_s = self._slow_at_s = self._checked_at_s = float("-inf")
        self._stirred_at_s = float("-inf")
        self._dirty_at_s = float("-inf")
        self._dirty_runs = False
        self._balloon_path = ""
        self._ask_stats = Command("qom-get")
        self._stats_before: object = None
        self._polling_s: int | None = None  # as it was before us; None: not asked yet
        self._sets_polling = False
        self._is_migrating = False
        self._own_state = VmState.UNREACHABLE  # whether it migrates or not
        self._now_s = self._wall_s = 0.0

    def questions(self, now_s: float, wall_s: float) -> list[Question]:
        """Return what to ask now; the handlers take the answers."""
        self._now_s, self._wall_s = now_s, wall_s
        asked: list[Question] = []
        is_due = now_s - self._checked_at_s >= CHECKED_EVERY_S
        if is_due:
            self._checked_at_s = now_s
            asked.append((QUERY_MIGRATE, self._migration))
        is_due |= now_s - self._stirred_at_s < STIRS_FOR_S or self.facts.state is not VmState.RUNNING
        if is_due or not self._has_looked or not self._balloon_path:  # something is asked every time: it may hang
            asked.insert(0, (QUERY_STATUS, self._status))
        if self._has_looked:
            if self.facts.features.balloon and (is_due or self.facts.balloon_bytes is None):
                asked.append((QUERY_BALLOON, self._balloon))
            if self._balloon_path:
                asked += self._about_balloon()
        else:
            asked += [(Command("query-uuid"), self._uuid), (Command("query-name"), self._name)]
        if now_s - self._devices_at_s >= DEVICES_EVERY_S:
            self._devices_at_s = now_s
            asked += [
                (Command("qom-list", {"path": f"/machine/{place}"}), self._devices_in(f"/machine/{place}"))
                for place in ("peripheral", "peripheral-anon")
            ]
        if now_s - self._slow_at_s >= SLOW_EVERY_S:
            self._slow_at_s = now_s
            asked += [
                (Command("query-memory-size-summary"), self._sizes),
                (Command("query-cpus-fast"), self._cpus),
                (Command("query-blockstats"), self._blocks),
                (Command("query-memory-devices"), self._memory_devices),
            ]
        return asked + self._about_dirtying()

    def hear(self, event: Event) -> None:
        """Take an event; what it tells needs no question, but for a while more may come of it."""
        if event.name in STIRRING:
            self.stir()
        # RESUME is only stirring: who has arrived by a migration runs with a balloon that was not asked for yet.
        if event.name == "STOP":
            self._settle_state(VmState.PAUSED)
        elif event.name == "SHUTDOWN":
            self._settle_state(VmState.ENDING)
        elif event.name == "BALLOON_CHANGE":
            self._balloon(event.data)
        elif event.name in {"DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE"}:
            self._devices_at_s = self._slow_at_s = float("-inf")

    def stir(self) -> None:
        """Take note that something is under way in the VM, so that no event is waited for."""
        self._stirred_at_s = self._now_s

    def farewell(self) -> list[Command]:
        """Return what puts back what we changed in the VM: the interval of its statistics."""
        if not self._sets_polling or self._polling_s is None:
            return []
        return [self._set_polling(self._polling_s)]

    # ---- what is asked

    @property
    def _has_looked(self) -> bool:
        return self.facts.uuid != ""

    def _about_balloon(self) -> list[Question]:
        def get(name: str, handler: Handler) -> Question:
            return Command("qom-get", {"path": self._balloon_path, "property": name}), handler

        if self._polling_s is None:
            return [
                get("deflate-on-oom", self._feature("deflate_on_oom")),
                get("free-page-reporting", self._feature("free_page_reporting")),
                get("guest-stats-polling-interval", self._polling),
            ]
        asked: list[Question] = [(self._ask_stats, self._stats)]
        if not self._sets_polling and not 0 < self._polling_s <= STATS_INTERVAL_MOST_S:
            self._sets_polling = True
            asked.append((self._set_polling(self._stats_interval_s), self._ignore("guest-stats-polling-interval")))
        return asked

    def _set_polling(self, interval_s: int) -> Command:
        name = "guest-stats-polling-interval"
        return Command("qom-set", {"path": self._balloon_path, "property": name, "value": interval_s})

    def _about_dirtying(self) -> list[Question]:
        if self._dirty_every_s <= 0.0 or self.facts.state is not VmState.RUNNING:
            return []
        if self._dirty_runs and self._now_s - self._dirty_at_s >= 2.0:
            return [(Command("query-dirty-rate"), self._dirty_rate)]
        if not self._dirty_runs and self._now_s - self._dirty_at_s >= self._dirty_every_s:
            self._dirty_at_s, self._dirty_runs = self._now_s, True
            return [(Command("calc-dirty-rate", {"calc-time": 1}), self._ignore("calc-dirty-rate"))]
        return []

    # ---- what the answers mean

    def _status(self, answer: Answer) -> None:
        told = _text(_part(answer, "status"))
        if told:
            self._settle_state(_STATES.get(told, VmState.PAUSED))

    def _settle_state(self, state: VmState) -> None:
        self._own_state = state
        is_moving = self._is_migrating and state in {VmState.RUNNING, VmState.PAUSED}
        self.facts.state = VmState.MIGRATING if is_moving else state

    def _migration(self, answer: Answer) -> None:
        self._is_migrating = _text(_part(answer, "status")) in _MIGRATES
        self._settle_state(self._own_state)

    def _uuid(self, answer: Answer) -> None:
        self.facts.uuid = _text(_part(answer, "UUID")).lower() or NO_UUID

    def _name(self, answer: Answer) -> None:
        self.facts.name = _text(_part(answer, "name"))

    def _sizes(self, answer: Answer) -> None:
        base = _size(_part(answer, "base-memory"))
        if base:
            self.facts.ram_bytes = base + (_size(_part(answer, "plugged-memory")) or 0)

    def _cpus(self, answer: Answer) -> None:
        threads = [_count(_part(each, "thread-id")) for each in _list(answer)[:VCPUS_MOST]]
        self.facts.vcpu_threads = tuple(each for each in threads if each)

    def _blocks(self, answer: Answer) -> None:
        stats = [_part(each, "stats") for each in _list(answer)]
        read = sum(_count(_part(each, "rd_bytes")) or 0 for each in stats)
        written = sum(_count(_part(each, "wr_bytes")) or 0 for each in stats)
        # A device that is unplugged takes its counts along; ours never fall.
        self.facts.read_bytes = max(self.facts.read_bytes, min(read, COUNT_MOST))
        self.facts.written_bytes = max(self.facts.written_bytes, min(written, COUNT_MOST))

    def _memory_devices(self, answer: Answer) -> None:
        kinds = {_text(_part(each, "type")) for each in _list(answer)}
        self._offer(virtio_mem="virtio-mem" in kinds)

    def _devices_in(self, place: str) -> Handler:
        def take(answer: Answer) -> None:
            for each in _list(answer):
                kind = _text(_part(each, "type"))
                name = _text(_part(each, "name"))
                if kind.startswith("child<virtio-balloon") and name and f"{place}/{name}" != self._balloon_path:
                    self._balloon_path, self._polling_s, self._sets_polling = f"{place}/{name}", None, False
                    self._ask_stats = Command("qom-get", {"path": self._balloon_path, "property": "guest-stats"})
                    self._offer(balloon=True)

        return take

    def _feature(self, name: str) -> Handler:
        return lambda answer: self._offer(**{name: answer is True})

    def _offer(self, **changes: bool) -> None:
        now = self.facts.features
        told = {name: getattr(now, name) for name in now.__slots__} | changes
        self.facts.features = VmFeatures(**told)

    def _polling(self, answer: Answer) -> None:
        told = _count(answer)
        self._polling_s = 0 if told is None else told

    def _balloon(self, answer: Answer) -> None:
        actual = _size(_part(answer, "actual"))
        if isinstance(answer, CommandError):
            self.facts.refusals["query-balloon"] = answer.words
            self.facts.balloon_bytes = None
        elif actual is not None and actual <= self.facts.ram_bytes:
            self.facts.refusals.pop("query-balloon", None)
            if actual != self.facts.balloon_bytes:
                self.facts.balloon_bytes = actual
                self.stir()

    def _stats(self, answer: Answer) -> None:
        if (told := (self.facts.ram_bytes, answer)) == self._stats_before:
            return  # the guest has said nothing new
        self._stats_before = told
        told_at = _part(answer, "last-update")
        stats = _part(answer, "stats")
        if not isinstance(told_at, int) or told_at <= 0 or not isinstance(stats, dict):
            return  # it has never told
        age_s = min(max(self._wall_s - told_at, 0.0), self._now_s)
        self.facts.guest = guest_memory(
            cast("Mapping[str, object]", stats), ram_bytes=self.facts.ram_bytes, updated_at_s=self._now_s - age_s
        )

    def _dirty_rate(self, answer: Answer) -> None:
        self._dirty_runs = _text(_part(answer, "status")) == "measuring"
        rate_mib_per_s = _count(_part(answer, "dirty-rate"))
        if not self._dirty_runs and rate_mib_per_s is not None:
            self.facts.dirtied_bytes_per_s = float(min(rate_mib_per_s << 20, SIZE_MOST_BYTES))

    def _ignore(self, what: str) -> Handler:
        def take(answer: Answer) -> None:
            if isinstance(answer, CommandError):
                self.facts.refusals[what] = answer.words

        return take


def size_in(answer: Answer, name: str) -> int | None:
    """Return a size in bytes that an answer holds; None where it holds none."""
    return _size(_part(answer, name))


def _part(answer: object, name: str) -> object:
    return cast("dict[str, object]", answer).get(name) if isinstance(answer, dict) else None


def _list(answer: object) -> list[object]:
    return cast("list[object]", answer) if isinstance(answer, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= COUNT_MOST else None


def _size(value: object) -> int | None:
    found = _count(value)
    return found if found is not None and found <= SIZE_MOST_BYTES else None
