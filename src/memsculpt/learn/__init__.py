# SPDX-License-Identifier: Apache-2.0
"""What came of it: forecasts scored, actions judged, and what that says about the next plan."""

from memsculpt.learn.corrections import neutral_corrections
from memsculpt.learn.step import Learner, outcomes, scores, step

__all__ = ["Learner", "neutral_corrections", "outcomes", "scores", "step"]
