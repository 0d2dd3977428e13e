# SPDX-License-Identifier: Apache-2.0
"""GET /v1/plan: what the last tick decided, in order, and what it would have liked and did not do."""

from memsculpt.domain.plan import Division
from memsculpt.domain.report import Report
from memsculpt.doors.api.actions import view_applied, view_reason
from memsculpt.doors.api.schema import DivisionView, PlanView, ShareView


def view_plan(report: Report) -> PlanView:
    """Return the last tick's plan as it was applied or rehearsed."""
    chosen = report.plan
    return PlanView(
        mode=report.mode.value,
        age_s=None if chosen is None else max(0.0, report.now_s - chosen.made_at_s),
        division=None if chosen is None or chosen.division is None else _view_division(chosen.division),
        actions=[view_applied(report, one) for one in report.planned],
        held_back=[] if chosen is None else [view_reason(reason) for reason in chosen.held_back],
    )


def _view_division(division: Division) -> DivisionView:
    columns = zip(
        division.names,
        division.used_bytes.tolist(),
        division.needed_bytes.tolist(),
        division.size_bytes.tolist(),
        division.shortfall_ratio.tolist(),
        strict=True,
    )
    return DivisionView(
        capacity_bytes=division.capacity_bytes,
        multiplier=division.multiplier,
        shares=[
            ShareView(name=name, used_bytes=used, needed_bytes=needed, size_bytes=size, shortfall_ratio=shortfall)
            for name, used, needed, size, shortfall in columns
        ],
    )
