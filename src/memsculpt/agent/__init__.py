# SPDX-License-Identifier: Apache-2.0
"""The flow on one host, tick by tick: the only room that knows every other one, and decides nothing.

`loop` is the tick and the loop around it, `foresight` what is kept from run to run and looks far ahead, `growth_watch`
the sampling of page faults, `sculpting` the pools, `refitting` the models of single workloads, `pace` how far
apart the ticks are.
"""

from memsculpt.agent.loop import Agent, Tick
from memsculpt.agent.pace import Pace

__all__ = ["Agent", "Pace", "Tick"]
