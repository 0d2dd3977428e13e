# SPDX-License-Identifier: Apache-2.0
"""What came of it: forecasts scored, actions judged, and what that says about the next plan."""

from memsculpt.learn.corrections import neutral_corrections
from memsculpt.learn.sculpt import Reading, rates, readings_of, refused_for_s
from memsculpt.learn.sculpt import judge as judge_sculpt
from memsculpt.learn.step import Learner, outcomes, scores, step

__all__ = [
    "Learner",
    "Reading",
    "judge_sculpt",
    "neutral_corrections",
    "outcomes",
    "rates",
    "readings_of",
    "refused_for_s",
    "scores",
    "step",
]
