# SPDX-License-Identifier: Apache-2.0
"""Feed a forecaster tick by tick."""

import numpy as np

from memsculpt.domain.profile import Profiles
from memsculpt.domain.settings import ForecastSettings

SETTINGS = ForecastSettings()
MIB = 1 << 20


def profiles(time_s, need, *, idle=None, elapsed_s=1.0, ids=None, growth=None, cpu=None, **flags) -> Profiles:
    """One tick's profiles; everything not given is zero."""
    count = len(need)
    zeros = np.zeros(count)
    whole = zeros.astype(np.int64)
    columns = {
        name: np.array(flags.get(name, zeros), dtype=np.bool_)
        for name in ("is_starting", "was_restarted", "was_oom_killed", "hit_limit")
    }
    return Profiles(
        time_s=time_s,
        elapsed_s=elapsed_s,
        ids=tuple(ids or (f"w{row}" for row in range(count))),
        needed_bytes=np.array(need, dtype=np.float64).astype(np.int64),
        cold_bytes=whole.copy(),
        reclaimable_bytes=whole.copy(),
        working_set_bytes=whole.copy(),
        growth_bytes_per_s=np.array(zeros if growth is None else growth, dtype=np.float64),
        release_bytes_per_s=zeros.copy(),
        minor_faults_per_s=zeros.copy(),
        major_faults_per_s=zeros.copy(),
        refaults_per_s=zeros.copy(),
        cpu_ratio=np.array(np.ones(count) if cpu is None else cpu, dtype=np.float64),
        io_bytes_per_s=zeros.copy(),
        some_stall_ratio=zeros.copy(),
        full_stall_ratio=zeros.copy(),
        idle_s=np.array(zeros if idle is None else idle, dtype=np.float64),
        age_s=zeros.copy(),
        process_idle_s=np.zeros(0),
        **columns,
    )
