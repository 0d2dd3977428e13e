# SPDX-License-Identifier: Apache-2.0
"""GET /v1/profiles: what lasts, and a store that is not there or broken is told of, not an error."""

from dataclasses import replace

from memsculpt.doors.api.profiles import view_profiles
from tests.profile import shelf
from tests.profile.shelf import BEGIN_S, REDIS


def kept_at(report, folder):
    return replace(report, settings=replace(report.settings, state=str(folder)))


def test_who_is_in_the_store_is_told(scene, tmp_path):
    shelf.filled(tmp_path, hours=1, minutes=2)
    told = view_profiles(kept_at(scene.report, tmp_path))
    redis = next(one for one in told.profiles if one.id == REDIS)
    assert told.problem == ""
    assert told.file_bytes > 0
    assert redis.first_s == BEGIN_S
    assert [(one.kind, one.number) for one in redis.versions] == [("model", 2)]
    assert "\udcff" not in "".join(one.id for one in told.profiles)


def test_a_store_that_is_not_there_or_broken_is_no_error(scene, tmp_path):
    assert "no profile store" in view_profiles(kept_at(scene.report, tmp_path)).problem
    (tmp_path / "profile.db").write_bytes(b"no store")
    (tmp_path / "profile.db.corrupt-20260101T000000Z").write_bytes(b"nor this")
    told = view_profiles(kept_at(scene.report, tmp_path))
    assert "broken" in told.problem
    assert told.profiles == []
    assert told.set_aside == ["profile.db.corrupt-20260101T000000Z"]
