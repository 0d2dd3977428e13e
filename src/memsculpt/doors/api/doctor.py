# SPDX-License-Identifier: Apache-2.0
"""GET /v1/doctor: what this machine offers, as the agent found it."""

from memsculpt.domain.report import Report
from memsculpt.doors import words
from memsculpt.doors.api.schema import CapabilityView, DoctorView


def view_doctor(report: Report) -> DoctorView:
    """Return every capability with its reason."""
    return DoctorView(
        host=report.host_name,
        capabilities=[
            CapabilityView(
                name=one.name, available=one.available, reason=words.text_of(one.reason), fix=words.text_of(one.fix)
            )
            for one in report.capabilities
        ],
    )
