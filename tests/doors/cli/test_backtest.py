# SPDX-License-Identifier: Apache-2.0
"""`backtest` and `train` on small tables that the tests write."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memsculpt.domain.series import METRICS, NAMES, Series
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors.cli.command_line import main
from memsculpt.forecast.baselines import BASELINES
from memsculpt.forecast.longterm import choice_from_bytes
from memsculpt.profile.store import Reader, Store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def table(tmp_path):
    """Four workloads with a daily rhythm, three of them for eight days; the fourth never moves."""
    chance = np.random.default_rng(7)
    ids, steps, values = [], [], []
    for number in range(4):
        at = np.arange(2304 if number < 3 else 700)
        wave = 100.0 * (1.5 + np.sin(2 * np.pi * (at + 40 * number) / 288)) + 5.0 * chance.random(len(at))
        ids += [f"w{number}"] * len(at)
        steps += at.tolist()
        values += (wave if number < 3 else np.full(len(at), 50.0)).tolist()
    path = tmp_path / "waves.parquet"
    pq.write_table(pa.table({"series_id": ids, "step": steps, "value": values}), path)
    return path


def test_the_forecaster_is_scored_beside_others(table, tmp_path, capfd):
    page = tmp_path / "page.html"
    assert main(["backtest", str(table), "--capacity", "300", "--origins", "6", "--html", str(page), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    (one,) = told["files"]
    assert (one["series"], one["left_out"], one["value"]) == (3, 1, "value")
    assert set(one["methods"]) == {"memsculpt", *BASELINES}
    ours, last = one["methods"]["memsculpt"], one["methods"]["last value"]
    assert ours["windows"] == last["windows"] == 18
    assert ours["mase"]["12"] < last["mase"]["12"]  # a daily rhythm is there to be found
    assert 0.0 <= ours["violated_ratio"] <= 0.2
    assert [at["risk"] for at in ours["at_risk"]] == [0.01, 0.05]
    text = page.read_text()
    assert "<svg" in text
    assert "waves.parquet" in text


def test_people_get_a_table(table, capfd):
    assert main(["backtest", str(table), "--origins", "2", "--series", "1", "--alone"]) == 0
    told = capfd.readouterr().out
    assert "FORECASTER" in told
    assert "memsculpt" in told
    assert "last value" not in told


def test_wrong_input_is_named(tmp_path, capfd):
    path = tmp_path / "short.parquet"
    pq.write_table(pa.table({"series_id": ["a"], "step": [1], "value": [1.0]}), path)
    assert main(["backtest", str(path)]) == 1
    assert "none of its 1 series has 600 known values" in capfd.readouterr().err
    assert main(["backtest", str(path), "--value", "rss"]) == 2
    assert main(["backtest", str(path), "--gate", str(tmp_path / "absent")]) == 2
    (tmp_path / "gate").write_bytes(b"no gate")
    assert main(["backtest", str(path), "--gate", str(tmp_path / "gate")]) == 1
    assert "is no gate" in capfd.readouterr().err


def test_training_says_what_is_missing_and_leaves_nothing(tmp_path, capfd):
    """Too little to learn from is an answer, and leaves no half-written file."""
    path = tmp_path / "short.parquet"
    pq.write_table(pa.table({"series_id": ["a"], "step": [1], "value": [1.0]}), path)
    out = tmp_path / "my.gate"
    assert main(["train", str(path), "--out", str(out)]) in {1, 3}
    told = capfd.readouterr().err
    assert "too few to learn from" in told
    assert list(tmp_path.glob("*gate*")) == []
    assert main(["train", str(path), "--out", str(tmp_path / "no" / "folder")]) == 1


def test_training_that_names_nothing_is_wrong_usage(table, tmp_path, capfd):
    assert main(["train"]) == 2
    assert main(["train", str(table)]) == 2
    assert main(["train", "--out", str(tmp_path / "gate")]) == 2
    assert main(["train", str(table), "--models", str(tmp_path / "m"), "--most", "0"]) == 2
    assert "1 or more" in capfd.readouterr().err


@pytest.mark.timeout(300)  # a worker gives way to everybody
@pytest.mark.needs("model_fitting")
def test_models_of_a_table_are_written(table, tmp_path, capfd):
    """One worker for each series, the largest first; what came of each is told."""
    out = tmp_path / "models.json"
    assert main(["train", str(table), "--models", str(out), "--most", "1"]) == 0
    assert "models of 1 workloads" in capfd.readouterr().out
    (name,) = json.loads(out.read_text())
    assert name in {"w0", "w1", "w2"}  # the fourth uses less


@pytest.mark.timeout(300)  # a worker gives way to everybody
@pytest.mark.needs("model_fitting")
def test_models_of_the_store_are_kept_there(tmp_path, capfd):
    values = np.zeros((1500, len(METRICS)))
    values[:, NAMES.index("needed_peak_bytes")] = 2**20 * (100.0 + np.arange(1500) % 288)
    series = Series(
        workload=WorkloadId("w"),
        resolution_s=300,
        start_s=1_800_000_000,
        values=values,
        is_valid=np.ones(values.shape, bool),
    )
    store = Store.open_to_write(tmp_path, now_s=0.0)
    store.insert([series])
    assert main(["train", "--store", "--state", str(tmp_path)]) == 1  # an agent, here we, owns it
    store.close()
    assert main(["train", "--store", "--state", str(tmp_path), "--json"]) == 0
    (told,) = json.loads(capfd.readouterr().out)["fitted_in_store"]["models"]
    assert (told["series"], told["problem"]) == ("w", "")
    reader = Reader.open(tmp_path)
    found = choice_from_bytes(reader.get(WorkloadId("w"), "model"))
    reader.close()
    assert found.made_step == 1_800_000_000 // 300 + 1499


def test_without_statsforecast_the_lack_is_told(table, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "statsforecast", None)  # as if it were not installed
    models = tmp_path / "models"
    assert main(["train", str(table), "--models", str(models)]) == 3
    told = capfd.readouterr().out
    assert "statsforecast" in told
    assert "pip install 'memsculpt[fit]'" in told
    assert not models.exists()
