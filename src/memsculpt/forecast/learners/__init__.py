# SPDX-License-Identifier: Apache-2.0
"""The learners, one file each: experts that keep something for each workload. `LEARNERS` is what the engine runs."""

from memsculpt.forecast.learners.autoregression import Autoregression
from memsculpt.forecast.learners.echo_state import EchoState
from memsculpt.forecast.learners.past_moments import PastMoments
from memsculpt.forecast.protocol import Learner

__all__ = ["LEARNERS", "Autoregression", "EchoState", "PastMoments"]

LEARNERS: tuple[Learner, ...] = (Autoregression(), EchoState(), PastMoments())
