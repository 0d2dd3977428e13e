# SPDX-License-Identifier: Apache-2.0
"""GET /v1/workloads: what is accounted as one, with its use told apart."""

from math import isnan

from memsculpt.domain.arrays import Float64
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.growth import GrowthSummary
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.outcome import Corrections
from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.report import Report
from memsculpt.domain.workload import WorkloadId
from memsculpt.doors import words
from memsculpt.doors.api.schema import ForecastView, HeatView, OutlookView, SampledView, WorkloadsView, WorkloadView


def view_workloads(report: Report) -> WorkloadsView:
    """Return every workload of the last tick, by identity."""
    return WorkloadsView(workloads=list_workloads(report))


def list_workloads(report: Report) -> list[WorkloadView]:
    """Return every workload of the last tick, by identity."""
    seen, known = report.observation, report.profiles
    if seen is None or known is None:
        return []
    rows = seen.workloads
    forecasts = _Rows(report.forecasts, report.settings.forecast.act_horizon_s)
    scores = _scores_by_id(report.corrections)
    heats = _heats_by_id(report.heat)
    sampled = _sampled_by_id(report.growth)
    outlooks = {one.id: _outlook_view(one, report.now_s) for one in report.outlooks}
    return [
        WorkloadView(
            id=words.text_of(identity),
            partition=rows.partitions[row],
            cgroup=_text_or_none(rows.cgroups[row]),
            process_count=int(rows.process_count[row]),
            resident_bytes=int(rows.resident_bytes[row]),
            anon_bytes=int(rows.anon_bytes[row]),
            file_bytes=int(rows.file_bytes[row]),
            shmem_bytes=int(rows.shmem_bytes[row]),
            swapped_bytes=int(rows.swapped_bytes[row]),
            needed_bytes=int(known.needed_bytes[row]),
            cold_bytes=int(known.cold_bytes[row]),
            reclaimable_bytes=int(known.reclaimable_bytes[row]),
            growth_bytes_per_s=float(known.growth_bytes_per_s[row]),
            release_bytes_per_s=float(known.release_bytes_per_s[row]),
            major_faults_per_s=float(known.major_faults_per_s[row]),
            cpu_ratio=float(known.cpu_ratio[row]),
            some_stall_ratio=float(known.some_stall_ratio[row]),
            idle_s=float(known.idle_s[row]),
            heat=heats.get(identity),
            growth=sampled.get(identity),
            forecast=forecasts.of(identity),
            outlook=outlooks.get(identity),
            leader=forecasts.leader_of(identity),
            scored_count=scores.get(identity, (0, 0.0))[0],
            covered_ratio=scores.get(identity, (0, 0.0))[1],
        )
        for row, identity in enumerate(rows.ids)
    ]


class _Rows:
    """Forecasts by identity, at one horizon."""

    def __init__(self, forecasts: Forecasts | None, horizon_s: float) -> None:
        self._forecasts = forecasts
        self._horizon_s = horizon_s
        self._row_of = {} if forecasts is None else {identity: row for row, identity in enumerate(forecasts.ids)}

    def of(self, identity: WorkloadId) -> ForecastView:
        row = self._row_of.get(identity)
        if self._forecasts is None or row is None:
            return ForecastView(horizon_s=self._horizon_s, levels=[], quantiles_bytes=[])
        column = self._forecasts.horizons_s.index(self._horizon_s)
        quantiles = self._forecasts.quantiles_bytes[row, column]
        return ForecastView(
            horizon_s=self._horizon_s,
            levels=list(self._forecasts.levels),
            quantiles_bytes=[int(value) for value in quantiles.tolist()],
        )

    def leader_of(self, identity: WorkloadId) -> str:
        row = self._row_of.get(identity)
        return "" if self._forecasts is None or row is None else self._forecasts.leaders[row]


def _heats_by_id(heat: WorkloadHeat | None) -> dict[WorkloadId, HeatView]:
    if heat is None:
        return {}
    return {
        identity: HeatView(
            source=heat.source,
            hot_bytes=int(heat.hot_bytes[row]),
            idle_bytes=int(heat.idle_bytes[row]),
            covered_ratio=float(heat.covered_ratio[row]),
            interval_s=_number_or_none(float(heat.interval_s[row])),
            windows_s=list(heat.windows_s),
            working_set_bytes=[None if isnan(value) else int(value) for value in _floats(heat.working_set_bytes[row])],
        )
        for row, identity in enumerate(heat.ids)
    }


def _outlook_view(one: WorkloadOutlook, now_s: float) -> OutlookView:
    return OutlookView(
        made_s_ago=now_s - one.made_at_s,
        history_s=one.history_s,
        levels=list(one.levels),
        peak_s=one.peak_s,
        peak_bytes=[int(value) for value in _floats(one.peak_bytes)],
        interval_s=one.interval_s,
        path_bytes=[[int(value) for value in _floats(level)] for level in one.path_bytes],
        weighed_by=one.weighed_by,
    )


def _sampled_by_id(growth: GrowthSummary | None) -> dict[WorkloadId, SampledView]:
    return {
        one.id: SampledView(
            sampled_every=one.sampled_every,
            interval_s=one.interval_s,
            process_count=one.process_count,
            faults=one.seen_count,
            recorded=one.sample_count,
            touched_bytes=one.touched_bytes,
            touched_error_bytes=one.touched_error_bytes,
        )
        for one in (() if growth is None else growth.workloads)
    }


def _floats(values: Float64) -> list[float]:
    return values.tolist()


def _number_or_none(value: float) -> float | None:
    return None if isnan(value) else value


def _scores_by_id(corrections: Corrections | None) -> dict[WorkloadId, tuple[int, float]]:
    if corrections is None:
        return {}
    counts, covered = corrections.scored_count.tolist(), corrections.covered_ratio.tolist()
    return dict(zip(corrections.ids, zip(counts, covered, strict=True), strict=True))


def _text_or_none(name: str | None) -> str | None:
    return None if name is None else words.text_of(name)
