# SPDX-License-Identifier: Apache-2.0
"""`sharing` of GET /v1/status: identical pages of trusting VMs."""

from memsculpt.domain.report import Report
from memsculpt.domain.sharing import Group
from memsculpt.doors import words
from memsculpt.doors.api.schema import SharingView, TrustGroupView


def view_sharing(report: Report) -> SharingView | None:
    """Return what is merged, and what would be; None without a trust group."""
    found = report.sharing
    if found is None:
        return None
    forecast = found.forecast
    return SharingView(
        phase=found.phase.value,
        group=words.text_of(found.group) or None,
        saved_bytes=found.saved_bytes,
        forecast_bytes=None if forecast is None else forecast.size_bytes,
        forecast_low_bytes=None if forecast is None else forecast.low_bytes,
        forecast_high_bytes=None if forecast is None else forecast.high_bytes,
        cpu_ratio=found.cpu_ratio,
        reason=words.text_of(found.reason),
        groups=[_view(one) for one in found.groups],
    )


def _view(group: Group) -> TrustGroupView:
    total = None if group.gain is None else group.gain.total
    return TrustGroupView(
        name=words.text_of(group.name),
        vms=[words.text_of(one.name) for one in group.members],
        gain_bytes=None if total is None else total.size_bytes,
        gain_low_bytes=None if total is None else total.low_bytes,
        gain_high_bytes=None if total is None else total.high_bytes,
        looked_ratio=group.looked_ratio,
    )
