# SPDX-License-Identifier: Apache-2.0
"""Monitors of every kind: whatever one does, the others are asked on time and a tick waits for nobody."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memsculpt.domain.vm import VmId, VmState
from memsculpt.domain.workload import Instance
from memsculpt.errors import MemsculptError, Transient, Unavailable, Vanished
from memsculpt.host import own_instance
from memsculpt.host.linux.monitors import Monitors, Target, Told, connect
from memsculpt.host.linux.qmp import Command, CommandError
from memsculpt_bench.qmp_peers import MIB, Peer, Peers, uuid_of

TIMEOUT_S = 0.3
INTERVAL_S = 0.05


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors(timeout_s=TIMEOUT_S, interval_s=INTERVAL_S)
    yield made
    made.close()


def instance(number: int) -> Instance:
    """A process that is not the one that listens: who answers must prove itself by its UUID."""
    return Instance(pid=1 << 22 | number, start_ticks=number)


def target(peer: Peer, number: int = 1, *, sockets: tuple[str, ...] = ()) -> Target:
    return Target(
        id=VmId(uuid_of(number)),
        name=peer.name,
        uuid=uuid_of(number),
        process=instance(number),
        sockets=sockets or (str(peer.path),),
    )


def a_peer(folder: Path, number: int = 1, **more) -> Peer:
    return Peer(path=folder / f"{number}.qmp", **({"uuid": uuid_of(number), "name": f"vm-{number}"} | more))


def wait_for(holds: Callable[[], object], timeout_s: float = 8.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.005)


def told_of(monitors: Monitors, number: int = 1) -> Told | None:
    return monitors.told().get(instance(number))


def is_reached(monitors: Monitors, number: int = 1) -> bool:
    told = told_of(monitors, number)
    return told is not None and told.is_reached and told.facts.guest is not None


def problem_of(monitors: Monitors, number: int = 1) -> str:
    told = told_of(monitors, number)
    return "" if told is None else told.problem


def test_an_honest_monitor_tells_everything(monitors, tmp_path):
    """State, memory, balloon, the guest's figures, block devices; and its statistics are switched on, and off again."""
    peer = a_peer(tmp_path)
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        told = told_of(monitors)
        assert told is not None
        facts = told.facts
        assert facts.state is VmState.RUNNING
        assert facts.ram_bytes == facts.balloon_bytes == 512 * MIB
        assert facts.features.balloon
        assert not facts.features.deflate_on_oom
        assert facts.guest is not None
        assert facts.guest.total_bytes == 480 * MIB
        assert facts.guest.used_bytes == 240 * MIB
        assert (facts.read_bytes, facts.written_bytes) == (4096, 8192)
        wait_for(lambda: peer.properties["guest-stats-polling-interval"] == 1)
        monitors.close()
        wait_for(lambda: peer.properties["guest-stats-polling-interval"] == 0)


def test_an_interval_that_somebody_set_stays(monitors, tmp_path):
    """Whoever polls the guest's statistics already keeps his interval."""
    peer = a_peer(tmp_path)
    peer.properties["guest-stats-polling-interval"] = 5
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        wait_for(lambda: peer.asked.count("qom-get") > 20)
        assert "qom-set" not in peer.asked


