# SPDX-License-Identifier: Apache-2.0
"""bench planning: the object it prints keeps the contract; how long it took is not a test's business."""

from memsculpt_bench import planning


def test_the_result_keeps_the_contract():
    """Every arm has its raw rounds, and every figure a value, a range, a bar and a verdict."""
    said: list[str] = []
    result = planning.run(rounds=2, quick=True, say=said.append)

    assert result["bench"] == "planning"
    assert result["rounds"] == 2
    assert len(said) == 2
    assert {len(arm["taken_ms"]) for arm in result["arms"].values()} == {2}
    assert set(result["figures"]) == {"divide_10000_ms", "divide_same_10000_ms", "plan_10000_ms"}
    for figure in result["figures"].values():
        assert set(figure) == {"value", "low", "high", "bar", "holds"}
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_the_measured_tick_is_a_real_one_with_nothing_to_do():
    """The planned host is divided among all its partitions, and its second tick moves nothing."""
    _, plan = planning._tick()()

    assert len(plan.division.names) == planning.COUNT
    assert plan.actions == ()
