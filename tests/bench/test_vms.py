# SPDX-License-Identifier: Apache-2.0
"""The rules that memsculpt is compared with do what was published of them, and figures mean what they say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt_bench import vms_rounds
from memsculpt_bench.vms import FIXED, MEMSCULPT, MOM, Scenario
from memsculpt_bench.vms_rules import PROXMOX_STEP_BYTES, GuestFigures, HostFigures, mom, proxmox

MIB = 1 << 20


def guest(name="a", *, balloon=400, free=200, most=512, least=128) -> GuestFigures:
    return GuestFigures(
        name=name,
        balloon_bytes=balloon * MIB,
        free_bytes=free * MIB,
        most_bytes=most * MIB,
        least_bytes=least * MIB,
    )


def host(free: float) -> HostFigures:
    return HostFigures(total_bytes=1000 * MIB, free_bytes=round(free * 1000 * MIB))


class TestMom:
    def test_under_pressure_a_guest_shrinks_by_a_twentieth(self):
        assert mom(host(0.15), [guest()]) == {"a": 380 * MIB}

    def test_it_keeps_a_part_free_that_falls_with_the_hosts(self):
        """Half of the pressure threshold is left: half of 20 % is to stay free."""
        assert mom(host(0.10), [guest(free=50)]) == {"a": 390 * MIB}

    def test_below_five_percent_guests_are_made_to_swap(self):
        assert mom(host(0.0), [guest(free=10)])["a"] < 390 * MIB

    def test_with_room_everybody_grows_by_a_twentieth_or_to_a_fifth_free(self):
        assert mom(host(0.5), [guest(free=200), guest("b", free=10)]) == {"a": 420 * MIB, "b": 470 * MIB}

    def test_nobody_leaves_its_bounds(self):
        targets = mom(host(0.0), [guest(balloon=128, free=0)]) | mom(host(0.5), [guest("b", balloon=512)])
        assert targets == {}


class TestProxmox:
    def test_near_the_target_nothing_is_done(self):
        assert proxmox(host(0.205), [guest()]) == {}

    def test_a_step_is_at_most_a_hundred_mib(self):
        assert proxmox(host(0.0), [guest(balloon=512, free=400)]) == {"a": 512 * MIB - PROXMOX_STEP_BYTES}

    def test_who_has_free_memory_gives_first(self):
        targets = proxmox(host(0.15), [guest(free=300), guest("short", free=10)])
        assert list(targets) == ["a"]

    def test_who_is_short_gets_first(self):
        targets = proxmox(host(0.5), [guest(free=300), guest("short", free=10)])
        assert targets == {"short": 500 * MIB}

    @given(
        free=st.floats(0, 1),
        sizes=st.lists(st.tuples(st.integers(128, 512), st.integers(0, 300)), min_size=1, max_size=4),
    )
    def test_bounds_and_steps_hold(self, free, sizes):
        guests = [guest(str(at), balloon=size, free=spare) for at, (size, spare) in enumerate(sizes)]
        for name, target in proxmox(host(free), guests).items():
            one = guests[int(name)]
            assert one.least_bytes <= target <= one.most_bytes
            assert abs(target - one.balloon_bytes) <= PROXMOX_STEP_BYTES


def run_of(limit_mib: int, stall_s: float, touched: int = 0) -> dict:
    return {
        "limit_bytes": limit_mib * MIB,
        "stall_s": stall_s,
        "guest_swap_ins": touched,
        "host_major_faults": 0,
        "service_stall_s": 0.0,
    }


@pytest.mark.parametrize(
    ("stall_s", "ratio"),
    [(25.0, 1.0), (15.0, 1.1), (10.0, 1.2), (0.1, 1.4)],
)
def test_the_memory_for_the_same_stall_lies_between_what_was_tried(stall_s, ratio):
    """20 s at the limit, 10 s with a fifth more; 1 s with two fifths, which is the most that was tried."""
    runs = {
        "fixed": [run_of(1000, 20.0)],
        "fixed-1.2": [run_of(1200, 10.0)],
        "fixed-1.4": [run_of(1400, 1.0)],
        "memsculpt": [run_of(1000, stall_s)],
    }
    assert vms_rounds.same_stall_ratios(runs) == [pytest.approx(ratio)]


def test_the_better_rule_counts_and_what_never_came_misses_its_bar():
    runs = {
        "fixed": [run_of(1000, 20.0)],
        "mom": [run_of(1000, 20.0, 900)],
        "proxmox": [run_of(1000, 20.0, 600)],
        "memsculpt": [run_of(1000, 1.0, 100)],
    }
    figures = vms_rounds.figures_of(runs, [{"planned_s": 0.5}])
    assert figures["faults_better_rule_over_ours"].value == 6.0
    assert figures["faults_better_rule_over_ours"].holds
    assert figures["balloon_request_planned_s"].holds
    assert not figures["balloon_request_sculpted_s"].holds
    assert not vms_rounds.figures_of({name: [] for name in runs}, [])["faults_better_rule_over_ours"].holds


def test_warm_up_is_as_long_as_an_arm_learns():
    scenario = Scenario()
    warm = [vms_rounds.shortened(arm, scenario).warm_periods for arm in (FIXED, MOM, MEMSCULPT)]
    assert warm == [1, 2, scenario.warm_periods]
    assert replace(scenario, limit_bytes=900 * MIB).fixed_bytes < scenario.fixed_bytes
