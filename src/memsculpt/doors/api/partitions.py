# SPDX-License-Identifier: Apache-2.0
"""GET /v1/partitions: what each is promised, should have, uses, and will need."""

from memsculpt.domain.plan import Division
from memsculpt.domain.report import PartitionForecast, Report, sum_by_partition
from memsculpt.domain.settings import Kind, PartitionSettings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import Match
from memsculpt.doors import words
from memsculpt.doors.api.schema import ForecastView, PartitionsView, PartitionView


def view_partitions(report: Report) -> PartitionsView:
    """Return all partitions, in the order of the configuration."""
    return PartitionsView(partitions=list_partitions(report))


def list_partitions(report: Report) -> list[PartitionView]:
    """Return all partitions: the configured ones, then those that requests have created."""
    division = None if report.plan is None else report.plan.division
    known = {one.name: one for one in report.settings.partitions}
    created = () if division is None else tuple(name for name in division.names if name not in known)
    partitions = [*known.values(), *(PartitionSettings(name=name, match=Match()) for name in created)]
    forecast = report.partition_forecast or _forecast(report, tuple(one.name for one in partitions))
    return [_view(report, one, division, forecast) for one in partitions]


def _view(
    report: Report, one: PartitionSettings, division: Division | None, forecast: PartitionForecast | None
) -> PartitionView:
    row = None if division is None or one.name not in division.names else division.names.index(one.name)
    share = None if division is None or row is None else division
    seen = report.observation
    cgroups = () if seen is None else tuple(state for state in seen.cgroups if state.partition == one.name)
    limits = [state.limit_bytes for state in cgroups if state.limit_bytes < UNLIMITED_BYTES]
    ceiling = one.ceiling_bytes if seen is None else min(one.ceiling_bytes, seen.memory.total_bytes)
    planned = None if share is None or row is None else int(share.size_bytes[row])
    return PartitionView(
        name=one.name,
        kind=one.kind.value,
        guarantee_bytes=one.guarantee_bytes,
        size_bytes=_first(one.size_bytes if one.kind is Kind.FIXED else None, planned, one.guarantee_bytes),
        ceiling_bytes=ceiling,
        used_bytes=0 if share is None or row is None else int(share.used_bytes[row]),
        forecast=_forecast_of(one.name, forecast, report.settings.forecast.act_horizon_s),
        priority=one.priority,
        needed_bytes=None if share is None or row is None else int(share.needed_bytes[row]),
        shortfall_ratio=None if share is None or row is None else float(share.shortfall_ratio[row]),
        limit_bytes=sum(limits) if limits else None,
        swapped_bytes=sum(state.swapped_bytes for state in cgroups),
        cgroups=[words.text_of(state.cgroup) for state in cgroups],
        workloads=[] if seen is None else _members(one.name, seen.workloads.ids, seen.workloads.partitions),
    )


def _forecast(report: Report, names: tuple[str, ...]) -> PartitionForecast | None:
    if report.observation is None or report.forecasts is None:
        return None
    horizon_s = report.settings.forecast.act_horizon_s
    return sum_by_partition(report.observation, report.forecasts, names=names, horizon_s=horizon_s)


def _forecast_of(name: str, forecast: PartitionForecast | None, horizon_s: float) -> ForecastView:
    if forecast is None or name not in forecast.names:
        return ForecastView(horizon_s=horizon_s, levels=[], quantiles_bytes=[])
    quantiles = forecast.quantiles_bytes[forecast.names.index(name)]
    return ForecastView(
        horizon_s=forecast.horizon_s,
        levels=list(forecast.levels),
        quantiles_bytes=[int(value) for value in quantiles.tolist()],
    )


def _members(name: str, ids: tuple[str, ...], partitions: tuple[str | None, ...]) -> list[str]:
    return [words.text_of(identity) for identity, own in zip(ids, partitions, strict=True) if own == name]


def _first(*candidates: int | None) -> int:
    return next((one for one in candidates if one is not None), 0)
