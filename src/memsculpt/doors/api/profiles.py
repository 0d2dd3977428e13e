# SPDX-License-Identifier: Apache-2.0
"""GET /v1/profiles: what lasts of each workload, read from the store beside the agent that writes it."""

from pathlib import Path

from memsculpt.domain.report import Report
from memsculpt.domain.series import NAMES, RESOLUTIONS_S
from memsculpt.doors import words
from memsculpt.doors.api.schema import ProfilesView, ProfileView, VersionView
from memsculpt.errors import MemsculptError
from memsculpt.profile.store import NAME, Kept, Reader, find_set_aside


def view_profiles(report: Report) -> ProfilesView:
    """Return who is in the store; a store that cannot be read is told of, not an error of the API."""
    folder = Path(report.settings.state)
    kept: list[Kept] = []
    problem, file_bytes = "", None
    try:
        reader = Reader.open(folder)
        try:
            kept = reader.workloads()
            file_bytes = reader.path.stat().st_size
        finally:
            reader.close()
    except (MemsculptError, OSError) as error:
        problem = error.problem if isinstance(error, MemsculptError) else str(error)
    return ProfilesView(
        path=words.text_of(str(folder / NAME)),
        file_bytes=file_bytes,
        problem=words.text_of(problem),
        resolutions_s=list(RESOLUTIONS_S),
        metrics=list(NAMES),
        profiles=[_view(one) for one in kept],
        set_aside=[words.text_of(one.name) for one in find_set_aside(folder)],
    )


def _view(one: Kept) -> ProfileView:
    return ProfileView(
        id=words.text_of(one.id),
        first_s=one.first_s,
        last_s=one.last_s,
        stored_bytes=one.stored_bytes,
        versions=[VersionView(kind=each.kind, number=each.number, made_s=each.made_s) for each in one.versions],
    )
