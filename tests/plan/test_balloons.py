# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.domain.plan import LimitKind, SetBalloon, SetLimit
from memsculpt.domain.settings import MIB, PlanSettings, Settings, VmSettings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.vm import VmState
from memsculpt.plan import PlannerState, explain_plan
from memsculpt.plan.balloon_watch import FOREIGN_REST_S, PATIENCE_S, REFUSED_REST_S
from memsculpt.plan.balloons import GREW_REST_S, SHORT_REST_S, margin_bytes
from tests.plan.vms import OVERHEAD_MIB, Vm, asked, asks_of, plan_for, vm_partition
from tests.plan.world import mib

IDLE = Vm(name="idle", need=100)
BUSY = Vm(name="busy", need=400)
TIGHT_MIB = 900.0  # two VMs of 512 MiB and their overhead do not fit; what they need does

needs = st.floats(20, 600).map(round)


@st.composite
def vms(draw, most=4):
    count = draw(st.integers(1, most))
    return tuple(
        Vm(
            name=f"vm{number}",
            ram=512,
            balloon=draw(st.sampled_from((None, 128, 200, 300, 512))),
            need=draw(st.one_of(st.none(), needs)),
            need_soon=draw(st.one_of(st.none(), needs)),
            swap_in=draw(st.sampled_from((0.0, 5.0))),
            deflate_on_oom=draw(st.booleans()),
        )
        for number in range(count)
    )


def lowest_mib(vm: Vm) -> float:
    """What the rules promise a guest that tells, in MiB."""
    need = max(vm.need or 0, vm.need_soon or 0)
    return max(need + margin_bytes(mib(need), is_safe=vm.deflate_on_oom) / MIB, 128)


