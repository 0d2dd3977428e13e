# SPDX-License-Identifier: Apache-2.0
"""The division: promises hold, nothing is left idle, and nobody is worse off for somebody else's order or luck."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memsculpt.plan.partitions import Demand, divide, shortfall

PAGE = 4096
LEVELS = np.array([0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9995])


def demand(knots, weights, guarantee=None, floor=None, ceiling=None, tail=None, names=None) -> Demand:
    """Columns from lists of pages."""
    count = len(weights)
    weights = np.array(weights, np.float64)
    guarantee = np.array([0] * count if guarantee is None else guarantee, np.int64) * PAGE
    floor = guarantee if floor is None else np.array(floor, np.int64) * PAGE
    ceiling = np.array([1 << 40] * count if ceiling is None else ceiling, np.int64) * PAGE
    names = [f"p{row:03}" for row in range(count)] if names is None else names
    order = sorted(range(count), key=lambda row: (-weights[row], names[row]))
    return Demand(
        levels=LEVELS.copy(),
        knots_bytes=np.array(knots, np.float64).reshape(count, len(LEVELS)) * PAGE,
        tail_bytes=np.array([8.0] * count if tail is None else tail, np.float64) * PAGE,
        guarantee_bytes=guarantee.copy(),
        floor_bytes=np.maximum(floor, guarantee),
        ceiling_bytes=ceiling,
        weights=weights,
        giving_order=np.array(order, np.int64),
    )


@st.composite
def hosts(draw, most=12):
    """A demand whose guarantees fit, and a capacity; sizes in pages."""
    count = draw(st.integers(1, most))
    column = st.lists(st.integers(0, 2000), min_size=count, max_size=count)
    guarantee = draw(column)
    ceiling = [low + more for low, more in zip(guarantee, draw(column), strict=True)]
    floor = [min(low + more, high) for low, more, high in zip(guarantee, draw(column), ceiling, strict=True)]
    steps = draw(
        st.lists(
            st.lists(st.integers(0, 800), min_size=len(LEVELS), max_size=len(LEVELS)),
            min_size=count,
            max_size=count,
        )
    )
    weights = draw(st.lists(st.sampled_from([0.1, 1.0, 50.0, 100.0, 400.0, 1e6]), min_size=count, max_size=count))
    tail = draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))
    capacity = sum(guarantee) + draw(st.integers(0, 8000))
    knots = np.maximum(np.cumsum(steps, axis=1), np.array(floor)[:, np.newaxis])
    knots[:, 0] = floor
    made = demand(knots, weights, guarantee, floor, ceiling, tail)
    return made, capacity * PAGE


def changed(made: Demand, **columns) -> Demand:
    """The same demand with other columns."""
    kept = {name: getattr(made, name).copy() for name in made.__slots__}
    return Demand(**(kept | columns))


@given(host=hosts())
def test_promises_hold_and_nothing_is_left_idle(host):
    """Sizes are whole pages between guarantee and ceiling, and sum to the capacity unless ceilings forbid it."""
    made, capacity = host
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE).size_bytes

    assert (made.guarantee_bytes <= sizes).all()
    assert (sizes <= made.ceiling_bytes).all()
    assert (sizes % PAGE == 0).all()
    assert int(sizes.sum()) == min(capacity, int(made.ceiling_bytes.sum()))


@given(host=hosts())
def test_floors_hold_where_they_fit(host):
    """A floor is given up only when all floors together do not fit."""
    made, capacity = host
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE).size_bytes

    if int(made.floor_bytes.sum()) <= capacity:
        assert (made.floor_bytes <= sizes).all()


@given(host=hosts(), more=st.integers(0, 20_000))
def test_more_capacity_shrinks_nobody(host, more):
    """Extra memory makes no partition smaller."""
    made, capacity = host
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE).size_bytes
    richer = divide(made, capacity_bytes=capacity + more * PAGE, page_bytes=PAGE).size_bytes

    assert (sizes <= richer).all()


@given(host=hosts(), row=st.integers(0, 11), factor=st.floats(1.0, 1000.0))
def test_more_priority_never_gets_less(host, row, factor):
    """Raising one partition's weight does not make it smaller."""
    made, capacity = host
    row %= len(made.weights)
    weights = made.weights.copy()
    weights[row] *= factor
    order = np.array(sorted(range(len(weights)), key=lambda each: (-weights[each], each)), np.int64)
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE).size_bytes
    dearer = divide(changed(made, weights=weights, giving_order=order), capacity_bytes=capacity, page_bytes=PAGE)

    assert dearer.size_bytes[row] >= sizes[row]


@given(host=hosts(), seed=st.randoms(use_true_random=False))
def test_the_order_of_partitions_does_not_matter(host, seed):
    """Each partition gets the same bytes wherever its row stands, and λ is the same number."""
    made, capacity = host
    rows = list(range(len(made.weights)))
    seed.shuffle(rows)
    place = np.argsort(rows)
    shuffled = changed(
        made,
        **{name: getattr(made, name)[rows] for name in made.__slots__ if name not in ("levels", "giving_order")},
        giving_order=place[made.giving_order],
    )
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE)
    moved = divide(shuffled, capacity_bytes=capacity, page_bytes=PAGE)

    assert sizes.size_bytes[rows].tobytes() == moved.size_bytes.tobytes()
    assert sizes.multiplier == moved.multiplier


