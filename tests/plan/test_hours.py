# SPDX-License-Identifier: Apache-2.0
"""What the outlooks of hours change in a plan."""

from dataclasses import replace

import numpy as np
import pytest

from memsculpt.domain.outlook import WorkloadOutlook
from memsculpt.domain.plan import PageOut
from memsculpt.domain.workload import WorkloadId
from memsculpt.plan import PlannerState, choose, hours
from tests.plan.world import MIB, Tenant, World, of_kind, partition

INTERVAL_S = 300.0


def outlook(name: str, path: list[float], *, peak: float | None = None, made_at_s: float = 1000.0) -> WorkloadOutlook:
    """An outlook with the same path at each level, in MiB; `peak` is the highest quantile of the hour's peak."""
    most = max(path) if peak is None else peak
    return WorkloadOutlook(
        id=WorkloadId(name),
        made_at_s=made_at_s,
        interval_s=INTERVAL_S,
        history_s=86_400.0,
        levels=(0.5, 0.9, 0.99),
        peak_s=3600.0,
        peak_bytes=np.array([min(path), max(path), most]) * MIB,
        path_bytes=np.tile(np.array(path) * MIB, (3, 1)),
        weighed_by="prior",
    )


def two_idle_donors() -> World:
    """A grower that lacks room, and two donors that look the same for the next minute."""
    return World(
        tenants=(
            Tenant(name="grower", held=200, need=400),
            Tenant(name="a", held=400, idle_s=50.0, need=0, peak=16),
            Tenant(name="b", held=400, idle_s=50.0, need=0, peak=16),
        ),
        partitions=(partition("grower"), partition("a"), partition("b")),
        capacity=1000,
    )


def planned(world: World, *outlooks: WorkloadOutlook):
    observation, profiles, forecasts, corrections, settings = world.arguments()
    forecasts = replace(forecasts, outlooks={one.id: one for one in outlooks})
    return choose(PlannerState(), observation, profiles, forecasts, corrections, settings)[1]


@pytest.mark.parametrize(("soon", "late"), [("a", "b"), ("b", "a")])
def test_of_two_quiet_donors_the_one_gives_that_is_not_needed_for_hours(soon, late):
    """One is expected back in ten minutes, the other not within three hours."""
    plan = planned(two_idle_donors(), outlook(soon, [0, 0, 300] + [0] * 33), outlook(late, [0] * 36))

    assert of_kind(plan, PageOut)[0].workload == late


def test_spare_memory_goes_to_who_will_need_it_within_the_hour():
    """Two partitions alike now; of what is left over the one gets more whose hour has a higher peak."""
    world = World(
        tenants=(Tenant(name="a", held=100, need=100), Tenant(name="b", held=100, need=100)),
        partitions=(partition("a"), partition("b")),
        capacity=1000,
    )
    alike = planned(world).division
    plan = planned(world, outlook("a", [100] * 36, peak=500), outlook("b", [100] * 36))

    assert abs(int(alike.size_bytes[0] - alike.size_bytes[1])) < MIB
    assert plan.division.size_bytes[0] > plan.division.size_bytes[1] + 100 * MIB
    assert plan.division.size_bytes[1] >= 100 * MIB


def test_the_nearest_minute_outweighs_the_hours():
    """Who is needed within ten seconds is no donor before the other, whatever its outlook says."""
    world = two_idle_donors().with_tenant("a", need_10s=300, need_60s=300)
    plan = planned(world, outlook("a", [0] * 36), outlook("b", [0, 300] + [0] * 34))

    assert of_kind(plan, PageOut)[0].workload == "b"


def look(one: WorkloadOutlook, now_s: float):
    _, _, forecasts, _, _ = two_idle_donors().arguments()
    forecasts = replace(forecasts, outlooks={one.id: one})
    return hours.look((one.id,), np.array([400 * MIB]), forecasts, now_s)


def test_time_that_has_passed_since_is_taken_off():
    """Quiet until the fourth point: twenty minutes when it was made, thirteen seven minutes later."""
    one = outlook("a", [0, 0, 0, 0, 300] + [0] * 31)

    assert look(one, 1000.0).unneeded_s[0] == pytest.approx(4 * INTERVAL_S)
    assert look(one, 1000.0 + 420.0).unneeded_s[0] == pytest.approx(4 * INTERVAL_S - 420.0)


@pytest.mark.parametrize("now_s", [999.0, 1000.0 + hours.STALE_S + 1.0])
def test_an_outlook_of_another_time_says_nothing(now_s):
    """Neither one that is old, nor one of a clock that went back."""
    found = look(outlook("a", [0] * 36, peak=900), now_s)

    assert found.unneeded_s[0] == 0.0
    assert found.peak_bytes[0] == 0
