# SPDX-License-Identifier: Apache-2.0
"""QMP monitors without a QEMU behind them: honest ones for load, and ones with a fault for tests.

They answer as QEMU 7.2 does, in its shapes and with its errors, one client at a time. `python -m
memsculpt_bench.qmp_peers FOLDER COUNT` serves so many in one process until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MIB = 1 << 20
BALLOON = "/machine/peripheral/balloon0"
GREETING: Mapping[str, Any] = {
    "QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}
}


@dataclass(slots=True, kw_only=True)
class Peer:
    """One monitor. Its fields may be changed while it is served, from the thread that serves it or in between."""

    path: Path
    uuid: str = "00000000-0000-0000-0000-000000000000"
    name: str = "web-1"
    ram_bytes: int = 512 * MIB
    balloon_bytes: int = 512 * MIB
    status: str = "running"
    greeting: bytes | None = (json.dumps(GREETING) + "\r\n").encode()  # None: it takes connections and says nothing
    hangs_on: str = ""  # a command that is never answered
    closes_on: str = ""  # a command in the middle of whose answer the connection ends
    answers: dict[str, Any] = field(default_factory=dict[str, Any])  # by command or property: instead of the honest one
    refuses: dict[str, str] = field(default_factory=dict[str, str])  # by command or property: an error's words
    noise: bytes = b""  # sent once after the negotiation, and whenever `noise` is set anew
    noise_count: int = 0  # so often each second, for ever
    asked: list[str] = field(default_factory=list[str])  # every command, in order
    properties: dict[str, Any] = field(
        default_factory=lambda: {
            "deflate-on-oom": False,
            "free-page-reporting": False,
            "guest-stats-polling-interval": 0,
        }
    )

    def answer(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Return what QEMU would. Raises KeyError for what it would not know."""
        subject = str(arguments["property"]) if command in {"qom-get", "qom-set"} else command
        if subject in self.answers:
            return self.answers[subject]
        if command == "qom-list":
            is_place = arguments["path"] == "/machine/peripheral"
            return [{"name": "balloon0", "type": "child<virtio-balloon-pci>"}] if is_place else []
        if command == "qom-set":
            self.properties[subject] = arguments["value"]
            return {}
        if command == "qom-get":
            return self._statistics() if subject == "guest-stats" else self.properties[subject]
        if command == "balloon":
            self.balloon_bytes = int(arguments["value"])
            return {}
        return self._queries()[command]()

    def _queries(self) -> Mapping[str, Callable[[], Any]]:
        return {
            "qmp_capabilities": dict,
            "query-status": lambda: {"status": self.status, "running": self.status == "running"},
            "query-migrate": dict,
            "query-uuid": lambda: {"UUID": self.uuid},
            "query-name": lambda: {"name": self.name},
            "query-balloon": lambda: {"actual": self.balloon_bytes},
            "query-memory-size-summary": lambda: {"base-memory": self.ram_bytes, "plugged-memory": 0},
            "query-cpus-fast": lambda: [
                {"cpu-index": 0, "thread-id": threading.get_native_id(), "target": "x86_64", "qom-path": "/machine"}
            ],
            "query-blockstats": lambda: [
                {"device": "d0", "stats": {"rd_bytes": 4096, "wr_bytes": 8192}, "node-name": "#block1"}
            ],
            "query-memory-devices": list,
        }

    def _statistics(self) -> Mapping[str, Any]:
        total = self.balloon_bytes - 32 * MIB
        stats = {
            "stat-total-memory": total,
            "stat-free-memory": total // 4,
            "stat-available-memory": total // 2,
            "stat-disk-caches": total // 4,
            "stat-swap-in": 0,
            "stat-swap-out": 0,
            "stat-major-faults": 11,
            "stat-minor-faults": 4711,
            "stat-htlb-pgalloc": 0,
            "stat-htlb-pgfail": 0,
        }
        return {"stats": stats, "last-update": int(time.time())}


class Peers:
    """Serves monitors on a thread of its own while its context lasts."""

    def __init__(self, *peers: Peer) -> None:
        self._peers = peers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="qmp-peers", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        servers = [self._loop.run_until_complete(serve(peer)) for peer in self._peers]
        self._ready.set()
        self._loop.run_forever()
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))


async def serve(peer: Peer) -> asyncio.AbstractServer:
    """Begin to serve one monitor."""
    one_at_a_time = asyncio.Lock()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with one_at_a_time:
                await _converse(peer, reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    return await asyncio.start_unix_server(talk, peer.path)


async def _converse(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if peer.greeting is None:
        await reader.read()  # until the other side gives up
        return
    writer.write(peer.greeting)
    decoder, text, noise = json.JSONDecoder(), "", None
    while (content := await reader.read(1 << 16)) != b"":
        text = (text + content.decode()).lstrip()
        while text:
            try:
                asked, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            command = asked["execute"]
            peer.asked.append(command)
            if command == peer.hangs_on:
                await reader.read()
                return
            message = json.dumps(_answer(peer, command, asked)).encode() + b"\r\n"
            if command == peer.closes_on:
                writer.write(message[: len(message) // 2])
                return
            writer.write(message)
            if command == "qmp_capabilities" and peer.noise and noise is None:
                noise = asyncio.ensure_future(_make_noise(peer, writer))
        await writer.drain()


async def _make_noise(peer: Peer, writer: asyncio.StreamWriter) -> None:
    writer.write(peer.noise)
    while peer.noise_count:
        for _ in range(100):
            writer.write(peer.noise * max(1, peer.noise_count // 100))
            await writer.drain()
            await asyncio.sleep(0.01)


def _answer(peer: Peer, command: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    numbered = {"id": asked["id"]} if "id" in asked else {}
    arguments: Mapping[str, Any] = asked.get("arguments", {})
    subject = str(arguments.get("property", command))
    if subject in peer.refuses:
        return {"error": {"class": "GenericError", "desc": peer.refuses[subject]}, **numbered}
    try:
        return {"return": peer.answer(command, arguments), **numbered}
    except KeyError:
        words = f"The command {command} has not been found"
        return {"error": {"class": "CommandNotFound", "desc": words}, **numbered}


def uuid_of(number: int) -> str:
    """Return the UUID of the VM with a number."""
    return f"00000000-0000-4000-8000-{number:012x}"


async def _serve_many(folder: Path, count: int) -> None:
    servers = [
        await serve(Peer(path=folder / f"{number}.qmp", uuid=uuid_of(number), name=f"vm-{number}"))
        for number in range(1, count + 1)
    ]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(_serve_many(Path(sys.argv[1]), int(sys.argv[2])))
