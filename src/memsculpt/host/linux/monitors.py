# SPDX-License-Identifier: Apache-2.0
"""Asks the monitors of all VMs, on a thread of its own: a tick takes what was read last, and waits for nobody.

One poll loop serves all connections. Each has its own deadline for everything it is waited for, its own pause after a
failure, and bounds on what it may send; a peer that hangs, floods or lies costs itself a connection and nobody else
anything. A monitor serves one client at a time: another client's connection is taken and stays without a greeting.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, field, replace

from memsculpt.domain.vm import NO_UUID, VmId
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished
from memsculpt.host.linux.expected_balloons import ExpectedBalloons
from memsculpt.host.linux.qmp import Answer, Command, ProtocolError, Session, Stage
from memsculpt.host.linux.taps import Taps
from memsculpt.host.linux.thread_times import ThreadTimes
from memsculpt.host.linux.vm_asking import Question, VmAsking, VmFacts

PAUSE_FIRST_S, PAUSE_MOST_S = 1.0, 30.0  # after a failure; doubled with each that follows
EVENTS_MOST_PER_S = 500  # a busy guest sends a few
RECEIVED_MOST_BYTES_PER_S = 16 << 20
RECEIVE_BYTES = 64 << 10  # of one peer in one turn, so that a flood delays nobody
NETWORK_EVERY_S = 5.0
FAREWELL_MOST_S = 1.0
BALLOON_STEP_BYTES = 2 << 20  # guests move in steps of 1 MiB
DEAD = "the thread that asks monitors has ended by an error (fix: restart the agent, and report what it printed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A VM whose monitor is to be asked."""

    id: VmId
    name: str
    uuid: str  # "" where it was started without one
    process: Instance
    sockets: tuple[str, ...]  # the first that answers is taken
    taps: tuple[str, ...] = ()  # as its command line names them


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a VM by its monitor."""

    facts: VmFacts  # a copy; the thread goes on with its own
    read_at_s: float  # -inf: never
    vcpu_s: float
    network_bytes: tuple[int, int] | None  # what the guest received and sent; None: not known
    problem: str
    is_reached: bool


@dataclass(slots=True)
class _Job:
    """Commands that somebody waits for."""

    commands: Sequence[Command]
    answers: "Future[list[Answer]]"


@dataclass(slots=True)
class _Link:
    """One VM's connection; only the thread touches it, but for `jobs`, under the lock."""

    target: Target
    asking: VmAsking
    times: ThreadTimes
    taps: Taps
    network_bytes: tuple[int, int] | None = None
    network_at_s: float = float("-inf")
    channel: socket.socket | None = None
    session: Session = field(default_factory=Session)
    unsent: bytes = b""
    is_blocked: bool = False  # it takes no more for now: the poll tells when
    due_s: float = 0.0  # when to connect, or to ask again
    deadline_s: float = float("inf")  # for what is waited for now
    waits_for: str = ""
    questions: list[Question] = field(default_factory=list[Question])
    job: _Job | None = None
    jobs: deque[_Job] = field(default_factory=deque[_Job])
    failures: int = 0
    next_socket: int = 0
    peer_pid: int = 0
    is_proven: bool = False  # who answers is the VM that was meant
    window_s: float = 0.0  # when the counts below began
    events: int = 0
    received_bytes: int = 0


