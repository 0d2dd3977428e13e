# SPDX-License-Identifier: Apache-2.0
"""The reactive rule to compare with: Senpai's controller on PSI, one per tenant.

Written from the published description of the rule (facebookincubator/senpai, README and its stated
parameters), in our own words: once a second the growth of the cgroup's memory stall total is added up.
When the sum since the last adjustment passes the target, the limit is raised by
`(sum / target / coeff_backoff)^2`, at most by `max_backoff`; when a whole interval went by below the
target, it is lowered by `(target / sum / coeff_probe)^2`, at most by `max_probe`.
The defaults are the published ones: 10 ms of stall in 6 s.

On cgroup v1 there is no memory.high; `limit_in_bytes` takes its place. Lowering it reclaims at once,
as lowering memory.high does; a limit that the kernel cannot reach now (EBUSY) stays where it was.
"""

from dataclasses import dataclass, field

from memsculpt_bench.lab import PAGE, Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class SenpaiRule:
    """The published parameters."""

    interval_ticks: int = 6
    target_stall_s: float = 0.010
    max_probe_ratio: float = 0.01
    max_backoff_ratio: float = 1.0
    coeff_probe: float = 10.0
    coeff_backoff: float = 20.0
    min_bytes: int = 100 << 20


@dataclass(slots=True)
class Senpai:
    """One tenant's controller; call `tick` once a second."""

    lab: Lab
    tenant: str
    rule: SenpaiRule
    max_bytes: int
    start_at_usage: bool  # as published; False starts at `max_bytes`, which spares a program that still grows
    limit_bytes: int = 0
    sum_stall_s: float = 0.0
    last_stall_s: float = 0.0
    grace_ticks: int = 0
    refused: int = field(default=0)

    def start(self) -> None:
        """Take the first reading and set the first limit."""
        reading = self.lab.read(self.tenant)
        self.last_stall_s = reading.some_stall_s
        self.grace_ticks = self.rule.interval_ticks
        self._set(reading.used_bytes if self.start_at_usage else self.max_bytes)

    def tick(self) -> None:
        """Follow the rule for one second."""
        stall_s = self.lab.read(self.tenant).some_stall_s
        self.sum_stall_s += stall_s - self.last_stall_s
        self.last_stall_s = stall_s
        rule = self.rule
        if self.sum_stall_s > rule.target_stall_s:
            excess = self.sum_stall_s / rule.target_stall_s / rule.coeff_backoff
            self._adjust(min(rule.max_backoff_ratio, excess**2 * rule.max_backoff_ratio))
        elif self.grace_ticks > 0:
            self.grace_ticks -= 1
        else:
            room = rule.target_stall_s / max(self.sum_stall_s, 1e-6) / rule.coeff_probe
            self._adjust(-min(rule.max_probe_ratio, room**2 * rule.max_probe_ratio))

    def _adjust(self, ratio: float) -> None:
        self.sum_stall_s = 0.0
        self.grace_ticks = self.rule.interval_ticks - 1
        self._set(int(self.limit_bytes * (1.0 + ratio)))

    def _set(self, size_bytes: int) -> None:
        wanted = max(self.rule.min_bytes, min(self.max_bytes, size_bytes)) // PAGE * PAGE
        try:
            self.lab.limit(wanted, self.tenant)
        except OSError:  # EBUSY: cgroup v1 could not reclaim that far; the old limit holds
            self.refused += 1
            return
        self.limit_bytes = wanted
