# SPDX-License-Identifier: Apache-2.0
"""Who is about to grow, and by how much the room falls short: the question before anything is moved."""

from dataclasses import dataclass

import numpy as np

from memsculpt.domain.arrays import Int64
from memsculpt.plan.partitions import Sizes
from memsculpt.plan.situation import Situation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Growth:
    """What is to come within the act horizon, and what would have to leave for it."""

    by_workload_bytes: Int64  # what each is to get beyond what it holds, within its partition's size
    by_partition_bytes: Int64
    entitled_bytes: Int64  # per workload: its need, or its part of a size that is too small for all
    forecast_use_bytes: int  # all that is held, and the growth on top
    shortage_bytes: int  # how far that is above the target; 0 when there is room


def growth_of(now: Situation, sizes: Sizes) -> Growth:
    """Compare needs with what is held.

    A partition that is too small for its workloads' needs cuts them all in proportion; it grows only into
    its size. What is held counts in full whether it is needed or not: only moving it makes room.
    """
    rows = now.workloads.partition_row
    inside = rows >= 0
    need = np.where(inside, now.workloads.need_bytes, 0)
    needed = now.sum_by_partition(need)
    # A workload's entitlement, in whole bytes: need × min(1, size / need of the partition).
    share = np.minimum(sizes.size_bytes / np.maximum(needed, 1), 1.0)
    share = np.append(share, 1.0)  # the row of those in no partition, also where there is none at all
    entitled = np.where(inside, np.floor(need * share[np.maximum(rows, 0)]), 0.0).astype(np.int64)
    entitled = np.where(inside & (share[np.maximum(rows, 0)] >= 1.0), need, entitled)
    by_workload = np.maximum(entitled - now.workloads.held_bytes, 0)
    by_workload[~inside] = 0
    by_partition = now.sum_by_partition(by_workload)
    use = int(now.held_bytes.sum() + by_partition.sum())
    return Growth(
        by_workload_bytes=by_workload,
        by_partition_bytes=by_partition,
        entitled_bytes=entitled,
        forecast_use_bytes=use,
        shortage_bytes=max(use - now.target_bytes, 0),
    )
