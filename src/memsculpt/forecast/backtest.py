# SPDX-License-Identifier: Apache-2.0
"""The engine on recorded series: what a tool calls that scores forecasters.

`forecast` takes a history and returns quantiles; `fit` trains a gate on recorded series, which `forecast` then uses, as
the agent uses the one in its profile store.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from memsculpt.domain.arrays import Float64, Int64
from memsculpt.forecast.longterm import LEVELS, PEAK_STEPS, STEPS, Gate, History, look_ahead

if TYPE_CHECKING:
    from memsculpt.forecast import fitting

# Grid and capacity of the recorded sets that tools name; a table does not tell them.
SETS: dict[str, tuple[float, str]] = {
    "vms": (300.0, "mem_cap_mib"),
    "containers": (57.0, "1"),
    "machines": (300.0, "100"),
}

_trained: list[Gate] = []


def forecast(
    y: Float64,
    horizon: int,
    quantiles: tuple[float, ...],
    *,
    interval_s: float,
    capacity: float,
    covariates: Mapping[str, Float64],
    steps: Int64,
) -> dict[str, Any]:
    """Return `path`, shape (levels, horizon), and `peak`, shape (levels,): quantiles of the peak over 12 points.

    `y` is the history, oldest first, in any unit; `steps` numbers its points on the grid of `interval_s` seconds.
    Raises ValueError for other levels than 0.5, 0.9 and 0.99 or more than 36 points.
    """
    if tuple(quantiles) != LEVELS or not 1 <= horizon <= STEPS:
        raise ValueError(f"levels are {LEVELS}, and a horizon is 1 to {STEPS} points, not {quantiles} and {horizon}")
    outlook = look_ahead(
        History(
            values=y,
            covariates=covariates,
            step=int(steps[-1]) if len(steps) else 0,
            interval_s=interval_s,
            capacity=capacity,
        ),
        _trained[-1] if _trained else None,
    )
    return {"path": outlook.path[:, :horizon], "peak": outlook.peak}


def fit(train_dir: str, set_name: str, *, on_progress: Callable[[int, int], None] | None = None) -> Gate:
    """Train on `train_dir/set_name.parquet`, and have `forecast` use what was learnt, in this process and its children.

    A part of the other known sets in the folder is learnt from, too: of a few dozen series alone one learns little. A
    set that is not in SETS is taken to be on a grid of 5 minutes, its capacity to be its largest value. Raises
    UsageError (no such table), Refused (too little to learn from), Unavailable (pyarrow is missing).
    """
    from memsculpt.forecast import fitting, recorded

    beside = [
        source for name in SETS if name != set_name and recorded.is_there((source := _source(train_dir, name)).path)
    ]
    gate = fitting.fit_tables(_source(train_dir, set_name), beside, on_progress=on_progress)
    _trained[:] = [gate]
    return gate


def _source(train_dir: str, set_name: str) -> "fitting.Source":
    from memsculpt.forecast import fitting

    interval_s, capacity = SETS.get(set_name, (300.0, None))
    return fitting.Source(path=f"{train_dir}/{set_name}.parquet", interval_s=interval_s, capacity=capacity)


def use(gate: Gate | None) -> None:
    """Have `forecast` use this gate from now on; None: the prior."""
    _trained[:] = [] if gate is None else [gate]


__all__ = ["PEAK_STEPS", "fit", "forecast", "use"]
