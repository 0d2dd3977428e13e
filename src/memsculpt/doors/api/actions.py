# SPDX-License-Identifier: Apache-2.0
"""GET /v1/actions and /v1/actions/{id}: what was done, why, and what came of it."""

from memsculpt import plan
from memsculpt.domain.outcome import Applied
from memsculpt.domain.plan import (
    Action,
    CreateCgroup,
    MoveProcess,
    PageIn,
    PageOut,
    Reason,
    Reclaim,
    SculptPool,
    SetBalloon,
    SetLimit,
    SetSharing,
)
from memsculpt.domain.report import Report
from memsculpt.domain.units import format_bytes, format_duration_s
from memsculpt.doors import words
from memsculpt.doors.api.resource import NotFound
from memsculpt.doors.api.schema import ActionsView, ActionView, AppliedView, ExplanationView, OutcomeView, ReasonView

KINDS: dict[type[Action], str] = {
    PageOut: "page-out",
    PageIn: "page-in",
    Reclaim: "reclaim",
    SculptPool: "sculpt-pool",
    SetLimit: "set-limit",
    SetBalloon: "set-balloon",
    CreateCgroup: "create-cgroup",
    MoveProcess: "move-process",
    SetSharing: "set-sharing",
}


def view_actions(report: Report, *, most: int | None = None) -> ActionsView:
    """Return the most recent actions, newest first, at most `most` of them."""
    return ActionsView(
        counts=dict(report.applied_counts),
        plan_count=report.plan_count,
        recent=[view_applied(report, one) for one in report.applied[::-1][:most]],
        outcomes=[_view_outcome(report, one.action_id) for one in report.outcomes[::-1][:most]],
    )


def view_explanation(report: Report, action_id: int) -> ExplanationView:
    """Return one action with everything that is known of it.

    Raises NotFound when it never was, or was too long ago.
    """
    found = next((one for one in (*report.applied, *report.planned) if one.action_id == action_id), None)
    if found is None:
        raise NotFound(
            place=f"action {action_id}",
            problem="is not among the most recent ones",
            fix="list those with `memsculpt explain`",
        )
    has_outcome = any(one.action_id == action_id for one in report.outcomes)
    outcome = _view_outcome(report, action_id) if has_outcome else None
    lines = [plan.explain_action(found.action), _went(found)]
    if outcome is not None:
        promised, came = format_bytes(outcome.promised_bytes), format_bytes(outcome.came_bytes)
        lines.append(f"it promised {promised}, and {came} came: {outcome.verdict}")
    return ExplanationView(applied=view_applied(report, found), explanation=lines, outcome=outcome)


def view_applied(report: Report, one: Applied) -> AppliedView:
    """Return one action as it went."""
    return AppliedView(
        id=one.action_id,
        status=one.status.value,
        age_s=max(0.0, report.now_s - one.at_s),
        done_bytes=one.done_bytes,
        duration_s=one.duration_s,
        cpu_s=one.cpu_s,
        problem=words.text_of(one.problem),
        action=view_action(one.action, report.now_s),
    )


def view_action(action: Action, now_s: float) -> ActionView:
    """Return one action: what it does to whom, and why."""
    view = ActionView(
        kind=KINDS[type(action)],
        partition=action.partition,
        text=plan.explain_action(action),
        reason=view_reason(action.reason),
    )
    if isinstance(action, PageOut | PageIn | SculptPool):
        view.workload = words.text_of(action.workload)
        view.pid = action.process.pid
        view.size_bytes = action.size_bytes
    elif isinstance(action, MoveProcess):
        view.cgroup, view.to_cgroup = words.text_of(action.from_cgroup), words.text_of(action.to_cgroup)
        view.pid = action.process.pid
        view.size_bytes = action.charged_bytes
    elif isinstance(action, SetSharing):
        view.size_bytes = action.size_bytes
    elif isinstance(action, SetBalloon):
        view.workload = words.text_of(action.workload)
        view.pid = action.process.pid
    else:
        view.cgroup = words.text_of(action.cgroup)
    if isinstance(action, Reclaim):
        view.size_bytes = action.size_bytes
    if isinstance(action, SetLimit | SetBalloon):
        view.from_bytes, view.to_bytes = action.from_bytes, action.to_bytes
    if isinstance(action, SetLimit):
        view.limit = action.kind.value
        view.lift_in_s = None if action.lift_at_s is None else max(0.0, action.lift_at_s - now_s)
    return view


def view_reason(reason: Reason) -> ReasonView:
    """Return a reason with its sentence filled in."""
    figures = {name: float(value) for name, value in reason.figures.items()}
    return ReasonView(code=reason.code, text=plan.explain_reason(reason), figures=figures)


def _view_outcome(report: Report, action_id: int) -> OutcomeView:
    one = next(outcome for outcome in report.outcomes if outcome.action_id == action_id)
    return OutcomeView(
        action_id=one.action_id, promised_bytes=one.promised_bytes, came_bytes=one.came_bytes, verdict=one.verdict
    )


def _went(one: Applied) -> str:
    line = f"{one.status.value}: {format_bytes(one.done_bytes)} in {format_duration_s(one.duration_s)}"
    return f"{line}; {words.text_of(one.problem)}" if one.problem else line
