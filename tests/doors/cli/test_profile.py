# SPDX-License-Identifier: Apache-2.0
"""`memsculpt profile`: what the store holds is told, leaves as Parquet and comes back; nonsense is said to be that."""

import json
import os
import shutil
from pathlib import Path

import pytest

from memsculpt.doors.cli.command_line import main
from memsculpt.profile.store import Reader
from tests.profile import shelf
from tests.profile.shelf import BEGIN_S, ODD, REDIS

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Path:
    return shelf.filled(tmp_path_factory.mktemp("state")).parent


def told(capsys, *words: str | Path, code: int = 0) -> dict:
    assert main(["profile", *map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def said(capsys, *words: str | Path, code: int = 0) -> str:
    assert main(["profile", *map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_list_tells_who_is_there_and_since_when(state, capsys):
    found = told(capsys, "list", "--state", state)
    redis = next(one for one in found["workloads"] if one["id"] == REDIS)
    assert len(found["workloads"]) == 2
    assert redis["first_s"] == BEGIN_S
    assert redis["last_s"] == BEGIN_S + 2 * 3600 + 1200
    assert [(one["kind"], one["number"]) for one in redis["versions"]] == [("model", 2)]
    words = said(capsys, "list", "--state", state)
    assert REDIS in words
    assert "\udcff" not in words


def test_show_finds_a_workload_by_a_part_of_its_name(state, capsys):
    found = told(capsys, "show", "redis", "--span", "1h", "--resolution", "10s", "--state", state)
    assert found["workload"] == REDIS
    assert found["resolution_s"] == 10
    assert found["sample_count"] == len(found["metrics"]["needed_bytes"]) == 360
    assert found["summary"]["needed_bytes"]["known_ratio"] == 1.0
    assert len(found["hours_of_week"]) == 7 * 24
    assert "needed_bytes" in said(capsys, "show", "redis", "--state", state)


def test_diff_compares_two_spans_and_two_workloads(state, capsys):
    earlier = told(capsys, "diff", "redis", "--span", "1h", "--back", "1h", "--state", state)
    assert earlier["after"]["start_s"] - earlier["before"]["start_s"] == 3600
    assert {one["metric"] for one in earlier["metrics"]} >= {"needed_bytes", "cpu_ratio"}
    same = told(capsys, "diff", "redis", "opt", "--span", "1h", "--state", state)
    assert all(one["change_ratio"] in {0.0, None} and not one["stands_out"] for one in same["metrics"])
    assert "MEDIAN BEFORE" in said(capsys, "diff", "redis", "--span", "10min", "--state", state)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "nobody"],
        ["show", "e"],  # several have it
        ["show", "redis", "--resolution", "7s"],
        ["show", "redis", "--span", "soon"],
        ["diff", "redis", "nobody"],
        ["frobnicate"],
        [],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_wrong_usage(words, state, capsys):
    arguments = [*words, "--state", str(state)] if words[:1] not in ([], ["frobnicate"]) else words
    error = told(capsys, *arguments, code=2)["error"]
    assert error["problem"]
    assert error["fix"]


def test_where_there_is_no_store_it_is_not_possible(tmp_path, capsys):
    for verb in (["list"], ["show", "redis"], ["export", str(tmp_path / "it")], ["check"]):
        assert "no profile store" in said(capsys, *verb, "--state", tmp_path, code=3)
    assert os.listdir(tmp_path) == []


def test_check_tells_what_is_whole_and_what_was_set_aside(state, tmp_path, capsys):
    copied = tmp_path / "state"
    shutil.copytree(state, copied)
    (copied / "profile.db.corrupt-20260101T000000Z").write_bytes(b"old")
    found = told(capsys, "check", "--state", copied)
    assert found["whole"] is True
    assert len(found["set_aside"]) == 1
    content = bytearray((copied / "profile.db").read_bytes())
    for at in range(len(content) // 2, len(content), 997):
        content[at] ^= 0x55
    (copied / "profile.db").write_bytes(content)
    found = told(capsys, "check", "--state", copied, code=1)
    assert found["problems"]
    (copied / "profile.db").write_bytes(b"not at all")
    assert told(capsys, "check", "--state", copied, code=1)["whole"] is False


def test_doctor_tells_of_the_store(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["capabilities"]
    (fact,) = [one for one in found if one["name"] == "profile_store"]
    assert "profile.db" in fact["reason"]


def test_a_picture_is_drawn(state, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "redis.png"
    said(capsys, "show", "redis", "--png", picture, "--state", state)
    assert picture.read_bytes().startswith(b"\x89PNG")


class TestParquet:
    """Export and import, which need pyarrow."""

    @pytest.fixture(autouse=True)
    def parquet(self):
        self.parquet = pytest.importorskip("pyarrow.parquet")
        self.arrow = pytest.importorskip("pyarrow")

    def test_what_leaves_comes_back(self, state, tmp_path, capsys):
        """Samples at every resolution to the code, versions byte by byte, names that are no text."""
        file, other = tmp_path / "all.parquet", tmp_path / "other"
        out = told(capsys, "export", file, "--state", state)
        back = told(capsys, "import", file, "--state", other)
        assert out["sample_count"] == back["sample_count"] > 2 * 3600
        assert out["version_count"] == back["version_count"] == 2
        before, after = Reader.open(state), Reader.open(other)
        for workload in (REDIS, ODD):
            for resolution_s in (1, 10, 60, 300, 3600):
                one, two = (reader.last(workload, resolution_s, 20_000) for reader in (before, after))
                assert one.start_s == two.start_s
                assert (one.is_valid == two.is_valid).all()
                assert (one.values == two.values).all()
        assert after.get(REDIS, "model") == before.get(REDIS, "model")
        assert after.check() == []
        before.close()
        after.close()

    def test_other_tools_read_it(self, state, tmp_path, capsys):
        file = tmp_path / "one.parquet"
        told(capsys, "export", file, "--workload", "redis", "--state", state)
        table = self.parquet.read_table(file)
        assert set(table["workload"].to_pylist()) == {REDIS.encode()}
        assert table.schema.field("needed_bytes").type == self.arrow.float64()

    def test_a_file_cut_short_is_said_to_be_that(self, state, tmp_path, capsys):
        file, other = tmp_path / "all.parquet", tmp_path / "other"
        told(capsys, "export", file, "--state", state)
        content = file.read_bytes()
        for keep in (0, 3, 100, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:keep])
            assert "cut short" in said(capsys, "import", file, "--state", other, code=1)
        assert not other.exists()

    def test_a_table_with_the_wrong_columns_is_refused_by_name(self, state, tmp_path, capsys):
        file = tmp_path / "all.parquet"
        told(capsys, "export", file, "--state", state)
        table = self.parquet.read_table(file)
        wrong = table.drop_columns(["cpu_ratio"]).append_column("cpu", table["cpu_ratio"])
        wrong = wrong.set_column(1, "resolution_s", table["resolution_s"].cast("string"))
        self.parquet.write_table(wrong, file)
        words = said(capsys, "import", file, "--state", tmp_path / "other", code=1)
        assert "lacks cpu_ratio" in words
        assert "has cpu, which is unknown" in words
        assert "resolution_s is string instead of int32" in words
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize(
        ("column", "value", "problem"),
        [
            ("workload", None, "no workload"),
            ("resolution_s", 7, "resolution"),
            ("time", -1000, "time"),
            ("time", None, "time"),
            ("kind", "nonsense", "kind"),
        ],
    )
    def test_a_row_that_no_store_can_hold_is_named(self, column, value, problem, state, tmp_path, capsys):
        file = tmp_path / "all.parquet"
        told(capsys, "export", file, "--state", state)
        table = self.parquet.read_table(file)
        place = table.schema.get_field_index(column)
        values = table[column].cast("int64").to_pylist() if column == "time" else table[column].to_pylist()
        values[5] = value
        field = table.schema.field(place)
        column_type = self.arrow.int64() if column == "time" else field.type
        changed = self.arrow.array(values, column_type).cast(field.type)
        self.parquet.write_table(table.set_column(place, field, changed), file)
        words = said(capsys, "import", file, "--state", tmp_path / "other", code=1)
        assert "row 5" in words
        assert problem in words
        assert not (tmp_path / "other").exists()

    def test_nan_infinity_and_negative_values_are_taken_as_they_are(self, state, tmp_path, capsys):
        file, other = tmp_path / "all.parquet", tmp_path / "other"
        told(capsys, "export", file, "--workload", "redis", "--state", state)
        table = self.parquet.read_table(file)
        place = table.schema.get_field_index("cold_bytes")
        values = [(-8192.0, float("nan"), float("inf"), None)[row % 4] for row in range(table.num_rows)]
        self.parquet.write_table(table.set_column(place, table.schema.field(place), self.arrow.array(values)), file)
        told(capsys, "import", file, "--state", other)
        reader = Reader.open(other)
        found, is_known = reader.last(REDIS, 1, 8).column("cold_bytes")
        assert set(found[is_known].tolist()) == {-8192.0}
        assert is_known.sum() == 2
        reader.close()

    def test_a_store_in_use_is_not_written(self, state, tmp_path, capsys):
        file = tmp_path / "all.parquet"
        told(capsys, "export", file, "--state", state)
        writer = shelf.Store.open_to_write(tmp_path / "other", now_s=BEGIN_S)
        assert "another memsculpt" in said(capsys, "import", file, "--state", tmp_path / "other", code=1)
        writer.close()

    def test_a_place_that_cannot_be_written_is_said(self, state, capsys):
        assert "cannot be written" in said(capsys, "export", "/nowhere/it.parquet", "--state", state, code=1)
        assert "cannot be read" in said(capsys, "import", "/nowhere/it.parquet", "--state", state, code=1)
