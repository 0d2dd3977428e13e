# SPDX-License-Identifier: Apache-2.0
"""GET /v1/status: everything at a glance."""

import memsculpt
from memsculpt.domain.observation import HostMemory
from memsculpt.domain.report import Report, Scores
from memsculpt.doors import words
from memsculpt.doors.api.actions import view_actions
from memsculpt.doors.api.partitions import list_partitions
from memsculpt.doors.api.schema import (
    AgentView,
    BackoffView,
    MemoryView,
    SamplingView,
    ScoresView,
    StatusView,
)
from memsculpt.doors.api.vms import list_vms, view_overcommit
from memsculpt.doors.api.workloads import list_workloads

RECENT_ACTIONS = 20


def view_status(report: Report) -> StatusView:
    """Return everything at a glance."""
    memory = None if report.observation is None else report.observation.memory
    return StatusView(
        version=memsculpt.__version__,
        host=report.host_name,
        mode=report.mode.value,
        uptime_s=max(0.0, report.now_s - report.started_at_s),
        interval_s=report.settings.interval_s,
        agent=_view_agent(report),
        memory=None if memory is None else _view_memory(memory),
        capacity_bytes=None if memory is None else report.settings.capacity_of(memory.total_bytes),
        workloads=list_workloads(report),
        partitions=list_partitions(report),
        scores=None if report.scores is None else _view_scores(report.scores),
        actions=view_actions(report, most=RECENT_ACTIONS),
        backoff=_view_backoff(report),
        notes=[words.text_of(note) for note in report.notes],
        last_problem=words.text_of(report.last_problem),
        growth=_view_sampling(report),
        vms=list_vms(report),
        overcommit=view_overcommit(report),
    )


def _view_agent(report: Report) -> AgentView:
    return AgentView(
        cpu_share=report.agent.cpu_share,
        resident_bytes=report.agent.resident_bytes,
        cpu_s=report.agent.cpu_s,
        peak_resident_bytes=report.agent.peak_resident_bytes,
        pid=report.pid,
        tick_count=report.tick_count,
        late_count=report.late_count,
        failed_count=report.failed_count,
    )


def _view_memory(memory: HostMemory) -> MemoryView:
    return MemoryView(
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        free_bytes=memory.free_bytes,
        swap_total_bytes=memory.swap_total_bytes,
        swap_free_bytes=memory.swap_free_bytes,
    )


def _view_scores(scores: Scores) -> ScoresView:
    return ScoresView(
        horizon_s=scores.horizon_s,
        levels=list(scores.levels),
        scored_count=scores.scored_count,
        covered_ratio=scores.covered_ratio.tolist(),
        pinball_bytes=scores.pinball_bytes.tolist(),
    )


def _view_sampling(report: Report) -> SamplingView | None:
    found = report.growth
    if found is None:
        return None
    return SamplingView(
        is_on=found.is_on,
        spent_ratio=found.spent_ratio,
        allowed_ratio=found.allowed_ratio,
        notes=[words.text_of(note) for note in found.notes],
    )


def _view_backoff(report: Report) -> BackoffView | None:
    now = report.corrections
    if now is None or now.backoff_until_s <= report.now_s:
        return None
    return BackoffView(remaining_s=now.backoff_until_s - report.now_s, reason=words.text_of(now.backoff_reason))
