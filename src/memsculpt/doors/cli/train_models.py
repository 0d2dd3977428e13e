# SPDX-License-Identifier: Apache-2.0
"""`memsculpt train --models` and `--store`: a model for each workload, each fitted in a worker of its own."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from memsculpt import workers
from memsculpt.agent.refitting import BOUNDS
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.cli import preparing
from memsculpt.doors.cli.profile_verbs import folder_of
from memsculpt.errors import Unavailable, WorkerFailed
from memsculpt.forecast import recorded, selection
from memsculpt.forecast.longterm import COVARIATES, KIND, RESOLUTION_S, Choice, Gate, History, history_from
from memsculpt.forecast.longterm.history import COVARIATES_MOST, MOST_POINTS
from memsculpt.profile.store import Store


def missing() -> dict[str, str] | None:
    """Return what is missing to fit models, and how to get it; None where nothing is."""
    if selection.is_available():
        return None
    return {"what": "statsforecast, which fits models to workloads, is not installed", "fix": selection.FIX}


def of_store(parsed: argparse.Namespace) -> dict[str, Any]:
    """Fit to the workloads of the profile store, and keep the models there, for the agent that starts next.

    Raises Refused while an agent owns the store: that fits by itself.
    """
    _check()
    folder = folder_of(parsed)
    gate = preparing.read_gate(folder, lambda line: print(words.printable(line), file=sys.stderr))
    settings = preparing.read_settings(parsed.config, is_named=parsed.config is not None)
    capacity_bytes = settings.capacity_of(preparing.total_memory_bytes())
    store = Store.open_to_write(folder, now_s=time.time())
    try:
        names = [one.id for one in store.workloads()]
        histories: dict[str, History] = {}
        for name in names:
            series = store.last(name, RESOLUTION_S)
            if len(series.values):
                histories[name] = history_from(series, capacity_bytes, COVARIATES if gate is None else gate.covariates)
        fits: list[dict[str, Any]] = []
        for name, found in _each(histories, gate, parsed.most):
            if isinstance(found, Choice):
                store.put(WorkloadId(name), KIND, found.to_bytes(), made_s=int(time.time()))
            fits.append(_told(name, found))
    finally:
        store.close()
    return {"store": str(folder), "models": fits}


def of_tables(parsed: argparse.Namespace, gate: Gate | None) -> dict[str, Any]:
    """Fit to the series of the tables, and write the models as JSON."""
    _check()
    histories: dict[str, History] = {}
    for path in parsed.files:
        table = recorded.read_table(path, capacity=parsed.capacity)
        for one in table.series:
            names = table.covariates[:COVARIATES_MOST] if gate is None else gate.covariates
            histories[one.name] = History(
                values=np.where(one.is_known, one.values, np.nan)[-MOST_POINTS:],
                covariates={name: one.covariates[name][-MOST_POINTS:] for name in names if name in one.covariates},
                step=int(one.steps[-1]),
                interval_s=parsed.interval,
                capacity=float(one.capacity[-1]),
            )
    fits = list(_each(histories, gate, parsed.most))
    kept = {name: json.loads(found.to_bytes()) for name, found in fits if isinstance(found, Choice)}
    beside = parsed.models.with_name(f".{parsed.models.name}.new")
    try:
        beside.write_text(json.dumps(kept, indent=1) + "\n")
        beside.replace(parsed.models)
    finally:
        beside.unlink(missing_ok=True)
    return {"out": str(parsed.models), "models": [_told(name, found) for name, found in fits]}


def in_words(told: dict[str, Any]) -> str:
    """Return what came of it for people: who got a model, and how many did not."""
    models = told["models"]
    lines = [
        f"  {words.text_of(one['series'])}: {one['form']}, {one['trust']:.0%} of its path; "
        f"loss {one['gain_ratio']:.1%} lower than ours alone"
        for one in models
        if one["form"]
    ]
    failed = [f"  {words.text_of(one['series'])}: {one['problem']}" for one in models if one["problem"]]
    ours = len(models) - len(lines) - len(failed)
    where = told.get("out") or told["store"]
    return "\n".join(
        [
            f"models of {len(models)} workloads in {where}: {len(lines)} fitted, for {ours} ours is as good or better"
            + (f", {len(failed)} failed" if failed else ""),
            *lines,
            *failed,
        ]
    )


def _check() -> None:
    if (lacks := missing()) is not None:
        raise Unavailable(place="train", problem=lacks["what"], fix=lacks["fix"])


def _each(histories: dict[str, History], gate: Gate | None, most: int) -> Iterator[tuple[str, Choice | WorkerFailed]]:
    """Yield what came of each fit, of those first that used the most of late; one that fails costs itself alone."""
    day = 288

    def used(name: str) -> float:
        recent = histories[name].values[-day:]
        return -float(recent[np.isfinite(recent)].mean()) if np.isfinite(recent).any() else 0.0

    chosen = sorted(histories, key=lambda name: (used(name), name))[:most]
    for number, name in enumerate(chosen, start=1):
        if sys.stderr.isatty():
            sys.stderr.write(f"\rfitting {number} of {len(chosen)}")
            sys.stderr.write("\n" if number == len(chosen) else "")
            sys.stderr.flush()
        try:
            yield name, workers.run(BOUNDS, selection.select, histories[name], gate)
        except WorkerFailed as error:
            yield name, error


def _told(name: str, found: Choice | WorkerFailed) -> dict[str, Any]:
    if isinstance(found, WorkerFailed):
        return {
            "series": name,
            "form": "",
            "trust": 0.0,
            "gain_ratio": None,
            "note": "",
            "problem": f"{found.place}: {found.problem}",
        }
    return {
        "series": name,
        "form": found.form,
        "trust": found.trust,
        "gain_ratio": found.gain_ratio if np.isfinite(found.gain_ratio) else None,
        "note": found.note,
        "problem": "",
    }


__all__ = ["in_words", "missing", "of_store", "of_tables"]