class TestBounds:
    @given(vms=vms(), capacity=st.floats(100, 3000))
    def test_no_guest_is_asked_to_go_below_its_need_margin_and_floor_nor_above_what_it_had(self, vms, capacity):
        _, plan = plan_for(vms, capacity=capacity)
        for vm in vms:
            if (ask := asks_of(plan).get(vm.name)) is None:
                continue
            assert ask.to_bytes <= mib(vm.left)
            if vm.need is None:
                assert ask.to_bytes >= ask.from_bytes, "nobody knows what it needs"
            else:
                assert ask.to_bytes >= min(lowest_mib(vm), vm.left) * MIB - 1

    @given(vms=vms(), capacity=st.floats(300, 3000), more=st.floats(0, 2000))
    def test_with_more_room_no_guest_is_left_less(self, vms, capacity, more):
        """Where the bound on all steps together is not reached: within it who comes first gives first."""
        unhurried = Settings(plan=PlanSettings(shrink_bytes_per_s=4096.0 * MIB))
        _, tight = plan_for(vms, capacity=capacity, settings=unhurried)
        _, roomy = plan_for(vms, capacity=capacity + more, settings=unhurried)
        for vm in vms:
            less = asks_of(tight).get(vm.name)
            wide = asks_of(roomy).get(vm.name)
            left = mib(vm.left)
            assert (left if wide is None else wide.to_bytes) >= (left if less is None else less.to_bytes)

    @given(vms=vms(), capacity=st.floats(300, 3000))
    def test_the_order_of_the_vms_does_not_matter(self, vms, capacity):
        assert asks_of(plan_for(vms, capacity=capacity)[1]) == asks_of(plan_for(vms[::-1], capacity=capacity)[1])

    def test_a_guarantee_holds(self):
        partitions = (vm_partition("idle", guarantee_bytes=480 * MIB), vm_partition("busy"))
        _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, partitions=partitions)
        planner, at_s = PlannerState(), 1000.0
        vm = IDLE
        for _ in range(30):
            planner, plan = plan_for((vm, BUSY), capacity=TIGHT_MIB, partitions=partitions, planner=planner, now_s=at_s)
            if (ask := asks_of(plan).get("idle")) is not None:
                vm = replace(vm, balloon=ask.to_bytes / MIB)
            planner, at_s = asked(planner, plan, at_s), at_s + 1.0
        assert vm.left + OVERHEAD_MIB >= 480

    def test_steps_are_bounded_and_wait_for_the_guest(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        ask = asks_of(plan)["idle"]
        assert 0 < ask.from_bytes - ask.to_bytes <= IDLE.ram * MIB / 2 + MIB
        planner = asked(planner, plan, 1000.0)
        _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert "idle" not in asks_of(plan), "the step before is still under way"


class TestWhoGives:
    def test_an_idle_guest_gives_what_a_busy_one_needs(self):
        planner, at_s, one, other = PlannerState(), 1000.0, IDLE, BUSY
        for _ in range(30):
            planner, plan = plan_for((one, other), capacity=TIGHT_MIB, planner=planner, now_s=at_s)
            asks = asks_of(plan)
            one = replace(one, balloon=asks["idle"].to_bytes / MIB) if "idle" in asks else one
            other = replace(other, balloon=asks["busy"].to_bytes / MIB) if "busy" in asks else other
            planner, at_s = asked(planner, plan, at_s), at_s + 1.0
        assert lowest_mib(IDLE) <= one.left < 400
        assert other.left >= lowest_mib(BUSY)
        assert one.left + other.left + 2 * OVERHEAD_MIB <= TIGHT_MIB

    def test_nobody_is_asked_while_the_host_has_room(self):
        assert asks_of(plan_for((IDLE, BUSY), capacity=4000)[1]) == {}

    def test_nothing_is_asked_that_was_never_touched_or_has_returned_by_itself(self):
        """Free page reporting has given back all but 90 MiB: inflating would free nothing."""
        reported = replace(IDLE, resident=90)
        _, plan = plan_for((reported, BUSY), capacity=600)
        assert "idle" not in asks_of(plan)

    def test_memory_comes_back_before_forecast_growth(self):
        vm = Vm(name="day", balloon=200, need=100, need_soon=300)
        planner = had_more(vm)
        _, plan = plan_for((vm,), capacity=2000, planner=planner)
        ask = asks_of(plan)["day"]
        assert ask.reason.code == "balloon-need"
        assert ask.to_bytes >= 300 * MIB

    def test_a_wrong_forecast_costs_a_guest_without_deflate_on_oom_more_so_its_margin_is_larger(self):
        assert margin_bytes(200 * MIB, is_safe=False) > margin_bytes(200 * MIB, is_safe=True)

    @pytest.mark.parametrize(
        "signs", [{"swap_in": 4.0, "available": 20}, {"available": 3}, {"available": 20, "faults": 100.0}]
    )
    def test_a_guest_in_distress_gets_memory_however_little_it_says_it_needs(self, signs):
        vm = Vm(name="hurt", balloon=200, need=60, **signs)
        _, plan = plan_for((vm,), capacity=2000, planner=had_more(vm))
        ask = asks_of(plan)["hurt"]
        assert ask.reason.code == "balloon-short"
        assert ask.to_bytes > 200 * MIB

    def test_a_guest_that_was_short_is_left_in_peace_for_a_while(self):
        hurt = replace(IDLE, swap_in=4.0, available=20)
        planner, _ = plan_for((hurt, BUSY), capacity=TIGHT_MIB)
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert "idle" not in asks_of(plan)
        _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0 + SHORT_REST_S)
        assert asks_of(plan)["idle"].to_bytes < 512 * MIB

    def test_a_guest_that_falls_silent_gets_its_memory_back(self):
        vm = Vm(name="mute", balloon=200, need=None)
        _, plan = plan_for((vm,), capacity=2000, planner=had_more(vm))
        assert asks_of(plan)["mute"].reason.code == "balloon-silent"
        assert asks_of(plan)["mute"].to_bytes == 512 * MIB

    @pytest.mark.parametrize("state", [VmState.PAUSED, VmState.MIGRATING, VmState.UNREACHABLE])
    def test_only_running_vms_are_asked(self, state):
        assert asks_of(plan_for((replace(IDLE, state=state), BUSY), capacity=TIGHT_MIB)[1]).get("idle") is None

    def test_balloons_can_be_switched_off(self):
        settings = Settings(vms=VmSettings(balloon=False))
        assert asks_of(plan_for((IDLE, BUSY), capacity=TIGHT_MIB, settings=settings)[1]) == {}

    def test_a_backoff_takes_nothing_but_helps_who_is_short(self):
        hurt = Vm(name="hurt", balloon=200, need=60, swap_in=4.0, available=20)
        planner = had_more(hurt)
        _, plan = plan_for((hurt, IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, backoff_until_s=2000.0)
        assert list(asks_of(plan)) == ["hurt"]


def test_a_guest_with_plenty_left_that_goes_back_to_its_swap_is_not_short():
    """After its day it has hundreds of MiB, and what it touches at night comes from swap once."""
    vm = Vm(name="night", balloon=400, need=110, swap_in=4.0, faults=1000.0)
    assert asks_of(plan_for((vm, BUSY), capacity=TIGHT_MIB)[1])["night"].to_bytes < 400 * MIB


def test_a_guest_whose_need_rises_is_left_in_peace():
    """It is told a second late: memory taken now would be missed a second later."""
    planner, _ = plan_for((replace(IDLE, need=80), BUSY), capacity=4000, now_s=999.0)
    planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner)
    assert "idle" not in asks_of(plan)
    _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1000.0 + GREW_REST_S)
    assert "idle" in asks_of(plan)


