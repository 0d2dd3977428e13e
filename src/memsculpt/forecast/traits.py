# SPDX-License-Identifier: Apache-2.0
"""What a workload is like, in its own measure: what another one, or the same after a restart, can begin with.

Spreads and rises are in shares of the workload's level, weights have no unit, and the learners' coefficients stand for
usual changes; so they hold for a workload of another size. Peaks, in bytes, hold for the same workload, and for another
life of the same program. As bytes: magic, version, length and CRC-32, then names and shapes as JSON, then float32.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memsculpt.domain.arrays import Float32
from memsculpt.errors import CorruptRecord, Refused
from memsculpt.forecast.memory import Slots

MAGIC = b"memstrai"
VERSION = 1
HEAD_BYTES = len(MAGIC) + 12
SPREAD_MOST = 2.0  # a spread of more than twice the level says that there was no level
SIZES = frozenset({"spread", "rise", "scale", "change", "peaks"})
TRANSFERRED = "coefficients"  # of each learner's arrays
LEVEL_LEAST_BYTES = float(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traits:
    """One workload's, or the mean of several; arrays by name, see `read_traits`."""

    family: str
    ticks: float  # how much they rest on
    arrays: Mapping[str, Float32]

    def has_shapes_of(self, other: "Traits") -> bool:
        """Tell whether both are of engines with the same horizons, levels, experts and learners."""
        return {name: one.shape for name, one in self.arrays.items()} == {
            name: one.shape for name, one in other.arrays.items()
        }

    def to_bytes(self) -> bytes:
        """Return them as kept."""
        head = json.dumps(
            {
                "family": self.family,
                "ticks": self.ticks,
                "arrays": [[name, list(one.shape)] for name, one in self.arrays.items()],
            }
        ).encode()
        parts = b"".join(np.ascontiguousarray(one, "<f4").tobytes() for one in self.arrays.values())
        body = len(head).to_bytes(4, "little") + head + parts
        return (
            MAGIC
            + VERSION.to_bytes(4, "little")
            + len(body).to_bytes(4, "little")
            + zlib.crc32(body).to_bytes(4, "little")
            + body
        )


def traits_from_bytes(content: bytes, place: str = "traits") -> Traits:
    """Return what `to_bytes` wrote. Raises CorruptRecord, and Refused where another version of memsculpt wrote it."""
    if len(content) < HEAD_BYTES or content[:8] != MAGIC:
        raise CorruptRecord(place=place, offset=0, problem="are no traits of a workload")
    version, size, checksum = (int.from_bytes(content[at : at + 4], "little") for at in (8, 12, 16))
    if version != VERSION:
        raise Refused(
            place=place, problem=f"have version {version}, this memsculpt knows {VERSION}", fix="none: they grow anew"
        )
    body = content[HEAD_BYTES:]
    if len(body) != size or zlib.crc32(body) != checksum:
        raise CorruptRecord(place=place, offset=HEAD_BYTES, problem="their checksum does not fit")
    head_bytes = int.from_bytes(body[:4], "little")
    told: dict[str, Any] = json.loads(body[4 : 4 + head_bytes])
    arrays: dict[str, Float32] = {}
    at = 4 + head_bytes
    kept: list[tuple[str, list[int]]] = told["arrays"]
    for name, shape in kept:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(body, "<f4", count, at).reshape(shape)
        at += 4 * count
    return Traits(family=str(told["family"]), ticks=float(told["ticks"]), arrays=arrays)


def read_traits(slots: Slots, slot: int, family: str) -> Traits:
    """Return what a workload in a slot is like now.

    `spread` is how far its quantiles lie above its need, shape (horizons, levels), `rise` and `scale` have shape
    (horizons,), `weights` (situations, experts, horizons), `peaks` are the level, the historic and the start-up peak in
    bytes. A learner's coefficients are there under its number.
    """
    level = max(float(slots.mean[slot]), LEVEL_LEAST_BYTES)
    # The first situation is the usual one: no specialist is awake.
    offsets = np.einsum("ehl,eh->hl", slots.offsets[slot], slots.weights[slot, 0]) + slots.correction[slot]
    found = {
        "spread": np.clip(offsets / level, -SPREAD_MOST, SPREAD_MOST),
        "rise": slots.rise[slot] / level,
        "scale": slots.scale[slot] / level,
        "change": np.array([slots.change[slot] / level]),
        "weights": slots.weights[slot],
        "peaks": np.array([level, slots.historic_peak[slot], slots.startup_peak[slot]]),
    }
    for number, own in enumerate(slots.own):
        if TRANSFERRED in own:
            found[f"learner {number}"] = own[TRANSFERRED][slot]
    return Traits(
        family=family,
        ticks=float(slots.tick_count[slot]),
        arrays={name: one.astype(np.float32) for name, one in found.items()},
    )


def average(those: Sequence[Traits]) -> Traits:
    """Return what is usual among several with the same shapes: medians of sizes, means of what has no unit."""
    arrays = {
        name: (np.median if name in SIZES else np.mean)([one.arrays[name] for one in those], axis=0)
        for name in those[0].arrays
    }
    return Traits(
        family=those[0].family,
        ticks=min(one.ticks for one in those),
        arrays={name: one.astype(np.float32) for name, one in arrays.items()},
    )


def give(slots: Slots, slot: int, traits: Traits, need_bytes: float, *, is_same: bool, is_kin: bool) -> None:
    """Have a workload that was just seen for the first time begin with these traits.

    `is_same`: they are its own, from before a restart of the agent; `is_kin`: they are of the same program, so that its
    level and start-up peak tell what this one will come to.
    """
    level, historic, startup = (float(one) for one in traits.arrays["peaks"])
    if is_same or is_kin:
        slots.startup_peak[slot] = startup
        size = max(need_bytes, level if is_same else 0.5 * level, LEVEL_LEAST_BYTES)
    else:
        size = max(need_bytes, LEVEL_LEAST_BYTES)
    spread = traits.arrays["spread"] * size
    slots.weights[slot] = traits.arrays["weights"]
    slots.rise[slot] = np.maximum(traits.arrays["rise"] * size, slots.rise[slot])
    if not is_same:
        # Kin differ: half of what they show and half of what is assumed of anybody lost least on recorded series.
        slots.prior[slot] = 0.5 * (slots.prior[slot] + spread)
        return
    slots.historic_peak[slot] = historic
    slots.prior[slot] = spread
    slots.scale[slot] = np.maximum(traits.arrays["scale"] * size, slots.rise[slot])
    for number, own in enumerate(slots.own):
        if TRANSFERRED in own:
            own[TRANSFERRED][slot] = traits.arrays[f"learner {number}"]
