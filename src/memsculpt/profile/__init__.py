# SPDX-License-Identifier: Apache-2.0
"""What we know: rates, idleness, heat, how much of its memory each workload really needs, and what lasts of it."""

from memsculpt.profile.blocks import begin as begin_blocks
from memsculpt.profile.blocks import moved_to as move_blocks
from memsculpt.profile.blocks import ranges_of as pool_ranges
from memsculpt.profile.blocks import ranges_of_zone, ranges_within, with_flag, with_left, with_slow, with_zone
from memsculpt.profile.blocks import update as update_blocks
from memsculpt.profile.duplicates import begin_sweep, estimate_gain, salt_from, see_again, take_in, to_see_again
from memsculpt.profile.heat import merged as merged_touches
from memsculpt.profile.phase_outlook import calm_until_s, look_interval_s
from memsculpt.profile.phase_outlook import predict as predict_phases
from memsculpt.profile.phases import PhaseState
from memsculpt.profile.phases import update as update_phases
from memsculpt.profile.recording import Recorder
from memsculpt.profile.sampled_growth import estimate as estimate_growth
from memsculpt.profile.sampled_growth import owners as page_owners
from memsculpt.profile.sampled_growth import summarize as summarize_growth
from memsculpt.profile.sampling import SamplingState
from memsculpt.profile.sampling import absorb as absorb_faults
from memsculpt.profile.sampling import choose as choose_fault_rates
from memsculpt.profile.sampling import knows as knows_growth
from memsculpt.profile.sensing import SensingState
from memsculpt.profile.sensing import absorb as absorb_looks
from memsculpt.profile.sensing import choose as choose_looks
from memsculpt.profile.sensing import cost_of as cost_of_looks
from memsculpt.profile.sensing import summarize as summarize_heat
from memsculpt.profile.sensing import whole as whole_looks
from memsculpt.profile.sights import blocks_of as blocks_seen
from memsculpt.profile.sights import joined as joined_blocks
from memsculpt.profile.state import ProfileState
from memsculpt.profile.update import update

__all__ = [
    "PhaseState",
    "ProfileState",
    "Recorder",
    "SamplingState",
    "SensingState",
    "absorb_faults",
    "absorb_looks",
    "begin_blocks",
    "begin_sweep",
    "blocks_seen",
    "calm_until_s",
    "choose_fault_rates",
    "choose_looks",
    "cost_of_looks",
    "estimate_gain",
    "estimate_growth",
    "joined_blocks",
    "knows_growth",
    "look_interval_s",
    "merged_touches",
    "move_blocks",
    "page_owners",
    "pool_ranges",
    "predict_phases",
    "ranges_of_zone",
    "ranges_within",
    "salt_from",
    "see_again",
    "summarize_growth",
    "summarize_heat",
    "take_in",
    "to_see_again",
    "update",
    "update_blocks",
    "update_phases",
    "whole_looks",
    "with_flag",
    "with_left",
    "with_slow",
    "with_zone",
]
