# SPDX-License-Identifier: Apache-2.0
"""What a VM needs, derived from what its guest and its monitor tell: the forecaster's and the planner's view."""

from dataclasses import dataclass

from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import WorkloadId


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDemand:
    """One VM's demand now. Where the guest does not tell, `need_bytes` is None and its workload's need is the host's.

    `need_bytes` counts guest memory: what the guest cannot give without swapping, its kernel's own share, and what
    it has swapped and still goes back to. What the workload needs of the host is that and `overhead_bytes`.
    """

    vm: VmId
    workload: WorkloadId
    need_bytes: int | None
    overhead_bytes: int  # QEMU's own, about
    available_bytes: int = 0  # what the guest could give without swapping; 0 where not told
    swapped_bytes: int = 0  # of `need_bytes`: swapped by the guest itself
    swap_in_bytes_per_s: float = 0.0
    major_faults_per_s: float = 0.0
    told_at_s: float = float("-inf")  # how old the figures are
    problem: str = ""  # why the guest's word is not used

    @property
    def is_told(self) -> bool:
        """Tell whether the guest's own figures stand behind this."""
        return self.need_bytes is not None
