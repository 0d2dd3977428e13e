# SPDX-License-Identifier: Apache-2.0
"""The application: which path asks for what, and who may ask.

Two forms of one API. On the Unix socket, which only its owner can open, requests are taken. On a loopback TCP address,
which every local user and every page in a browser can reach, it only reads, and it insists on a loopback Host header:
otherwise a page on the web could point its own name at 127.0.0.1 and read along (DNS rebinding).
"""

from collections.abc import Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memsculpt.domain.report import Report
from memsculpt.doors.api import growth, page
from memsculpt.doors.api.actions import view_actions, view_explanation
from memsculpt.doors.api.doctor import view_doctor
from memsculpt.doors.api.openapi import Operation, describe
from memsculpt.doors.api.partitions import view_partitions
from memsculpt.doors.api.plan import view_plan
from memsculpt.doors.api.profiles import view_profiles
from memsculpt.doors.api.requests import take_requests
from memsculpt.doors.api.resource import Asked, Endpoint, answer, error_answer
from memsculpt.doors.api.schema import (
    ActionsView,
    DoctorView,
    ExplanationView,
    GrantView,
    GrowthView,
    PartitionsView,
    PlanView,
    PoolsView,
    PoolView,
    ProfilesView,
    RequestBody,
    SculptBody,
    StatusView,
    VmsView,
    WorkloadsView,
)
from memsculpt.doors.api.sculpt import take_sculpts, view_pools
from memsculpt.doors.api.status import view_status
from memsculpt.doors.api.vms import view_vms
from memsculpt.doors.api.workloads import view_workloads
from memsculpt.errors import MemsculptError

# path, what it answers, how, and the line for people
READS: tuple[tuple[str, type[msgspec.Struct], Callable[[Report], msgspec.Struct], str], ...] = (
    ("/v1/status", StatusView, view_status, "Everything at a glance"),
    ("/v1/partitions", PartitionsView, view_partitions, "What each partition is promised, has, uses and will need"),
    ("/v1/workloads", WorkloadsView, view_workloads, "Every workload, its use told apart"),
    ("/v1/vms", VmsView, view_vms, "Virtual machines, as their monitors and guests tell them"),
    ("/v1/plan", PlanView, view_plan, "The last tick's plan and what was held back"),
    ("/v1/actions", ActionsView, view_actions, "The most recent actions and what came of them"),
    ("/v1/profiles", ProfilesView, view_profiles, "What lasts of each workload: the profile store"),
    ("/v1/pools", PoolsView, view_pools, "What may be sculpted, and what came of it"),
    ("/v1/doctor", DoctorView, view_doctor, "What this machine offers"),
)
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


def operations() -> tuple[Operation, ...]:
    """Return every operation of the API, for the OpenAPI document and for the docs' test."""
    reads = (
        Operation(path=path, method="GET", name=path.rpartition("/")[2], summary=summary, answers=answers)
        for path, answers, _, summary in READS
    )
    explain = Operation(
        path="/v1/actions/{id}",
        method="GET",
        name="explain",
        summary="One action: why, how it went, what came of it",
        answers=ExplanationView,
    )
    request = Operation(
        path="/v1/requests",
        method="POST",
        name="request",
        summary="Say what a workload is about to need (Unix socket only)",
        answers=GrantView,
        takes=RequestBody,
    )
    tell = Operation(
        path="/v1/workloads/{workload}/growth",
        method="GET",
        name="growth",
        summary="Which functions a critical workload's memory came from (Unix socket only)",
        answers=GrowthView,
    )
    sculpt = Operation(
        path="/v1/sculpts",
        method="POST",
        name="sculpt",
        summary="Gather, send out or bring back a pool's memory (Unix socket only)",
        answers=PoolView,
        takes=SculptBody,
    )
    return (*reads, explain, tell, request, sculpt)


def make_app(agent: Asked, *, takes_requests: bool) -> ASGIApp:
    """Return the ASGI application; one that takes no requests also insists on a loopback Host header."""
    routes = [Route(path, _reading(agent, view), methods=["GET"]) for path, _, view, _ in READS]
    routes.append(Route("/v1/actions/{id:int}", _explaining(agent), methods=["GET"]))
    routes.append(Route("/v1/openapi.json", _describing(), methods=["GET"]))
    routes.append(Route("/", _showing(), methods=["GET"]))
    if takes_requests:
        routes.append(Route("/v1/requests", take_requests(agent), methods=["POST"]))
        routes.append(Route("/v1/sculpts", take_sculpts(agent), methods=["POST"]))
        routes.append(Route(growth.PATH, growth.tell_growth(agent), methods=["GET"]))
    app = Starlette(
        routes=routes,
        exception_handlers={MemsculptError: _answer_problem, HTTPException: _answer_http_problem},
    )
    return _Guard(app, hosts=None if takes_requests else LOOPBACK_HOSTS)


class _Guard:
    """Checks the Host header and adds the headers that keep a browser from lending the page to others."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        if scope["type"] == "http" and self._hosts is not None and _host_of(scope) not in self._hosts:
            problem = MemsculptError(
                place="Host header",
                problem="names a host that is not this machine's loopback",
                fix="open http://127.0.0.1 with the port that the agent printed",
            )
            await error_answer(problem, 421)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def _host_of(scope: Scope) -> str:
    told = [value for name, value in scope["headers"] if name == b"host"]
    if len(told) != 1:
        return ""
    host = told[0].decode("latin-1").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _reading(agent: Asked, view: Callable[[Report], msgspec.Struct]) -> Endpoint:
    """Return the endpoint of one view; several readers within one tick cost no more than one."""
    encoder = msgspec.json.Encoder()
    made: tuple[Report, bytes] | None = None

    async def read(_request: HttpRequest) -> Response:
        nonlocal made
        report = agent.report
        if made is None or made[0] is not report:
            made = (report, encoder.encode(view(report)))
        return Response(made[1], media_type="application/json")

    return read


def _explaining(agent: Asked) -> Endpoint:
    async def explain(request: HttpRequest) -> Response:
        return answer(view_explanation(agent.report, request.path_params["id"]))

    return explain


def _describing() -> Endpoint:
    async def describe_all(_request: HttpRequest) -> Response:
        return answer(describe(operations()))

    return describe_all


def _showing() -> Endpoint:
    async def show(_request: HttpRequest) -> Response:
        return Response(page.HTML, media_type="text/html", headers={"content-security-policy": page.POLICY})

    return show


async def _answer_problem(_request: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, MemsculptError):
        raise error
    return error_answer(error)


async def _answer_http_problem(request: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    is_write = request.url.path in {"/v1/requests", "/v1/sculpts"} and error.status_code in {404, 405}
    problem = MemsculptError(
        place=f"{request.method} {request.url.path}",
        problem="takes requests on the agent's Unix socket only" if is_write else error.detail,
        fix="memsculpt request --help, memsculpt sculpt --help"
        if is_write
        else "GET /v1/openapi.json lists what there is",
    )
    headers: Mapping[str, str] = error.headers or {}
    response = error_answer(problem, error.status_code)
    response.headers.update(headers)
    return response
