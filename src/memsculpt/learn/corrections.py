# SPDX-License-Identifier: Apache-2.0
"""What is remembered of each workload's experience, and how it becomes corrections."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from memsculpt.domain.outcome import Corrections
from memsculpt.domain.workload import WorkloadId

HEADROOM_LEAST, HEADROOM_MOST = 0.8, 2.0
# A miss of the planner's quantile widens the spread by this share; as many holds as its level promises undo it.
HEADROOM_STEP = 0.05
REFUSE_FIRST_S, REFUSE_MOST_S = 5.0, 120.0
# Trust comes back by itself: halfway in this time, so that one bad hour does not switch a mechanism off for good.
FORGIVE_HALF_LIFE_S = 60.0
SEEN_EVERY_S = 30.0  # as exact as it must be known when somebody was last seen, who is forgotten after many minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """One workload's."""

    headroom_ratio: float = 1.0
    page_out_allowed_ratio: float = 1.0
    page_in_useful_ratio: float = 1.0
    refused_until_s: float = 0.0
    refuse_next_s: float = REFUSE_FIRST_S
    scored_count: int = 0
    covered_count: int = 0
    pinball_sum_bytes: float = 0.0
    seen_at_s: float = 0.0

    def after_score(self, *, missed: bool, covered: bool, pinball_bytes: float, level: float) -> "Experience":
        """Return the experience after one forecast came due."""
        step = HEADROOM_STEP * (level if missed else level - 1.0)
        return Experience(  # all by name: this is done for every workload in every tick, and `replace` is slow
            headroom_ratio=min(max(self.headroom_ratio * (1.0 + step), HEADROOM_LEAST), HEADROOM_MOST),
            scored_count=self.scored_count + 1,
            covered_count=self.covered_count + covered,
            pinball_sum_bytes=self.pinball_sum_bytes + pinball_bytes,
            page_out_allowed_ratio=self.page_out_allowed_ratio,
            page_in_useful_ratio=self.page_in_useful_ratio,
            refused_until_s=self.refused_until_s,
            refuse_next_s=self.refuse_next_s,
            seen_at_s=self.seen_at_s,
        )

    def after_mistake(self, now_s: float, weight: float) -> "Experience":
        """Return the experience after pages were missed that we had sent out, or a limit of ours hurt.

        `weight` in (0, 1]: one that cost little must not keep the workload from giving hundreds of times
        as much soon after, when it rests again.
        """
        return replace(
            self,
            page_out_allowed_ratio=(1.0 - 0.5 * weight) * self.page_out_allowed_ratio,
            refused_until_s=max(self.refused_until_s, now_s + weight * self.refuse_next_s),
            refuse_next_s=min((1.0 + weight) * self.refuse_next_s, REFUSE_MOST_S),
        )

    def after_page_in(self, *, was_used: bool) -> "Experience":
        """Return the experience after pages were brought back and then used, or not."""
        return replace(self, page_in_useful_ratio=0.7 * self.page_in_useful_ratio + 0.3 * was_used)

    def forgiven(self, elapsed_s: float, now_s: float) -> "Experience":
        """Return the experience some time later; it was seen then."""
        if self.is_trusted:  # nothing to forgive, as with nearly all
            return self if now_s - self.seen_at_s < SEEN_EVERY_S else replace(self, seen_at_s=now_s)
        keep = 0.5 ** (elapsed_s / FORGIVE_HALF_LIFE_S)
        rested = now_s >= self.refused_until_s
        return replace(
            self,
            page_out_allowed_ratio=1.0 - keep * (1.0 - self.page_out_allowed_ratio),
            page_in_useful_ratio=1.0 - keep * (1.0 - self.page_in_useful_ratio),
            refuse_next_s=max(REFUSE_FIRST_S, self.refuse_next_s * keep) if rested else self.refuse_next_s,
            seen_at_s=now_s,
        )

    @property
    def is_trusted(self) -> bool:
        """Whether nothing is held against it, or was forgiven in full."""
        return (
            self.page_out_allowed_ratio == 1.0
            and self.page_in_useful_ratio == 1.0
            and self.refuse_next_s == REFUSE_FIRST_S
        )


def neutral_corrections(ids: tuple[WorkloadId, ...]) -> Corrections:
    """Return corrections that change nothing."""
    return corrections_from({}, ids)


def corrections_from(
    experiences: Mapping[WorkloadId, Experience],
    ids: tuple[WorkloadId, ...],
    *,
    backoff_until_s: float = 0.0,
    backoff_reason: str = "",
) -> Corrections:
    """Return the columns that the planner reads, in the order of `ids`."""
    each = [experiences.get(one, _NEUTRAL) for one in ids]
    scored = np.array([one.scored_count for one in each], dtype=np.int64)
    at_least_one = np.maximum(scored, 1)
    return Corrections(
        ids=ids,
        headroom_ratio=np.array([one.headroom_ratio for one in each], dtype=np.float64),
        page_out_allowed_ratio=np.array([one.page_out_allowed_ratio for one in each], dtype=np.float64),
        page_in_useful_ratio=np.array([one.page_in_useful_ratio for one in each], dtype=np.float64),
        refused_until_s=np.array([one.refused_until_s for one in each], dtype=np.float64),
        scored_count=scored,
        covered_ratio=np.array([one.covered_count for one in each], dtype=np.float64) / at_least_one,
        pinball_bytes=np.array([one.pinball_sum_bytes for one in each], dtype=np.float64) / at_least_one,
        backoff_until_s=backoff_until_s,
        backoff_reason=backoff_reason,
    )


_NEUTRAL = Experience()
