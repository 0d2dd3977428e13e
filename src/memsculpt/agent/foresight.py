# SPDX-License-Identifier: Apache-2.0
"""What the agent has from its profiles: outlooks for hours, and traits that outlive a restart."""

import logging
from collections.abc import Iterable, Mapping

from memsculpt import forecast, profile
from memsculpt.agent.refitting import Refitting
from memsculpt.domain.forecast import Forecasts
from memsculpt.domain.heat import WorkloadHeat
from memsculpt.domain.observation import Observation
from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import Settings
from memsculpt.domain.workload import WorkloadId
from memsculpt.errors import CorruptRecord, Refused
from memsculpt.forecast import longterm

log = logging.getLogger(__name__)

TRAITS = "prior"  # the kind of record they are kept as
TRAITS_EVERY_S = 300.0  # at most so much of what was learnt is lost when the agent is killed
TRAITS_MOST = 512  # workloads, those seen last


class Foresight:
    """Feeds the recorder, and keeps outlooks and traits up to date: one workload's of each at most in a tick."""

    def __init__(
        self, recorder: profile.Recorder, gate: longterm.Gate | None, refitting: Refitting | None, settings: Settings
    ) -> None:
        self._recorder = recorder
        self._gate = gate
        self._refitting = refitting
        self._settings = settings
        self.outlooks: Mapping[WorkloadId, WorkloadOutlook] = {}
        self._looked_at_s: dict[WorkloadId, float] = {}
        self._kept_at_s: dict[WorkloadId, float] = {}

    def recall(self, forecaster: forecast.Forecaster) -> None:
        """Have workloads begin with what was kept of them when they are first seen."""
        kept: dict[WorkloadId, forecast.Traits] = {}
        for workload, content in self._recorder.newest(TRAITS, TRAITS_MOST):
            try:
                kept[workload] = forecast.traits_from_bytes(content, place=f"traits of {workload}")
            except (CorruptRecord, Refused) as error:  # what is not there is learnt anew
                log.warning("%s: %s; forecasts begin anew", error.place, error.problem)
        if kept:
            forecast.recall(forecaster, kept)

    def follow(
        self,
        observation: Observation,
        profiles: Profiles,
        warmth: WorkloadHeat | None,
        forecasts: Forecasts,
        forecaster: forecast.Forecaster,
    ) -> None:
        """Take in a tick's results, and do whose turn it is."""
        horizon_s = self._settings.forecast.act_horizon_s
        self._recorder.observe(observation, profiles, warmth, forecasts, horizon_s=horizon_s)
        self._look_far(observation)
        self._keep_one(observation, forecaster)

    def close(self, observation: Observation | None, forecaster: forecast.Forecaster) -> None:
        """Keep everybody's traits at the end."""
        if observation is not None:
            for workload, program in _with_programs(observation):
                self._keep(forecaster, workload, program, observation.time_s)

    def _look_far(self, observation: Observation) -> None:
        """Look at one of the partitions' workloads on the long term, if it is somebody's turn."""
        rows, now_s = observation.workloads, observation.time_s
        ids = [one for one, name in zip(rows.ids, rows.partitions, strict=True) if name is not None]
        self.outlooks = {one: self.outlooks[one] for one in ids if one in self.outlooks}
        self._looked_at_s = {one: self._looked_at_s[one] for one in ids if one in self._looked_at_s}
        refitting = self._refitting
        if refitting is not None:
            refitting.collect(self._recorder, ids, now_s)
        chosen = longterm.choose(self._looked_at_s, ids, now_s)
        if chosen is None:
            return
        series = self._recorder.history(chosen, longterm.RESOLUTION_S)
        capacity_bytes = self._settings.capacity_of(observation.memory.total_bytes)
        choice = None if refitting is None else refitting.choice_for(chosen, self._recorder)
        made = None if series is None else longterm.outlook_from(series, capacity_bytes, self._gate, now_s, choice)
        self._looked_at_s[chosen] = now_s if made is not None else now_s - longterm.REFRESH_S + longterm.RETRY_S
        if made is not None:
            self.outlooks = {**self.outlooks, chosen: made}
        if refitting is not None and series is not None:
            sizes = dict(zip(rows.ids, (rows.resident_bytes + rows.swapped_bytes).tolist(), strict=True))
            refitting.offer(series, capacity_bytes, self._gate, {one: sizes[one] for one in ids}, now_s)

    def _keep_one(self, observation: Observation, forecaster: forecast.Forecaster) -> None:
        """Keep the traits of whom it is longest ago."""
        now_s = observation.time_s
        programs = dict(_with_programs(observation))
        self._kept_at_s = {one: self._kept_at_s.get(one, now_s) for one in programs}
        oldest = min(programs, key=lambda one: self._kept_at_s[one], default=None)
        if oldest is not None and now_s - self._kept_at_s[oldest] >= TRAITS_EVERY_S:
            self._kept_at_s[oldest] = now_s
            self._keep(forecaster, oldest, programs[oldest], now_s)

    def _keep(self, forecaster: forecast.Forecaster, workload: WorkloadId, program: str, now_s: float) -> None:
        traits = forecast.traits_of(forecaster, workload, program)
        if traits is not None:
            self._recorder.keep(workload, TRAITS, traits.to_bytes(), now_s=now_s)


def _with_programs(observation: Observation) -> Iterable[tuple[WorkloadId, str]]:
    rows = observation.workloads
    return zip(rows.ids, rows.programs or ("",) * len(rows.ids), strict=True)