FAULTS = {
    "says nothing": ({"greeting": None}, "does not greet within 0.3 s"),
    "is no QMP": ({"greeting": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "no JSON"),
    "greets oddly": ({"greeting": b'{"QMP": 3}\r\n'}, "greets with what is no QMP"),
    "never ends a line": ({"greeting": b"x" * (5 << 20)}, "more than 4 MiB"),
    "hangs on a question": ({"hangs_on": "query-status"}, "no answer to query-status within"),
    "hangs on the negotiation": ({"hangs_on": "qmp_capabilities"}, "no answer to the negotiation within"),
    "breaks off": ({"closes_on": "query-uuid"}, "in the middle of an answer"),
    "refuses to negotiate": ({"refuses": {"qmp_capabilities": "no"}}, "refuses to negotiate"),
    "is another VM": ({"uuid": uuid_of(99)}, "another VM answers there"),
    "answers unasked": ({"noise": b'{"return": {}, "id": 4711}\r\n'}, "answers what was not asked"),
    "babbles": ({"noise": b"[1, 2]\r\n"}, "no QMP"),
    "is deep": ({"noise": b"[" * 100_000 + b"\r\n"}, "no JSON"),
    "floods": (
        {"noise": b'{"event": "RTC_CHANGE", "data": {"offset": 1}}\r\n' * 100, "noise_count": 2000},
        "more than 500 events in a second",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_monitor_is_told_of_and_delays_nobody(fault, tmp_path):
    """Its problem is said in words; an honest monitor beside it is asked in every interval; looks never wait."""
    changes, problem = FAULTS[fault]
    broken, honest = a_peer(tmp_path, 1, **changes), a_peer(tmp_path, 2)
    monitors = Monitors(timeout_s=TIMEOUT_S, interval_s=INTERVAL_S)
    try:
        with Peers(broken, honest):
            monitors.follow({instance(1): target(broken, 1), instance(2): target(honest, 2)})
            wait_for(lambda: problem in problem_of(monitors))
            wait_for(lambda: is_reached(monitors, 2))
            asked = honest.asked.count("query-status")
            wait_for(lambda: honest.asked.count("query-status") >= asked + 10)
            told = told_of(monitors)
            assert told is not None
            assert not told.is_reached
            with pytest.raises(Unavailable):
                monitors.ask(instance(1), [Command("query-balloon")])
    finally:
        monitors.close()


def test_a_monitor_that_recovers_is_asked_again(monitors, tmp_path):
    """What was wrong ends, and so does the problem; counters do not fall for it."""
    peer = a_peer(tmp_path)
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        peer.closes_on = "query-status"
        wait_for(lambda: "ended the connection" in problem_of(monitors))
        peer.answers["query-blockstats"] = [{"stats": {"rd_bytes": 1, "wr_bytes": 1}}]
        peer.closes_on = ""
        wait_for(lambda: is_reached(monitors) and problem_of(monitors) == "")
        told = told_of(monitors)
        assert told is not None
        assert (told.facts.read_bytes, told.facts.written_bytes) == (4096, 8192)


def test_another_clients_monitor_is_waited_for_politely(monitors, tmp_path):
    """A monitor serves one client: while another has it, that is said; when he leaves, it is asked."""
    peer = a_peer(tmp_path)
    with Peers(peer):
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(peer.path))
        assert b"QMP" in other.recv(4096)
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: "another client uses it" in problem_of(monitors))
        other.close()
        wait_for(lambda: is_reached(monitors))


def test_pauses_grow(monitors, tmp_path):
    """A monitor that is not there is tried after 1 s, then 2 s: not as fast as can be."""
    peer = a_peer(tmp_path)
    monitors.follow({instance(1): target(peer)})
    wait_for(lambda: "No such file" in problem_of(monitors))
    tried = 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(peer.path))
        server.listen(16)
        server.settimeout(4.0)
        end_s = time.monotonic() + 4.0
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end_s:
                server.settimeout(max(0.01, end_s - time.monotonic()))
                server.accept()[0].close()
                tried += 1
    assert 1 <= tried <= 3


def test_the_next_socket_is_tried_at_once(monitors, tmp_path):
    """A VM with several monitors is asked through the first that answers."""
    silent = Peer(path=tmp_path / "silent.qmp", greeting=None)
    honest = a_peer(tmp_path)
    with Peers(silent, honest):
        sockets = (str(tmp_path / "absent.qmp"), str(silent.path), str(honest.path))
        monitors.follow({instance(1): target(honest, sockets=sockets)})
        wait_for(lambda: is_reached(monitors))


def test_questions_of_others_are_answered_in_between(monitors, tmp_path):
    """`ask` gives answers and refusals in order; who hangs costs no more than one time-out."""
    peer = a_peer(tmp_path, refuses={"balloon": "No balloon device has been activated"})
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        answers = monitors.ask(instance(1), [Command("query-balloon"), Command("balloon", {"value": 1}), Command("x")])
        assert answers[0] == {"actual": 512 * MIB}
        assert answers[1] == CommandError("GenericError", "No balloon device has been activated")
        assert isinstance(answers[2], CommandError)
        assert answers[2].kind == "CommandNotFound"
        with pytest.raises(Vanished):
            monitors.ask(instance(7), [Command("query-balloon")])
        peer.hangs_on = "query-memdev"
        with pytest.raises((Transient, Unavailable)):
            monitors.ask(instance(1), [Command("query-memdev")])


