# SPDX-License-Identifier: Apache-2.0
"""Tables of recorded series: read as they are meant, refused with the column's name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memsculpt.errors import UsageError
from memsculpt.forecast import recorded


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_series_are_told_apart_and_ordered(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        series_id=["b", "a", "a", "b"],
        step=[1, 2, 1, 2],
        mem_used_mib=[30.0, 2.0, 1.0, 40.0],
        cpu_pct=[1.0, 2.0, 3.0, None],
        comment=["x", "y", "z", "w"],
    )
    table = recorded.read_table(path)
    assert (table.value, table.covariates) == ("mem_used_mib", ("cpu_pct",))
    first, second = table.series
    assert (first.name, second.name) == ("a", "b")
    assert first.values.tolist() == [1.0, 2.0]
    assert second.values.tolist() == [30.0, 40.0]
    assert second.covariates["cpu_pct"].tolist() == [1.0, 1.0]
    assert second.capacity.tolist() == [40.0, 40.0]


def test_gaps_and_nonsense_are_not_known(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        series_id=["a"] * 5,
        step=[1, 2, 5, 6, 7],
        value=[5.0, float("nan"), 7.0, -1.0, 9.0],
    )
    (one,) = recorded.read_table(path).series
    assert one.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert one.is_known.tolist() == [True, False, False, False, True, False, True]
    assert one.values.tolist() == [5.0, 5.0, 5.0, 5.0, 7.0, 7.0, 9.0]


def test_a_capacity_of_zero_is_a_machine_that_is_off(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        series_id=["a"] * 4,
        step=[0, 1, 2, 3],
        mem_used_mib=[50.0, 50.0, 80.0, 20.0],
        mem_cap_mib=[100.0, 0.0, 60.0, 60.0],
    )
    (one,) = recorded.read_table(path).series
    assert one.is_known.tolist() == [True, False, True, True]
    assert one.capacity.tolist() == [100.0, 100.0, 100.0, 100.0]
    (other,) = recorded.read_table(path, capacity="40").series
    assert other.capacity.tolist() == [40.0] * 4


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"series": ["a"], "step": [1], "value": [1.0]}, {}, "has no column series_id; it has series, step, value"),
        ({"series_id": ["a"], "value": [1.0]}, {}, "has no column step"),
        ({"series_id": ["a"], "step": [1]}, {}, "no column with values"),
        ({"series_id": ["a"], "step": [1], "value": ["much"]}, {}, "holds string, not numbers"),
        ({"series_id": ["a"], "step": [1], "value": [1.0]}, {"value": "rss"}, "is no column of it"),
        (
            {"series_id": ["a"], "step": [1], "value": [1.0]},
            {"capacity": "huge"},
            "neither a column of it nor a number",
        ),
        ({"series_id": ["a", "a"], "step": [1, 10**9], "value": [1.0, 2.0]}, {}, "has 2 rows on 1000000000 steps"),
        ({"series_id": ["a", "a"], "step": [1.0, None], "value": [1.0, 2.0]}, {}, "rows without a step"),
    ],
)
def test_wrong_tables_are_refused_by_name(tmp_path, columns, options, said):
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(UsageError) as caught:
        recorded.read_table(path, **options)
    assert said in str(caught.value)
    assert caught.value.fix


def test_a_file_that_was_cut_short_says_so(tmp_path):
    path = write(tmp_path / "a.parquet", series_id=["a"] * 100, step=list(range(100)), value=[1.0] * 100)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="no whole Parquet file"):
        recorded.read_table(path)
    with pytest.raises(UsageError, match="no whole Parquet file"):
        recorded.read_table(str(tmp_path / "absent.parquet"))
    assert not recorded.is_there(str(tmp_path / "absent.parquet"))
    assert recorded.is_there(path)


def test_only_series_that_move_are_scored(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        series_id=["moves"] * 700 + ["stands"] * 700 + ["short"] * 20,
        step=[*range(700), *range(700), *range(20)],
        value=[*np.arange(700.0), *[5.0] * 700, *np.arange(20.0)],
    )
    assert [one.name for one in recorded.usable(recorded.read_table(path).series, 600)] == ["moves"]
