# SPDX-License-Identifier: Apache-2.0
"""The one client of a running agent: HTTP over its Unix socket, with the standard library only.

`status` in a shell loop must start fast, so neither numpy nor an HTTP library is imported here.
"""

import http.client
import json
import socket
from typing import Any, TypeAlias, cast

from memsculpt.errors import MemsculptError, Refused, Unavailable, UsageError

Answer: TypeAlias = dict[str, Any]

TIMEOUT_S = 10.0
_START = "start it with `make run` or `memsculpt run`, or name its socket with --socket"
# What the agent's API says by status, in the words of our own tree; see docs/reference/api.md.
_ERRORS: dict[int, type[MemsculptError]] = {400: UsageError, 409: Refused, 501: Unavailable}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


class Client:
    """Asks one agent, one connection a question."""

    def __init__(self, path: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def get(self, resource: str, *, timeout_s: float | None = None) -> Answer:
        """Return a resource of the API, decoded; `resource` is quoted as in a URL.

        Raises MemsculptError when no agent answers, and what the agent's error body says.
        """
        return self._ask("GET", resource, None, timeout_s)

    def post(self, resource: str, body: Answer, *, timeout_s: float | None = None) -> Answer:
        """Send a request into the agent's next tick and return what came of it; raises as `get`."""
        return self._ask("POST", resource, json.dumps(body).encode(), timeout_s)

    def _ask(self, method: str, resource: str, body: bytes | None, timeout_s: float | None = None) -> Answer:
        connection = _UnixConnection(self.path, timeout_s or self._timeout_s)
        try:
            connection.request(method, resource, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise MemsculptError(place=self.path, problem="no agent answers here", fix=_START) from error
        except PermissionError as error:
            raise MemsculptError(
                place=self.path,
                problem="the agent belongs to another user, and only its owner may ask it",
                fix="ask as that user (sudo), or read the page on the loopback address that the agent prints",
            ) from error
        except TimeoutError as error:
            raise MemsculptError(
                place=self.path,
                problem=f"the agent took the call and gave no answer in {timeout_s or self._timeout_s:g} s",
                fix="look at its output; if it hangs, end it and run `memsculpt restore`",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise MemsculptError(
                place=self.path, problem=f"the connection broke: {error!r}", fix="ask again; is the agent ending?"
            ) from error
        finally:
            connection.close()
        return self._decoded(status, content, resource)

    def _decoded(self, status: int, content: bytes, resource: str) -> Answer:
        answer = _object_in(content)
        if answer is None:
            raise MemsculptError(
                place=f"{self.path} {resource}",
                problem=f"something that is not memsculpt answered (HTTP {status}, no JSON object)",
                fix="name the agent's socket with --socket",
            )
        if status == 200:
            return answer
        said = answer.get("error", {})
        raise _ERRORS.get(status, MemsculptError)(
            place=said.get("place", f"{self.path} {resource}"),
            problem=said.get("problem", f"HTTP {status}"),
            fix=said.get("fix", "see docs/reference/api.md"),
        )


def _object_in(content: bytes) -> Answer | None:
    try:
        found: object = json.loads(content)
    except ValueError:
        return None
    return cast("Answer", found) if isinstance(found, dict) else None
