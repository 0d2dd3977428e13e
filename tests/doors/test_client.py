# SPDX-License-Identifier: Apache-2.0
"""The client: whatever stands at the other end, the caller is told what is wrong and what to do."""

import socket
import threading

import pytest

from memsculpt.doors.client import Client
from memsculpt.errors import MemsculptError, Refused, Unavailable, UsageError


@pytest.fixture
def stranger(tmp_path):
    """Something at the other end that says these bytes to the first who asks."""
    listening = []

    def say(content):
        path = tmp_path / "s"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        listening.append(server)

        def serve():
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        return Client(str(path), timeout_s=5)

    yield say
    for server in listening:
        server.close()


def http(status, body):
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


ERROR = b'{"error": {"place": "a", "problem": "b", "fix": "c"}}'


def test_an_answer_is_decoded(stranger):
    """The object itself."""
    assert stranger(http(200, b'{"mode": "observe"}')).get("/v1/status") == {"mode": "observe"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, UsageError), (404, MemsculptError), (409, Refused), (501, Unavailable), (500, MemsculptError)],
)
def test_an_error_becomes_ours(stranger, status, kind):
    """Place, problem and fix arrive in the class whose exit code fits."""
    with pytest.raises(MemsculptError) as caught:
        stranger(http(status, ERROR)).get("/v1/status")
    assert type(caught.value) is kind
    assert (caught.value.place, caught.value.problem, caught.value.fix) == ("a", "b", "c")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SSH-2.0-x\r\n",
        http(200, b"<html>"),
        http(200, b"\xff"),
        http(500, b"oops"),
        http(500, b"[]"),
        http(200, b"[]"),
    ],
)
def test_what_is_no_agent_is_told(stranger, content):
    """Something else answered, or nobody did: an error with a fix, never a traceback."""
    with pytest.raises(MemsculptError) as caught:
        stranger(content).get("/v1/status")
    assert caught.value.fix


def test_who_does_not_answer_is_told(tmp_path):
    """After the time given, not for ever."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with pytest.raises(MemsculptError, match=r"no answer in 0\.1 s"):
            Client(str(tmp_path / "s"), timeout_s=0.1).get("/v1/status")


def test_nobody_there_is_told(tmp_path):
    """An absent socket and a dead agent's one: start it."""
    with pytest.raises(MemsculptError, match="make run"):
        Client(str(tmp_path / "none")).get("/v1/status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(MemsculptError, match="make run"):
        Client(str(tmp_path / "dead")).get("/v1/status")