@given(host=hosts())
def test_the_marginal_cost_is_the_same_for_all_that_are_free_to_move(host):
    """Where floors fit and neither bound binds, weight times the chance of falling short is λ, to a page."""
    made, capacity = host
    assume(int(made.floor_bytes.sum()) <= capacity)
    sizes = divide(made, capacity_bytes=capacity, page_bytes=PAGE)
    free = (sizes.size_bytes > made.floor_bytes) & (sizes.size_bytes < made.ceiling_bytes)
    in_knots = sizes.size_bytes + PAGE < made.knots_bytes[:, -1]
    for row in np.flatnonzero(free & in_knots):
        one_page = np.zeros(len(made.weights), np.int64)
        one_page[row] = PAGE
        above = made.weights[row] * shortfall(made, sizes.size_bytes - one_page)[row]
        below = made.weights[row] * shortfall(made, sizes.size_bytes + one_page)[row]
        assert below <= sizes.multiplier * (1 + 1e-9) + 1e-12
        assert above >= sizes.multiplier * (1 - 1e-9) - 1e-12


@settings(max_examples=20)
@given(count=st.integers(1, 200), capacity=st.integers(0, 100_000))
def test_identical_partitions_differ_by_a_page_at_most(count, capacity):
    """Who is the same gets the same; the pages that are over go to the first by name."""
    made = demand([np.arange(len(LEVELS)) * 50.0] * count, [100.0] * count)
    sizes = divide(made, capacity_bytes=capacity * PAGE, page_bytes=PAGE).size_bytes // PAGE

    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(sizes) <= 0).all()
    assert int(sizes.sum()) == capacity


def test_a_fixed_partition_keeps_its_size():
    """Guarantee, floor and ceiling of a fixed partition are its size, whatever it needs."""
    made = demand(
        [[0, 900, 900, 900, 900, 900, 900, 900], [0, 10, 20, 30, 40, 50, 60, 70]],
        [100.0, 1.0],
        guarantee=[300, 0],
        ceiling=[300, 1 << 40],
    )
    sizes = divide(made, capacity_bytes=1000 * PAGE, page_bytes=PAGE).size_bytes // PAGE

    assert sizes.tolist() == [300, 700]


def test_four_times_the_priority_is_a_quarter_of_the_risk():
    """With the same demand and too little for both, the chances of falling short are as the weights' inverse."""
    knots = [0, 500, 750, 900, 950, 990, 999, 999.5]  # the quantile function of a uniform peak
    made = demand([knots, knots], [400.0, 100.0])
    sizes = divide(made, capacity_bytes=1600 * PAGE, page_bytes=PAGE)

    assert sizes.shortfall_ratio[1] == pytest.approx(4 * sizes.shortfall_ratio[0], rel=0.02)
    assert sizes.size_bytes.tolist() == [920 * PAGE, 680 * PAGE]


def test_spare_capacity_is_room_for_all():
    """Beyond all forecasts, the important one does not take everything: the others get room as well."""
    knots = [0, 100, 100, 100, 100, 100, 100, 100]
    made = demand([knots, knots], [400.0, 100.0], tail=[10, 10])
    sizes = divide(made, capacity_bytes=1200 * PAGE, page_bytes=PAGE).size_bytes // PAGE

    assert sizes.tolist() == [610, 590]  # two doublings of ten pages apart


def test_guarantees_above_the_capacity_are_refused():
    """What the configuration should have refused is named, not silently cut."""
    made = demand([np.zeros(len(LEVELS))] * 2, [1.0, 1.0], guarantee=[600, 600])

    with pytest.raises(ValueError, match="exceed the capacity"):
        divide(made, capacity_bytes=1000 * PAGE, page_bytes=PAGE)


def test_no_partitions_is_a_division_too():
    """A host on which nothing is configured has nothing to divide."""
    made = demand(np.zeros((0, len(LEVELS))), [])

    assert divide(made, capacity_bytes=1000 * PAGE, page_bytes=PAGE).size_bytes.shape == (0,)


def test_ten_thousand_partitions_are_divided_exactly():
    """The sum is exact, to the page, also where no two of ten thousand partitions are the same."""
    chance = np.random.default_rng(3)
    knots = np.cumsum(chance.integers(1, 5000, (10_000, len(LEVELS))), axis=1)
    made = demand(knots, chance.choice([1.0, 100.0, 400.0], 10_000))
    for part in (0.2, 0.6, 0.95, 3.0):
        capacity = int(knots[:, -1].sum() * part)
        assert int(divide(made, capacity_bytes=capacity * PAGE, page_bytes=PAGE).size_bytes.sum()) == capacity * PAGE


@pytest.mark.parametrize("levels", [[0.0], [0.1, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, 1.0]])
def test_levels_that_are_no_quantile_function_are_refused(levels):
    """Levels rise from 0 to below 1."""
    with pytest.raises(ValueError, match="levels must rise"):
        Demand(
            levels=np.array(levels),
            knots_bytes=np.zeros((1, len(levels))),
            tail_bytes=np.ones(1),
            guarantee_bytes=np.zeros(1, np.int64),
            floor_bytes=np.zeros(1, np.int64),
            ceiling_bytes=np.ones(1, np.int64),
            weights=np.ones(1),
            giving_order=np.zeros(1, np.int64),
        )