class TestWhoElse:
    def test_a_guest_that_does_not_follow_is_left_alone_told_and_its_ask_taken_back(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        late_s = 1000.0 + PATIENCE_S + 1.0
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=late_s)
        assert asks_of(plan)["idle"].reason.code == "balloon-refused"
        assert asks_of(plan)["idle"].to_bytes == 512 * MIB
        assert any("does not follow" in line for line in explain_plan(plan))
        planner = asked(planner, plan, late_s)
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=late_s + 10.0)
        assert "idle" not in asks_of(plan)
        _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=late_s + REFUSED_REST_S)
        assert asks_of(plan)["idle"].reason.code == "balloon-idle", "it is tried again"

    def test_a_second_refusal_rests_longer(self):
        planner, at_s = PlannerState(), 1000.0
        rests = []
        for _ in range(2):
            planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=at_s)
            planner = asked(planner, plan, at_s)
            at_s += PATIENCE_S + 1.0
            planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=at_s)
            planner = asked(planner, plan, at_s)
            rests.append(planner.balloons["name:idle"].rests_until_s - at_s)
            at_s += rests[-1]
        assert rests == [REFUSED_REST_S, 2 * REFUSED_REST_S]

    def test_a_guest_on_its_way_is_no_refusal(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        for second in range(1, 20):
            vm = replace(IDLE, balloon=512 - 3 * second)
            planner, plan = plan_for((vm, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1000.0 + second)
            assert not planner.balloons["name:idle"].refusals_count

    def test_somebody_elses_ask_is_theirs_and_we_stand_back(self):
        planner, _ = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        set_by_operator = replace(IDLE, balloon=300)
        planner, plan = plan_for((set_by_operator, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        balloon = planner.balloons["name:idle"]
        assert balloon.foreign_at_s == 1001.0
        assert balloon.most_bytes == 300 * MIB
        assert "idle" not in asks_of(plan)
        assert any("somebody else" in line for line in explain_plan(plan))
        hurt = replace(set_by_operator, swap_in=5.0, available=20)
        later_s = 1001.0 + FOREIGN_REST_S
        _, plan = plan_for((hurt, BUSY), capacity=4000, planner=planner, now_s=later_s)
        assert "idle" not in asks_of(plan), "never above what the operator left it"

    def test_the_first_mib_that_nobody_here_asked_for_is_noticed(self):
        """A monitor tells of the first step at once, and of the rest a second later."""
        planner, _ = plan_for((IDLE, BUSY), capacity=4000)
        moved = replace(IDLE, balloon=511)
        planner, _ = plan_for((moved, BUSY), capacity=4000, planner=planner, now_s=1001.0)
        assert planner.balloons["name:idle"].foreign_at_s == 1001.0

    def test_lower_than_our_ask_is_somebody_elses(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        ask = asks_of(plan)["idle"].to_bytes / MIB
        vm = replace(IDLE, balloon=ask - 50)
        planner, _ = plan_for((vm, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert planner.balloons["name:idle"].asked_bytes is None
        assert planner.balloons["name:idle"].most_bytes == mib(ask - 50)

    def test_an_earlier_ask_that_is_still_under_way_is_no_news(self):
        """We asked for less, then for more, and the guest is still on its way to less."""
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        low = asks_of(plan)["idle"].to_bytes / MIB
        rising = replace(IDLE, balloon=low + 60, need_soon=500)
        planner, plan = plan_for((rising, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert asks_of(plan)["idle"].to_bytes > low * MIB
        planner = asked(planner, plan, 1001.0)
        still_falling = replace(rising, balloon=low + 5)
        planner, _ = plan_for((still_falling, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1002.0)
        assert planner.balloons["name:idle"].asked_bytes is not None
        assert planner.balloons["name:idle"].most_bytes == 512 * MIB

    def test_memory_taken_back_by_the_guest_stays_ours_to_put_back(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        ask = asks_of(plan)["idle"].to_bytes / MIB
        for second, size in enumerate((ask, ask + 40), start=1):
            vm = replace(IDLE, balloon=size)
            planner, plan = plan_for((vm, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1000.0 + second)
        assert planner.balloons["name:idle"].is_given_back
        assert "idle" not in asks_of(plan)
        back_s = 1002.0 + FOREIGN_REST_S
        vm = replace(IDLE, balloon=ask)
        planner, _ = plan_for((vm, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=back_s)
        assert planner.balloons["name:idle"].asked_bytes == ask * MIB
        assert planner.balloons["name:idle"].most_bytes == 512 * MIB

    def test_another_life_begins_anew(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        reborn = replace(IDLE, pid=4242)
        planner, _ = plan_for((reborn, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert planner.balloons["name:idle"].asked_bytes is None
        assert planner.balloons["name:idle"].foreign_at_s == float("-inf")

    def test_a_vm_that_goes_on_in_another_process_takes_its_balloon_along(self):
        """Migrated, or from a saved state: wherever it was on its way, it is ours to give back, and no refusal."""
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        ask = asks_of(plan)["idle"].to_bytes
        for size in (ask, (ask + 512 * MIB) // 2):
            moved = replace(IDLE, pid=4242, balloon=size / MIB)
            after, _ = plan_for((moved, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1000.0 + 2 * PATIENCE_S)
            known = after.balloons["name:idle"]
            assert known.process.pid == 4242
            assert known.most_bytes == 512 * MIB
            assert known.refusals_count == 0
            assert known.foreign_at_s == float("-inf")

    def test_a_balloon_elsewhere_in_another_process_is_somebody_elses(self):
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        planner = asked(planner, plan, 1000.0)
        below = asks_of(plan)["idle"].to_bytes / MIB - 40
        moved = replace(IDLE, pid=4242, balloon=below)
        planner, _ = plan_for((moved, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1001.0)
        assert planner.balloons["name:idle"].asked_bytes is None
        assert planner.balloons["name:idle"].most_bytes == below * MIB

    def test_an_ask_that_was_not_made_is_made_again(self):
        """As in observe mode: nothing was asked, so nobody refuses."""
        planner, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
        _, again = plan_for((IDLE, BUSY), capacity=TIGHT_MIB, planner=planner, now_s=1000.0 + 3 * PATIENCE_S)
        assert asks_of(again).keys() == asks_of(plan).keys() == {"idle"}


def had_more(vm: Vm) -> PlannerState:
    """A planner that knows the VM with all its memory, and has asked for what it has now."""
    calm = replace(vm, swap_in=0.0, available=None, faults=0.0)
    planner, _ = plan_for((replace(calm, balloon=None),), capacity=8000, now_s=900.0)
    (balloon,) = planner.balloons.values()
    asked_for = replace(balloon, asked_bytes=mib(vm.left), asked_from_bytes=512 * MIB, asked_at_s=901.0)
    planner = replace(planner, balloons={f"name:{vm.name}": asked_for})
    planner, _ = plan_for((calm,), capacity=8000, now_s=902.0, planner=planner)
    return replace(
        planner, balloons={one: replace(each, pressed_at_s=float("-inf")) for one, each in planner.balloons.items()}
    )


def test_a_limit_does_not_send_to_swap_what_a_balloon_is_about_to_free():
    idle = replace(IDLE, limit=UNLIMITED_BYTES)
    _, plan = plan_for((idle, BUSY), capacity=TIGHT_MIB)
    assert "idle" in asks_of(plan)
    lowered = [one for one in plan.actions if isinstance(one, SetLimit) and one.kind is not LimitKind.GUARANTEE]
    assert all(one.to_bytes >= mib(idle.held) for one in lowered)


def test_an_ask_says_what_it_does_and_why():
    _, plan = plan_for((IDLE, BUSY), capacity=TIGHT_MIB)
    (line,) = [line for line in explain_plan(plan) if line.startswith("vm:idle")]
    assert "balloon leaves it from 512 MiB to" in line
    assert "forecast to need" in line
    assert isinstance(plan.actions[0], SetBalloon), "what frees comes first"
