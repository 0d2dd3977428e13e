# SPDX-License-Identifier: Apache-2.0
"""The page of a bench shows every arm, measure and figure, and names of arms are no markup."""

import pytest

from memsculpt_bench import contract, page
from memsculpt_bench.command import BENCHES

ROUNDS = [{"wall_s": 1.5, "held_bytes": 3 << 20, "ok": True, "note": "x"}, {"wall_s": 2.5, "held_bytes": 5 << 20}]


@pytest.fixture
def result():
    figures = {
        "held_over_unlimited": contract.at_most(0.45, [0.5, 0.4, 0.3]),
        "missing": contract.at_least(4.0, []),
    }
    return contract.result("build", 2, {"a<b": ROUNDS, "columns": {"wall_s": [3.0, 5.0]}}, figures)


def test_rounds_and_columns_become_the_same_measures():
    assert page.columns_of(ROUNDS) == {"wall_s": [1.5, 2.5], "held_bytes": [float(3 << 20), float(5 << 20)]}
    assert page.columns_of({"wall_s": [3.0, float("nan")], "seed": 7}) == {"wall_s": [3.0]}


def test_a_page_tells_all(result):
    told = page.page(result)

    assert "a&lt;b" in told
    assert "a<b" not in told.replace("a&lt;b", "")
    assert "held, MiB" in told
    assert "4 <small>(3–5)</small>" in told
    assert "held_over_unlimited" in told
    assert "not measured" in told
    assert told.count("<span class=no>missed</span>") == 1
    assert "<svg" in told
    assert "http" not in told.split("<svg")[0]


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_every_bench_has_a_run_and_a_page(name):
    import importlib
    import inspect

    bench = BENCHES[name]
    run = importlib.import_module(f"memsculpt_bench.{bench.module}").run
    assert {"rounds", "quick", "say", *bench.options} == set(inspect.signature(run).parameters)
    assert callable(importlib.import_module(bench.page).page)
