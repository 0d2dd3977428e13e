# SPDX-License-Identifier: Apache-2.0
"""A recurrent network beside the gate: it reads the last points one by one, and weighs the gate's candidates. Pure.

A gated recurrent unit (Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, in the form of
which one reset gate multiplies the state's part after its matrix, as cuDNN has it) goes over the sequence; its last
state and the features of size take the place of a gate's features in a network of the gate's form. It speaks of the
peak alone: on series held out the mean of both provisions less at the same risk, and paths were not better (decision
0056).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Float64
from memsculpt.forecast.longterm.spread import Law

Float32 = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.floating]

UNITS = 48
SIZE_FEATURES = 5  # the first of a moment's: of its size, which a sequence does not tell as finely
# The parts of the unit: keep and reset gate and the new state beside each other, three times UNITS columns.
UNIT_PARTS = ("read_weight", "state_weight", "read_bias", "state_bias")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recurrent:
    """Trained recurrent networks, and how wide what they say has to be."""

    networks: tuple[Mapping[str, Float32], ...]  # each with the parts of a gate's network and UNIT_PARTS
    ratio: float  # how much they count for the peak; the rest is the gate's
    stretch: Float64  # as the gate's, shape (levels,)
    law: Law


def last_state(network: Mapping[str, Numbers], sequences: Numbers) -> Numbers:
    """Return the state after the last point, shape (n, UNITS), for sequences of shape (n, points, channels)."""
    units = network["state_weight"].shape[0]
    # A gate is (1 + tanh(x / 2)) / 2: halved beforehand, once for all points.
    scale = np.repeat(np.array([0.5, 0.5, 1.0], network["state_weight"].dtype), units)
    weight, bias = network["state_weight"] * scale, network["state_bias"]
    read = (sequences.transpose(1, 0, 2) @ network["read_weight"] + network["read_bias"]) * scale
    state = np.zeros((len(sequences), units), weight.dtype)
    for seen in read.astype(weight.dtype):
        held = state @ weight
        held[:, : 2 * units] += seen[:, : 2 * units]
        gates = np.tanh(held[:, : 2 * units])
        gates += 1.0
        gates *= 0.5
        fresh = held[:, 2 * units :]
        fresh += bias
        fresh *= gates[:, units:]
        fresh += seen[:, 2 * units :]
        np.tanh(fresh, out=fresh)
        state -= fresh
        state *= gates[:, :units]
        state += fresh
    return state