class Monitors:
    """The thread and its connections. Its methods are for other threads."""

    def __init__(
        self,
        *,
        timeout_s: float,
        interval_s: float,
        dirty_every_s: float = 0.0,
        proc: str = "/proc",
        expected: ExpectedBalloons | None = None,
        on_foreign_balloon: Callable[[], None] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """Start the thread. `timeout_s` is for one answer, `interval_s` between two looks at a VM.

        `on_foreign_balloon` is called from the thread when a balloon is told to be where it is not `expected`.
        """
        self._on_foreign_balloon = on_foreign_balloon
        self._expected = expected if expected is not None else ExpectedBalloons()
        self._timeout_s, self._dirty_every_s = timeout_s, dirty_every_s
        self.interval_s = interval_s  # may be set from any thread; counts from the next question on
        self._proc, self._now_s, self._wall_s = proc, now_s, wall_s
        self._lock = threading.Lock()
        self._told: dict[Instance, Told] = {}
        self._targets: Mapping[Instance, Target] = {}
        self._adopted = self._targets
        self._links: dict[Instance, _Link] = {}
        self._by_fd: dict[int, _Link] = {}
        self._ends = False
        self._poll = select.epoll()
        self._wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wakes, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="vm-monitors", daemon=True)
        self._thread.start()

    def follow(self, targets: Mapping[Instance, Target]) -> None:
        """Ask these from now on, and nobody else."""
        with self._lock:
            if targets == self._targets:
                return
            self._targets = dict(targets)
            self._told = {one: told for one, told in self._told.items() if one in targets}
        self._wake()

    def told(self) -> Mapping[Instance, Told]:
        """Return the latest that is known of each."""
        with self._lock:
            if not self._thread.is_alive():  # a bug: Python has printed where
                return {one: replace(told, is_reached=False, problem=DEAD) for one, told in self._told.items()}
            return dict(self._told)

    def ask(self, process: Instance, commands: Sequence[Command]) -> list[Answer]:
        """Have commands answered, waiting no longer than for one answer.

        Raises Vanished, Unavailable where the monitor is not reached, Transient where it does not answer in time.
        """
        job = _Job(commands, Future())
        with self._lock:
            link, told = self._links.get(process), self._told.get(process)
            if link is None:
                raise Vanished(place=f"process {process.pid}")
            if told is None or not told.is_reached:
                problem = told.problem if told is not None and told.problem else "its monitor was not asked yet"
                raise Unavailable(place=f'VM "{link.target.name}"', problem=problem, fix="see `memsculpt vms`")
            link.jobs.append(job)
        self._wake()
        try:
            return job.answers.result(self._timeout_s)
        except NotInTime as error:
            raise Transient(
                place=f'VM "{link.target.name}"',
                problem=f"no answer within {self._timeout_s:g} s",
                retry_in_s=PAUSE_FIRST_S,
            ) from error

    def close(self) -> None:
        """Put back what was changed in the VMs, as far as they answer at once, and end the thread; twice is as once."""
        if self._ends:
            return
        self._ends = True
        self._wake()
        self._thread.join()
        self._poll.close()
        os.close(self._wakes)

    # ---- the thread

    def _wake(self) -> None:
        os.eventfd_write(self._wakes, 1)

    def _run(self) -> None:
        while not self._ends:
            if self._adopted is not self._targets:
                self._adopt_targets()
            now_s = self._now_s()
            for link in [
                one for one in self._links.values() if one.due_s <= now_s or one.deadline_s <= now_s or one.jobs
            ]:
                self._advance(link, now_s)
            for descriptor, ready in self._poll.poll(self._nap_s(self._now_s())):
                link = self._by_fd.get(descriptor)
                if descriptor == self._wakes:
                    with contextlib.suppress(BlockingIOError):  # somebody else's wake was taken with it
                        os.eventfd_read(self._wakes)
                elif link is not None:
                    self._attend(link, ready)
        self._say_farewells()
        self._links.clear()

    def _nap_s(self, now_s: float) -> float:
        links = self._links.values()
        when_s = min([now_s + 60.0, *[one.due_s for one in links], *[one.deadline_s for one in links]])
        return max(0.001, when_s - now_s)

    def _adopt_targets(self) -> None:
        with self._lock:
            targets = self._adopted = self._targets
            gone = [one for one, link in self._links.items() if targets.get(one) != link.target]
            left = [self._links.pop(one) for one in gone]
            for one, target in targets.items():
                if one not in self._links:
                    self._links[one] = _Link(
                        target=target,
                        asking=self._new_asking(None),
                        times=ThreadTimes(self._proc, one.pid),
                        taps=Taps(target.taps, one.pid, self._proc),
                    )
        for link in left:
            self._hang_up(link)
            self._fail_jobs(link, Vanished(place=f"process {link.target.process.pid}"))
            link.times.close()

    def _new_asking(self, past: VmFacts | None) -> VmAsking:
        stats_interval_s = max(1, round(self.interval_s))
        return VmAsking(stats_interval_s=stats_interval_s, dirty_every_s=self._dirty_every_s, past=past)

    def _advance(self, link: _Link, now_s: float) -> None:
        """Do what is due: connect, ask, or give up waiting."""
        if now_s >= link.deadline_s:
            self._fail(link, link.waits_for)
        elif link.channel is None:
            if now_s >= link.due_s:
                self._connect(link, now_s)
        elif link.session.stage is Stage.READY and link.session.is_answered and not link.waits_for:
            self._ask_next(link, now_s)

    def _connect(self, link: _Link, now_s: float) -> None:
        target = link.target
        path = target.sockets[link.next_socket % len(target.sockets)]
        link.next_socket += 1
        try:
            link.channel = connect(path, target.process.pid, self._proc)
        except OSError as error:
            self._fail(link, f"{path}: {_words_of(error)}")
            return
        link.session, link.unsent, link.is_blocked, link.is_proven = Session(), b"", False, False
        link.peer_pid = struct.unpack("3i", link.channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        link.asking = self._new_asking(link.asking.facts)
        link.window_s, link.events, link.received_bytes = now_s, 0, 0
        self._by_fd[link.channel.fileno()] = link
        self._poll.register(link.channel.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        self._wait(link, f"{path} does not greet", now_s, "another client uses it, or it hangs")

    def _wait(self, link: _Link, what: str, now_s: float, why: str = "") -> None:
        what = f"{what} within {self._timeout_s:g} s" + (f" ({why})" if why else "")
        link.waits_for, link.deadline_s, link.due_s = what, now_s + self._timeout_s, float("inf")

    def _ask_next(self, link: _Link, now_s: float) -> None:
        with self._lock:
            link.job = link.jobs.popleft() if link.jobs else None
        if link.job is not None:
            commands = list(link.job.commands)
        elif now_s >= link.due_s:
            link.questions = link.asking.questions(now_s, self._wall_s())
            commands = [command for command, _ in link.questions]
        else:
            return
        link.unsent += link.session.ask(commands)
        due_s = link.due_s if link.job is not None else now_s + self.interval_s
        self._wait(link, f"no answer to {commands[0].name}", now_s)
        link.due_s = due_s
        self._send(link)

    def _send(self, link: _Link) -> bool:
        """Send what the socket takes now; False when the connection has ended."""
        if link.channel is None:
            return False
        try:
            sent = link.channel.send(link.unsent) if link.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(link, f"ended the connection: {_words_of(error)}")
            return False
        link.unsent = link.unsent[sent:]
        if bool(link.unsent) is not link.is_blocked:
            link.is_blocked = bool(link.unsent)
            more = select.EPOLLOUT if link.is_blocked else 0
            self._poll.modify(link.channel.fileno(), select.EPOLLIN | select.EPOLLRDHUP | more)
        return True

    def _attend(self, link: _Link, ready: int) -> None:
        """Take what came on a connection."""
        if link.channel is None:
            return
        if ready & select.EPOLLOUT and not self._send(link):
            return
        if not ready & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            return
        now_s = self._now_s()
        try:
            content = link.channel.recv(RECEIVE_BYTES)
            if not content:
                self._fail(link, "ended the connection" + (" in the middle of an answer" if link.waits_for else ""))
                return
            before = link.session.stage
            link.unsent += link.session.feed(content)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(link, f"ended the connection: {_words_of(error)}")
            return
        except ProtocolError as error:
            self._fail(link, str(error))
            return
        if link.unsent:
            self._send(link)
        if self._floods(link, len(content), now_s):
            return
        for event in link.session.events:
            link.asking.hear(event)
            if event.name == "BALLOON_CHANGE":
                self._hear_balloon(link)
        link.session.events.clear()
        if link.session.stage is not before:
            self._wait(link, "no answer to the negotiation", now_s)
        if link.session.stage is Stage.READY and link.session.is_answered and link.waits_for:
            self._take_answers(link, now_s)
        self._advance(link, now_s)

    def _hear_balloon(self, link: _Link) -> None:
        """Publish where a balloon is at once, and tell who is to know when that is not our doing."""
        process, actual = link.target.process, link.asking.facts.balloon_bytes
        with self._lock:
            told = self._told.get(process)
            if told is not None:
                self._told[process] = replace(told, facts=link.asking.facts.copy())
        if not self._expected.take(process, actual) and self._on_foreign_balloon is not None:
            self._on_foreign_balloon()

    def _floods(self, link: _Link, received_bytes: int, now_s: float) -> bool:
        if now_s - link.window_s >= 1.0:
            link.window_s, link.received_bytes = now_s, 0
            link.events = link.session.event_count
        link.received_bytes += received_bytes
        if link.session.event_count - link.events > EVENTS_MOST_PER_S:
            self._fail(link, f"sends more than {EVENTS_MOST_PER_S} events in a second")
            return True
        if link.received_bytes > RECEIVED_MOST_BYTES_PER_S:
            self._fail(link, f"sends more than {RECEIVED_MOST_BYTES_PER_S >> 20} MiB in a second")
            return True
        return False

    def _take_answers(self, link: _Link, now_s: float) -> None:
        answers = link.session.take()
        is_negotiated = not answers and link.job is None
        link.waits_for, link.deadline_s = "", float("inf")
        if is_negotiated:
            link.due_s = now_s
            return
        if link.job is not None:
            link.job.answers.set_result(answers)
            link.job = None
            link.asking.stir()
            return
        for (_, handler), answer in zip(link.questions, answers, strict=True):
            handler(answer)
        if not link.is_proven:
            if (stranger := stranger_of(link.target, link.asking.facts, link.peer_pid)) is not None:
                self._fail(link, stranger)
                return
            link.is_proven = True
        if link.failures or link.target.process not in self._told:
            link.due_s = now_s  # the first round only learns what else there is to ask
        link.failures = 0
        self._tell(link, now_s, "")

    def _tell(self, link: _Link, now_s: float, problem: str) -> None:
        """Put what is known where others take it."""
        is_reached = problem == ""
        if now_s - link.network_at_s >= NETWORK_EVERY_S:
            link.network_bytes, link.network_at_s = link.taps.read_bytes(), now_s
        vcpu_s = link.times.read_s(link.asking.facts.vcpu_threads)
        with self._lock:
            before = self._told.get(link.target.process)
            if link.target.process not in self._targets:
                return
            self._expected.take(link.target.process, link.asking.facts.balloon_bytes)
            self._told[link.target.process] = Told(
                facts=link.asking.facts.copy(),
                read_at_s=now_s if is_reached else (before.read_at_s if before is not None else float("-inf")),
                vcpu_s=vcpu_s,
                network_bytes=link.network_bytes,
                problem=problem,
                is_reached=is_reached,
            )

    def _fail(self, link: _Link, problem: str) -> None:
        """Hang up, say why, and try again later, and later each time."""
        now_s = self._now_s()
        self._hang_up(link)
        link.failures += 1
        link.due_s = now_s + min(PAUSE_FIRST_S * 2.0 ** (link.failures - 1), PAUSE_MOST_S)
        if link.next_socket % len(link.target.sockets):  # its next socket at once
            link.due_s = now_s
        self._tell(link, now_s, problem)
        self._fail_jobs(link, Unavailable(place=f'VM "{link.target.name}"', problem=problem, fix="see `memsculpt vms`"))

    def _hang_up(self, link: _Link) -> None:
        link.waits_for, link.deadline_s = "", float("inf")
        if link.channel is not None:
            self._by_fd.pop(link.channel.fileno(), None)
            self._poll.unregister(link.channel.fileno())
            link.channel.close()
            link.channel = None

    def _fail_jobs(self, link: _Link, error: MemsculptError) -> None:
        with self._lock:
            jobs = [*([link.job] if link.job is not None else []), *link.jobs]
            link.job = None
            link.jobs.clear()
        for job in jobs:
            job.answers.set_exception(error)

    def _say_farewells(self) -> None:
        """Put back what we changed in the VMs, as far as they answer within a moment: one may hang.

        The answer is waited for, because QEMU drops what it has not yet read when a client hangs up.
        """
        deadline_s = self._now_s() + min(self._timeout_s, FAREWELL_MOST_S)
        waiting = {one.channel.fileno(): one for one in self._links.values() if one.channel and one.asking.farewell()}
        told: set[int] = set()
        while waiting and (left_s := deadline_s - self._now_s()) > 0.0:
            for descriptor, link in list(waiting.items()):
                if link.session.stage is not Stage.READY or (descriptor in told and link.session.is_answered):
                    del waiting[descriptor]
                elif descriptor not in told and link.session.is_answered:
                    told.add(descriptor)
                    link.unsent += link.session.ask(link.asking.farewell())
                    self._send(link)
            for descriptor, _ in self._poll.poll(left_s) if waiting else ():
                link = waiting.get(descriptor)
                if link is not None and link.channel is not None:
                    try:
                        content = link.channel.recv(RECEIVE_BYTES)
                        link.session.feed(content)
                    except (OSError, ProtocolError):  # it is gone or lost: nothing more can be done
                        content = b""
                    if not content:
                        del waiting[descriptor]
        for link in self._links.values():
            self._hang_up(link)
            self._fail_jobs(link, Vanished(place=f"process {link.target.process.pid}"))
            link.times.close()


def connect(path: str, pid: int | None = None, proc: str = "/proc") -> socket.socket:
    """Connect to a Unix socket without ever waiting. Raises OSError.

    A path is looked up as the process `pid` sees it: it may live in a mount namespace of its own. Whatever its length,
    what the kernel is given is short. Source: unix(7), proc_pid_root(5).
    """
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    folder = -1
    try:
        if path.startswith("@"):
            found.connect("\0" + path[1:])
            return found
        inside = path if pid is None else f"{proc}/{pid}/root{path}"
        if not os.path.exists(inside):
            inside = path
        folder = os.open(os.path.dirname(inside), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except BaseException:
        found.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return found


def stranger_of(target: Target, facts: VmFacts, peer_pid: int) -> str | None:
    """Tell whether another VM answers than was meant; None: it is the right one.

    The process that listens proves it, or the UUID where that process is not ours to see (a container's), or for VMs
    without one the name.
    """
    expected, told = target.uuid or NO_UUID, facts.uuid
    if peer_pid == target.process.pid:
        return None
    if told != expected:
        return f"another VM answers there: its UUID is {told[:60]}, not {expected}"
    if told == NO_UUID and facts.name != target.name:
        return f'another VM answers there: its name is "{facts.name[:60]}"'
    return None


def _words_of(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "its queue is full (another client uses it, or it hangs)"
    return error.strerror or str(error)
