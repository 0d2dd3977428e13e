# SPDX-License-Identifier: Apache-2.0
"""The API's own thread: it listens on the Unix socket and on loopback while the agent ticks in the main thread.

The agent hands over one immutable report per tick, so nothing here takes a lock. See docs/decisions/0035.
"""

import asyncio
import errno
import ipaddress
import os
import socket
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from memsculpt.doors.api.app import make_app
from memsculpt.doors.api.resource import Asked
from memsculpt.errors import MemsculptError, Refused, Unavailable, UsageError

START_WITHIN_S = 10.0
STOP_WITHIN_S = 5.0
SOCKET_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where the API answers."""

    socket_path: str
    address: str | None  # "http://127.0.0.1:8472", None: the socket only


class _Server(uvicorn.Server):
    """uvicorn without its ten wake-ups a second: it sleeps until it is told to end."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                date_header=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=64,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=32 << 10,
            )
        )
        self._end = asyncio.Event()

    async def main_loop(self) -> None:
        await self._end.wait()

    def end(self) -> None:
        self._end.set()


class ApiServer:
    """The API of one agent, from `start` until `stop`."""

    def __init__(self, agent: Asked, *, socket_path: str, addresses: Sequence[tuple[str, int]] = ()) -> None:
        """Listen on the Unix socket, and on the first of the loopback addresses that is free."""
        self._agent = agent
        self._path = Path(socket_path)
        self._addresses = addresses
        self._thread = threading.Thread(target=self._run, name="memsculpt-api", daemon=True)
        self._sockets: list[socket.socket] = []
        self._servers: list[_Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()

    def start(self) -> Listening:
        """Bind and serve; return where.

        Raises Refused when an agent answers on the socket already, Unavailable when the socket cannot be made,
        MemsculptError when no address is free, UsageError for an address beyond loopback.
        """
        for host, _ in self._addresses:
            check_loopback(host)
        self._sockets.append(bind_unix(self._path))
        try:
            address = None
            if self._addresses:
                bound = bind_first(self._addresses)
                self._sockets.append(bound)
                address = _url_of(bound)
        except BaseException:
            self._let_go()
            raise
        self._thread.start()
        if not self._started.wait(START_WITHIN_S):
            raise Unavailable(place="API", problem="its thread did not start", fix="look at the lines above")
        return Listening(socket_path=str(self._path), address=address)

    def stop(self) -> None:
        """Stop serving and remove the socket."""
        if self._loop is not None and self._thread.is_alive():
            for server in self._servers:
                self._loop.call_soon_threadsafe(server.end)
            self._thread.join(STOP_WITHIN_S)
        self._let_go()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._servers = [
            _Server(make_app(self._agent, takes_requests=one.family == socket.AF_UNIX)) for one in self._sockets
        ]
        pairs = zip(self._servers, self._sockets, strict=True)
        serving = [asyncio.create_task(server.serve(sockets=[one])) for server, one in pairs]
        # Clients queue in the backlog from the bind on, so "started" need not wait for uvicorn's own word.
        self._started.set()
        await asyncio.gather(*serving)

    def _let_go(self) -> None:
        while self._sockets:
            one = self._sockets.pop()
            if one.family == socket.AF_UNIX:
                self._path.unlink(missing_ok=True)
            one.close()


def check_loopback(host: str) -> None:
    """Refuse an address that other machines can reach: raises UsageError."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise UsageError(
            place=f"--listen {host}",
            problem="the API has no log-in, so it listens on loopback only",
            fix="say --listen 127.0.0.1:PORT, and reach it from elsewhere through ssh -L",
        )


def bind_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that only its owner may open; a dead agent's socket is replaced.

    Raises Refused when somebody answers there, Unavailable when it cannot be made.
    """
    try:
        _remove_stale(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.bind(str(path))
            # Nobody can connect before listen(), so there is no moment at which others could.
            path.chmod(SOCKET_MODE)
            made.listen(64)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise Unavailable(
            place=str(path),
            problem=f"the agent's socket cannot be made: {error.strerror or error}",
            fix="name another one: --socket PATH (at most 107 bytes long)",
        ) from error
    return made


def bind_first(addresses: Sequence[tuple[str, int]]) -> socket.socket:
    """Return a listening socket on the first address that is free.

    Raises MemsculptError when none is.
    """
    for host, port in addresses:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(64)
        except OSError as error:
            made.close()
            if error.errno != errno.EADDRINUSE:
                raise Unavailable(
                    place=f"{host}:{port}", problem=f"cannot listen: {error.strerror}", fix="say --no-listen"
                ) from error
        else:
            return made
    host, port = addresses[0]
    raise MemsculptError(
        place=f"{host}:{port}",
        problem="another program listens there",
        fix="say --listen 127.0.0.1:OTHER, or --no-listen for the Unix socket only",
    )


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody answers."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Unavailable(
            place=str(path), problem="is there and is no socket", fix="remove it, or name another: --socket PATH"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # somebody holds it and is too busy to answer
    raise Refused(
        place=str(path),
        problem="an agent answers here already, and two would undo each other's changes",
        fix="ask that one (memsculpt status), or stop it first",
    )


def _url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
