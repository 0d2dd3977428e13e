# SPDX-License-Identifier: Apache-2.0
"""GET /v1/pools, and POST /v1/sculpts: rearrange a pool. The latter only over the Unix socket."""

import asyncio
import math

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from memsculpt.domain.pool import (
    HOW_TO_ASK,
    ColdZone,
    GuestPool,
    HotZone,
    Prefetch,
    SculptRequest,
    SculptStats,
    Zone,
)
from memsculpt.domain.report import Report
from memsculpt.domain.units import parse_duration_s, parse_size_bytes
from memsculpt.doors import words
from memsculpt.doors.api.requests import read_body
from memsculpt.doors.api.resource import Asked, Endpoint, answer
from memsculpt.doors.api.schema import (
    GuestPoolView,
    GuestZoneView,
    PoolsView,
    PoolView,
    PrefetchView,
    SculptBody,
    ZonesView,
)
from memsculpt.errors import MemsculptError, UsageError

PLACE = "POST /v1/sculpts"
ANSWER_WITHIN_S = 60.0  # a page-out of some GiB takes that long

_decoder = msgspec.json.Decoder(SculptBody)


def view_pools(report: Report) -> PoolsView:
    """Return every pool."""
    return PoolsView(pools=[view_pool(one) for one in report.pools])


def take_sculpts(agent: Asked) -> Endpoint:
    """Return the endpoint that has the agent's next tick sculpt, and waits for what came of it."""

    async def take(request: HttpRequest) -> Response:
        pool, asked = read_sculpt(await read_body(request, PLACE), agent.report)
        try:
            future = asyncio.wrap_future(agent.ask_sculpt(pool, asked))
            stats = await asyncio.wait_for(asyncio.shield(future), ANSWER_WITHIN_S)
        except TimeoutError as error:
            raise MemsculptError(
                place=PLACE,
                problem=f"the agent did not come to it in {ANSWER_WITHIN_S:g} s",
                fix="look at its output; it may still be done",
            ) from error
        return answer(view_pool(stats))

    return take


def read_sculpt(body: bytes, report: Report) -> tuple[str, SculptRequest]:
    """Return the pool and the request that a body holds. Raises UsageError when it is none."""
    try:
        told = _decoder.decode(body)
        size_bytes = told.bytes if told.bytes is not None else parse_size_bytes(told.size) if told.size else None
        window_s = parse_duration_s(told.window) if isinstance(told.window, str) else told.window
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(place=PLACE, problem=str(error), fix=HOW_TO_ASK) from error
    pool = next((one.pool for one in report.pools if words.text_of(one.pool) == told.pool), told.pool)
    if told.zone in {"hot", "cold"} and size_bytes is not None and window_s is None:
        return pool, HotZone(size_bytes=size_bytes) if told.zone == "hot" else ColdZone(size_bytes=size_bytes)
    if told.zone == "prefetch" and window_s is not None and size_bytes is None:
        return pool, Prefetch(window_s=window_s)
    raise UsageError(
        place=PLACE,
        problem=f"zone {told.zone!r} with size {told.size or told.bytes} and window {told.window}",
        fix=HOW_TO_ASK,
    )


def view_pool(stats: SculptStats) -> PoolView:
    """Return a pool for programs: what is not known yet is null."""
    size_of = dict(zip(Zone, stats.zone_bytes, strict=True))
    return PoolView(
        pool=words.text_of(stats.pool),
        verdict=stats.verdict.value,
        reason=stats.reason,
        zones=ZonesView(**{zone.name.lower(): size_of[zone] for zone in Zone}),
        asked_bytes=stats.asked_bytes,
        moved_bytes=stats.moved_bytes,
        collapsed_bytes=stats.collapsed_bytes,
        split_bytes=stats.split_bytes,
        paged_out_bytes=stats.paged_out_bytes,
        brought_in_bytes=stats.brought_in_bytes,
        to_slow_node_bytes=stats.to_slow_node_bytes,
        from_slow_node_bytes=stats.from_slow_node_bytes,
        on_slow_node_bytes=stats.on_slow_node_bytes,
        undone_bytes=stats.undone_bytes,
        resident_before_bytes=stats.resident_before_bytes,
        resident_after_bytes=stats.resident_after_bytes,
        huge_before_bytes=stats.huge_before_bytes,
        huge_after_bytes=stats.huge_after_bytes,
        longest_run_before_bytes=stats.longest_run_before_bytes,
        longest_run_after_bytes=stats.longest_run_after_bytes,
        faults_before=_known(stats.faults_before_per_s),
        faults_after=_known(stats.faults_after_per_s),
        stall_before_ratio=_known(stats.stall_before_ratio),
        stall_after_ratio=_known(stats.stall_after_ratio),
        latency_saved_s_per_s=stats.latency_saved_s_per_s,
        prefetch=PrefetchView(
            recall=_known(stats.recall), precision=_known(stats.precision), timeliness=_known(stats.timeliness)
        ),
        cpu_s=stats.cpu_s,
        duration_s=stats.duration_s,
        problems=dict(stats.problems),
        vm=None if stats.guest is None else _view_guest(stats.guest),
    )


def _view_guest(guest: GuestPool) -> GuestPoolView:
    return GuestPoolView(
        id=words.text_of(guest.vm),
        name=words.text_of(guest.name),
        backing=guest.backing.value,
        state=guest.state.value,
        cannot=list(guest.cannot),
        zones=[GuestZoneView(start=start, end=end, zone=zone.name.lower()) for start, end, zone in guest.zones],
    )


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
