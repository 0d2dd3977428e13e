# SPDX-License-Identifier: Apache-2.0
"""Where the API listens: who may open the socket, what becomes of a dead agent's one, which port is taken."""

import http.client
import os
import socket
import stat

import pytest

from memsculpt.doors.api import ApiServer
from memsculpt.doors.api.server import bind_first, bind_unix
from memsculpt.doors.client import Client
from memsculpt.errors import MemsculptError, Refused, Unavailable, UsageError


@pytest.fixture
def served(scene, tmp_path):
    """Start servers, and stop them again."""
    started = []

    def serve(**more):
        server = ApiServer(scene, socket_path=str(tmp_path / "agent.sock"), **more)
        started.append(server)
        return server, server.start()

    yield serve
    for server in started:
        server.stop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_only_the_owner_may_open_the_socket(served, tmp_path):
    """Mode 0600, there from before the first connection; gone when the server stops."""
    server, listening = served()
    found = os.lstat(listening.socket_path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()
    assert listening.address is None
    assert Client(listening.socket_path).get("/v1/status")["mode"] == "observe"
    server.stop()
    assert not (tmp_path / "agent.sock").exists()


def test_both_ways_answer_and_only_one_takes_requests(served):
    """Loopback reads; the socket also takes requests."""
    _, listening = served(addresses=[("127.0.0.1", free_port())])
    assert listening.address is not None
    connection = http.client.HTTPConnection(listening.address.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/v1/status")
        assert connection.getresponse().read().startswith(b"{")
        connection.request("POST", "/v1/requests", b'{"workload": "a", "bytes": 1}')
        assert connection.getresponse().status == 404
    finally:
        connection.close()
    asked = Client(listening.socket_path).post("/v1/requests", {"workload": "no/such", "bytes": 1})
    assert asked["answer"] == "refused"


def test_a_dead_agents_socket_is_replaced(tmp_path):
    """Nobody answers there, so it is removed."""
    path = tmp_path / "agent.sock"
    bind_unix(path).close()
    assert path.exists()
    bind_unix(path).close()


def test_a_living_agents_socket_is_not(tmp_path):
    """Refused, and the socket stays."""
    path = tmp_path / "agent.sock"
    with bind_unix(path), pytest.raises(Refused, match="answers here already"):
        bind_unix(path)
    assert path.exists()


def test_what_is_no_socket_is_not_removed(tmp_path):
    """Somebody's file stays."""
    path = tmp_path / "agent.sock"
    path.write_text("mine")
    with pytest.raises(Unavailable, match="no socket"):
        bind_unix(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["a" * 120, "no/such/folder/agent.sock"])
def test_a_socket_that_cannot_be_made_says_why(tmp_path, name):
    """Too long a path, an absent folder: with the way out."""
    with pytest.raises(Unavailable, match="--socket"):
        bind_unix(tmp_path / name)


def test_the_next_free_port_is_taken():
    """The first that is free, in the given order; when none is, it says so."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], free_port()
        with bind_first([("127.0.0.1", taken), ("127.0.0.1", free)]) as bound:
            assert bound.getsockname()[1] == free
        with pytest.raises(MemsculptError, match="another program listens"):
            bind_first([("127.0.0.1", taken)])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_only_loopback_is_listened_on(scene, tmp_path, host):
    """The API has no log-in; nothing is made when the address is refused."""
    with pytest.raises(UsageError, match="loopback"):
        ApiServer(scene, socket_path=str(tmp_path / "s"), addresses=[(host, 1)]).start()
    assert not (tmp_path / "s").exists()


def test_a_taken_address_leaves_no_socket_behind(scene, tmp_path):
    """The start fails as a whole."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MemsculptError):
            ApiServer(scene, socket_path=str(tmp_path / "s"), addresses=[other.getsockname()]).start()
    assert not (tmp_path / "s").exists()