def test_events_tell_at_once(monitors, tmp_path):
    """A VM that stops is known to have stopped before it is asked again; a balloon that moves, too."""
    peer = a_peer(tmp_path)
    peer.noise = b'{"event": "STOP"}\r\n{"event": "BALLOON_CHANGE", "data": {"actual": 1048576}}\r\n'
    peer.answers |= {"query-status": "no shape", "query-balloon": {}}
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        told = told_of(monitors)
        assert told is not None
        assert told.facts.state is VmState.PAUSED


@pytest.mark.parametrize("lie", [(1 << 64) - 1, 0, -1, 1 << 200, "a lot", None, True, 1e300, [], {"a": 1}])
def test_lies_are_not_believed(monitors, tmp_path, lie):
    """Whatever stands where a number should be: sizes stay within the memory, counters within what can be counted."""
    stats = dict.fromkeys(("stat-total-memory", "stat-free-memory", "stat-available-memory", "stat-swap-in"), lie)
    peer = a_peer(tmp_path)
    peer.answers |= {
        "query-balloon": {"actual": lie},
        "guest-stats": {"stats": stats, "last-update": 1},
        "query-blockstats": [{"stats": {"rd_bytes": lie, "wr_bytes": lie}}, lie],
        "query-cpus-fast": [{"thread-id": lie}],
        "query-memory-devices": lie,
        "query-migrate": {"status": lie},
        "deflate-on-oom": lie,
    }
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: peer.asked.count("qom-get") > 8)
        told = told_of(monitors)
        assert told is not None
        facts = told.facts
        assert facts.balloon_bytes is None or 0 <= facts.balloon_bytes <= 512 * MIB
        assert facts.guest is None or facts.guest.total_bytes is None or facts.guest.total_bytes <= 512 * MIB
        assert 0 <= facts.read_bytes < 1 << 63
        assert told.vcpu_s == 0.0
        assert facts.state is VmState.RUNNING
        assert told.is_reached


def test_who_is_no_longer_followed_is_left(monitors, tmp_path):
    """Its connection ends, so that others can have it, and who waited for an answer is told."""
    peer = a_peer(tmp_path)
    with Peers(peer):
        monitors.follow({instance(1): target(peer)})
        wait_for(lambda: is_reached(monitors))
        monitors.follow({})
        assert monitors.told() == {}
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(5.0)
            other.connect(str(peer.path))
            assert b"QMP" in other.recv(4096)
        wait_for(lambda: _refuses(monitors))


def _refuses(monitors: Monitors) -> bool:
    try:
        monitors.ask(instance(1), [Command("query-balloon")])
    except Vanished:
        return True
    except MemsculptError:
        return False
    return False


def test_a_process_that_listens_itself_needs_no_uuid(monitors, tmp_path):
    """The kernel says who listens: that proves more than a UUID does."""
    peer = a_peer(tmp_path, uuid=uuid_of(99))
    own = own_instance()
    with Peers(peer):
        monitors.follow({own: Target(id=VmId("name:x"), name="x", uuid="", process=own, sockets=(str(peer.path),))})
        wait_for(lambda: own in monitors.told() and monitors.told()[own].is_reached)
        wait_for(lambda: monitors.told()[own].vcpu_s > 0.0)


def test_long_and_abstract_paths_connect(tmp_path):
    """Longer paths than a socket's address may hold, and names without a file."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    descriptor = os.open(folder, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{descriptor}/monitor.qmp")
            server.listen(1)
            connect(str(folder / "monitor.qmp")).close()
    finally:
        os.close(descriptor)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0memsculpt-test-{os.getpid()}")
        server.listen(1)
        connect(f"@memsculpt-test-{os.getpid()}").close()


def test_peers_answer_as_they_are_said_to(tmp_path):
    """The stand-in itself: greeting, negotiation, one client at a time, JSON as QEMU writes it."""
    peer = a_peer(tmp_path)
    with Peers(peer), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5.0)
        client.connect(str(peer.path))
        file = client.makefile("rwb")
        assert "QMP" in json.loads(file.readline())
        file.write(b'{"execute": "qmp_capabilities"}{"execute": "query-name", "id": "x"}')
        file.flush()
        assert json.loads(file.readline()) == {"return": {}}
        assert json.loads(file.readline()) == {"return": {"name": "vm-1"}, "id": "x"}
