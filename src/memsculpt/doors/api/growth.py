# SPDX-License-Identifier: Apache-2.0
"""GET /v1/workloads/{workload}/growth: which functions a critical workload's memory came from. Unix socket only.

The agent's tick tells places in code; a short-lived worker gives them names, one worker at a time.
"""

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from memsculpt import workers
from memsculpt.domain.growth import GrowthSample, GrowthStack
from memsculpt.domain.pages import PAGE_BYTES
from memsculpt.domain.report import Report
from memsculpt.domain.units import format_bytes
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.api.resource import Asked, Endpoint, NotFound, answer
from memsculpt.doors.api.schema import FunctionGrowthView, GrowthView, ModuleGrowthView, StackGrowthView
from memsculpt.errors import MemsculptError
from memsculpt.host import drilldown
from memsculpt.profile import growth

PATH = "/v1/workloads/{workload:any}/growth"
ANSWER_WITHIN_S = 30.0
NAMING = workers.Bounds(timeout_s=60.0, memory_bytes=2 << 30)
FEW_SAMPLES = 3  # what brought fewer pages than this many samples stand for is missing in one case of twenty


class _AnyText(Convertor[str]):
    """A name of a workload, which may hold slashes and line ends."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())


def tell_growth(agent: Asked) -> Endpoint:
    """Return the endpoint that has the agent tell and a worker name."""
    turn = asyncio.Lock()

    async def tell(request: HttpRequest) -> Response:
        workload = find_workload(request.path_params["workload"], agent.report)
        async with turn:
            try:
                future = asyncio.wrap_future(agent.ask_growth(workload))
                sample = await asyncio.wait_for(asyncio.shield(future), ANSWER_WITHIN_S)
            except TimeoutError as error:
                raise MemsculptError(
                    place=f"GET /v1/workloads/{words.text_of(workload)}/growth",
                    problem=f"the agent did not come to it in {ANSWER_WITHIN_S:g} s",
                    fix="look at its output",
                ) from error
            stacks, notes = await run_in_threadpool(
                workers.run, NAMING, drilldown.name_stacks, sample.modules, sample.stacks
            )
        return answer(view_growth(sample, stacks, notes))

    return tell


def find_workload(told: str, report: Report) -> WorkloadId:
    """Return the workload of this name, as it is printed. Raises NotFound."""
    known = () if report.observation is None else report.observation.workloads.ids
    for one in known:
        if words.text_of(one) == told:
            return one
    raise NotFound(
        place=f"workload {told}", problem="there is none of this name now", fix="GET /v1/workloads lists them"
    )


def view_growth(sample: GrowthSample, stacks: Sequence[GrowthStack], notes: Sequence[str]) -> GrowthView:
    """Return what is known of a workload's growth, with names."""
    own = [one for one in stacks if one.kind != "file"]
    return GrowthView(
        workload=words.text_of(sample.workload),
        interval_s=sample.interval_s,
        sampled_every=sample.sampled_every,
        faults=sample.seen_count,
        recorded=sum(one.sample_count for one in sample.stacks),
        dropped=sample.dropped_count,
        grown_bytes=sample.grown_bytes,
        touched_bytes=sum(one.touched_bytes for one in own),
        touched_error_bytes=growth.error_bytes(sum(one.touched_variance for one in own)),
        held_bytes=sum(one.held_bytes for one in own),
        held_error_bytes=growth.error_bytes(sum(one.held_variance for one in own)),
        file_bytes=sum(one.touched_bytes for one in stacks if one.kind == "file"),
        functions=[
            FunctionGrowthView(
                function=words.text_of(one.function),
                module=words.text_of(one.module),
                self_bytes=one.self_bytes,
                total_bytes=one.total_bytes,
                held_bytes=one.held_bytes,
                held_total_bytes=one.held_total_bytes,
                total_error_bytes=one.total_error_bytes,
                held_total_error_bytes=one.held_total_error_bytes,
            )
            for one in growth.by_function(own)
        ],
        modules=[
            ModuleGrowthView(module=words.text_of(name), touched_bytes=touched, held_bytes=held)
            for name, (touched, held) in growth.by_module(own).items()
        ],
        stacks=[
            StackGrowthView(
                frames=[words.text_of(function) for function, _ in one.frames],
                frame_modules=[words.text_of(module) for _, module in one.frames],
                kind=one.kind,
                touched_bytes=one.touched_bytes,
                held_bytes=one.held_bytes,
                faults=one.fault_count,
            )
            for one in stacks
        ],
        notes=[words.text_of(note) for note in (*_notes(sample), *notes)],
    )


def _notes(sample: GrowthSample) -> list[str]:
    notes = list(sample.notes)
    if sample.sampled_every > 1:
        missing = format_bytes(FEW_SAMPLES * sample.sampled_every * PAGE_BYTES)
        notes.append(
            f"one page in {sample.sampled_every} was sampled: of 20 figures 19 are off by no more than their error, "
            f"and a function that brought less than {missing} may be missing"
        )
    if sample.dropped_count:
        notes.append(f"{sample.dropped_count} faults found no room and are missing")
    return notes
