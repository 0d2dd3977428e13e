# SPDX-License-Identifier: Apache-2.0
"""POST /v1/requests: an application says what it is about to need. Only over the Unix socket."""

import asyncio

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from memsculpt import plan
from memsculpt.domain.plan import Grant, Request
from memsculpt.domain.report import Report
from memsculpt.domain.units import parse_duration_s, parse_size_bytes
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.api.actions import view_action, view_reason
from memsculpt.doors.api.resource import Asked, Endpoint, answer
from memsculpt.doors.api.schema import GrantView, RequestBody
from memsculpt.errors import MemsculptError, UsageError

BODY_MAX_BYTES = 64 << 10
ANSWER_WITHIN_S = 30.0  # an agent whose tick takes longer is in trouble, and says so

_decoder = msgspec.json.Decoder(RequestBody)
_HOW = 'send {"workload": "...", "size": "64MiB", "within": "5s"}, or "bytes" as a number instead of "size"'


def take_requests(agent: Asked) -> Endpoint:
    """Return the endpoint that puts requests into the agent's next tick and waits for the answer."""

    async def take(request: HttpRequest) -> Response:
        asked = read_request(await read_body(request, "POST /v1/requests"), agent.report)
        try:
            # Shielded: who no longer waits must not cancel what the tick is about to answer.
            grant = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(agent.ask(asked))), ANSWER_WITHIN_S)
        except TimeoutError as error:
            raise MemsculptError(
                place="POST /v1/requests",
                problem=f"the agent did not come to it in {ANSWER_WITHIN_S:g} s",
                fix="look at its output; the request may still be met",
            ) from error
        return answer(view_grant(grant, agent.report.now_s))

    return take


def read_request(body: bytes, report: Report) -> Request:
    """Return the request that a body holds.

    Raises UsageError when the body is no such request.
    """
    try:
        told = _decoder.decode(body)
        size_bytes = told.bytes if told.bytes is not None else parse_size_bytes(told.size or "")
        within_s = parse_duration_s(told.within) if isinstance(told.within, str) else told.within
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(place="POST /v1/requests", problem=str(error), fix=_HOW) from error
    if (told.bytes is None) == (told.size is None):
        raise UsageError(place="POST /v1/requests", problem="say either bytes or size", fix=_HOW)
    if size_bytes < 0 or not 0 <= within_s < float("inf"):
        raise UsageError(place="POST /v1/requests", problem="size and within are not below 0", fix=_HOW)
    known = () if report.observation is None else report.observation.workloads.ids
    # What we print of a name that is not UTF-8 names it here, too.
    identity = next((one for one in known if words.text_of(one) == told.workload), WorkloadId(told.workload))
    return Request(workload=identity, size_bytes=size_bytes, within_s=within_s, asked_at_s=report.now_s)


def view_grant(grant: Grant, now_s: float) -> GrantView:
    """Return the answer to a request."""
    return GrantView(
        answer=grant.answer.value,
        partition=grant.partition,
        granted_bytes=grant.granted_bytes,
        stays_charged_bytes=grant.stays_charged_bytes,
        reason=view_reason(grant.reason),
        text=plan.explain_grant(grant),
        actions=[view_action(one, now_s) for one in grant.actions],
    )


async def read_body(request: HttpRequest, place: str) -> bytes:
    """Return a request's body. Raises UsageError when it is too long to be one."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_MAX_BYTES:
            raise UsageError(place=place, problem=f"the body is above {BODY_MAX_BYTES} bytes", fix=_HOW)
    return body
