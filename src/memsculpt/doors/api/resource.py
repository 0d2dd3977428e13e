# SPDX-License-Identifier: Apache-2.0
"""What all resources share: the agent as the API sees it, and JSON answers."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Protocol, TypeAlias

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from memsculpt.domain.growth import GrowthSample
from memsculpt.domain.plan import Grant, Request
from memsculpt.domain.pool import SculptRequest, SculptStats
from memsculpt.domain.report import Report
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors.api.schema import ErrorView, ProblemView
from memsculpt.errors import ConfigError, MemsculptError, Refused, Unavailable, UsageError

Endpoint: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]

_JSON = "application/json"
_encoder = msgspec.json.Encoder()
# The most specific class counts; docs/reference/api.md has the table.
_STATUS: tuple[tuple[type[MemsculptError], int], ...] = (
    (UsageError, 400),
    (ConfigError, 400),
    (Refused, 409),
    (Unavailable, 501),
    (MemsculptError, 500),
)


class Asked(Protocol):
    """The agent as the API sees it; all are safe from another thread."""

    @property
    def report(self) -> Report:
        """The last tick's results, immutable."""
        ...

    def ask(self, request: Request) -> "Future[Grant]":
        """Put a request into the next tick."""
        ...

    def ask_sculpt(self, pool: str, request: SculptRequest) -> "Future[SculptStats]":
        """Have the next tick sculpt a pool. Raises UsageError for what has no meaning."""
        ...

    def ask_growth(self, workload: WorkloadId) -> "Future[GrowthSample]":
        """Have the next tick tell where a workload's memory came from."""
        ...


class NotFound(UsageError):
    """The thing that was asked for is not there (HTTP 404)."""


def answer(content: object, status: int = 200) -> Response:
    """Return any of the schema's values as JSON."""
    return Response(_encoder.encode(content), status_code=status, media_type=_JSON)


def error_answer(error: MemsculptError, status: int | None = None) -> Response:
    """Return place, problem and fix as JSON, with the status that fits the error's class."""
    if status is None:
        status = 404 if isinstance(error, NotFound) else next(code for kind, code in _STATUS if isinstance(error, kind))
    body = ErrorView(error=ProblemView(place=error.place, problem=error.problem, fix=error.fix))
    return answer(body, status)
