# SPDX-License-Identifier: Apache-2.0
"""How much each candidate counts: a gate that was learnt over many workloads, run in numpy. Pure.

A small network reads a moment's features and gives, for each level, weights that sum to one over the candidates, and a
small correction: a mixture of experts with a learnt gate (Jacobs, Jordan, Nowlan and Hinton, "Adaptive mixtures of
local experts", 1991), trained on the pinball loss (Koenker and Bassett, "Regression quantiles", 1978), which makes each
output a quantile. What it can say stays close to what the workload itself has shown: it chooses among its own past
peaks, it does not invent a level.

Peaks are mixed as logarithms of ratios to the median peak, paths in the workload's unit. Weights of paths are learnt at
six steps and interpolated between them. Several networks, each trained without a part of the workloads, are averaged;
what they say of the parts they did not see tells how much too narrow they are (`stretch`), as in cross-conformal
prediction (Vovk, "Cross-conformal predictors", 2015). Some of the networks are steady: they were trained without
features, weigh alike at every moment, and keep the others from expecting peaks where only the training series had them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from memsculpt.domain.arrays import Float64
from memsculpt.errors import CorruptRecord, Refused
from memsculpt.forecast.longterm.history import LEVELS, STEPS
from memsculpt.forecast.longterm.moment import Moment
from memsculpt.forecast.longterm.spread import Law, respread

Float32 = npt.NDArray[np.float32]

PATH_KNOTS = np.array([0, 1, 3, 7, 15, 35])
LOG_BOUND = 8.0
NORM_BOUND = 6.0
MAGIC = b"memsgate"
VERSION = 3  # 1: without trust, 2: without a law of spreads; never released
# What a network consists of: two layers, and four outputs (weights and corrections of peaks and paths).
PARTS = (
    "in_weight",
    "in_bias",
    "hidden_weight",
    "hidden_bias",
    "peak_weight",
    "peak_bias",
    "lift_weight",
    "lift_bias",
    "path_weight",
    "path_bias",
    "shift_weight",
    "shift_bias",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """Trained networks, and what their features were scaled by."""

    covariates: tuple[str, ...]  # what was measured beside the training series, in the order of the features
    mean: Float32  # of each feature, shape (n_features,)
    spread: Float32
    networks: tuple[Mapping[str, Float32], ...]
    peak_trust: Float64  # how much each network counts for the peak, shape (n_networks,), sum 1
    path_trust: Float64  # and for the path
    stretch: Float64  # factor on what lies above the median, shape (levels,)
    law: Law  # of the top's spread, after the stretch

    def apply(self, moment: Moment) -> tuple[Float64, Float64]:
        """Return quantiles of the peak, shape (levels,), and of the path, shape (levels, STEPS).

        Raises ValueError where the moment has other features or candidates than the gate was trained on.
        """
        if moment.features.shape != self.mean.shape:
            raise ValueError(f"the gate takes {len(self.mean)} features, not {len(moment.features)}")
        scaled = np.clip((moment.features - self.mean) / self.spread, -NORM_BOUND, NORM_BOUND)
        softened = moment.reference + moment.least
        ratios = np.log((np.maximum(moment.peaks, 0.0) + moment.least) / softened)
        peaks, paths = np.zeros(len(LEVELS)), np.zeros((len(LEVELS), STEPS))
        for network, of_peak, of_path in zip(self.networks, self.peak_trust, self.path_trust, strict=True):
            hidden = _gelu(scaled @ network["in_weight"] + network["in_bias"])
            hidden = _gelu(hidden @ network["hidden_weight"] + network["hidden_bias"])
            weights = _softmax((hidden @ network["peak_weight"] + network["peak_bias"]).reshape(len(LEVELS), -1))
            lifted = weights @ ratios + hidden @ network["lift_weight"] + network["lift_bias"]
            bounded = np.clip(np.maximum.accumulate(lifted), -LOG_BOUND, LOG_BOUND)
            peaks += of_peak * (np.exp(bounded) * softened - moment.least)
            if of_path == 0.0:
                continue
            knots = (hidden @ network["path_weight"] + network["path_bias"]).reshape(len(LEVELS), len(PATH_KNOTS), -1)
            shares = np.einsum("lkc,kh->lhc", _softmax(knots), BETWEEN)
            shifts = (hidden @ network["shift_weight"] + network["shift_bias"]).reshape(len(LEVELS), len(PATH_KNOTS))
            path = np.einsum("lhc,clh->lh", shares, moment.paths) + shifts @ BETWEEN * moment.scale
            paths += of_path * path
        stretched = (peaks[0] + self.stretch * (peaks - peaks[0]))[np.newaxis]
        spread = respread(stretched, np.array([moment.capacity]), np.array([moment.log_stretch]), self.law)
        return spread[0], np.maximum.accumulate(paths, axis=0)

    def to_bytes(self) -> bytes:
        """Return the gate as kept: magic, version, lengths, checksum; names and shapes as JSON; float32 values."""
        single = {
            "mean": self.mean,
            "spread": self.spread,
            "stretch": self.stretch,
            "peak_trust": self.peak_trust,
            "path_trust": self.path_trust,
        }
        arrays = [(name, array.astype(np.float32)) for name, array in single.items()]
        arrays += [(name, network[name]) for network in self.networks for name in PARTS]
        head = json.dumps(
            {
                "covariates": list(self.covariates),
                "networks": len(self.networks),
                "law": asdict(self.law),
                "arrays": [[name, list(array.shape)] for name, array in arrays],
            }
        ).encode()
        body = head + b"".join(np.ascontiguousarray(array, "<f4").tobytes() for _, array in arrays)
        lengths = VERSION.to_bytes(4, "little") + len(head).to_bytes(4, "little") + len(body).to_bytes(8, "little")
        return MAGIC + lengths + hashlib.sha256(lengths + body).digest() + body


HEAD_BYTES = len(MAGIC) + 4 + 4 + 8 + 32


def gate_from_bytes(content: bytes, place: str = "gate") -> Gate:
    """Return the gate that `to_bytes` wrote. Raises CorruptRecord, and Refused where a newer memsculpt wrote it."""
    if len(content) < HEAD_BYTES or content[:8] != MAGIC:
        raise CorruptRecord(place=place, offset=0, problem="is no gate of a forecaster")
    version = int.from_bytes(content[8:12], "little")
    if version != VERSION:
        age, other = ("a newer", "newer") if version > VERSION else ("an older", "older")
        raise Refused(
            place=place,
            problem=f"was written by {age} memsculpt (version {version}, this one knows {VERSION})",
            fix=f"train it again with this memsculpt, or install the {other} one",
        )
    head_bytes, body_bytes = int.from_bytes(content[12:16], "little"), int.from_bytes(content[16:24], "little")
    body = content[HEAD_BYTES:]
    if len(body) != body_bytes or hashlib.sha256(content[8:24] + body).digest() != content[24:56]:
        raise CorruptRecord(
            place=place, offset=HEAD_BYTES, problem="its checksum does not fit: it is cut short or changed"
        )
    told = json.loads(body[:head_bytes])
    arrays: list[tuple[str, Float32]] = []
    at = head_bytes
    shapes: list[tuple[str, list[int]]] = told["arrays"]
    for name, shape in shapes:
        count = int(np.prod(shape))
        arrays.append((name, np.frombuffer(body, "<f4", count, at).reshape(shape)))
        at += 4 * count
    networks: int = told["networks"]
    first = len(arrays) - networks * len(PARTS)
    single = dict(arrays[:first])
    return Gate(
        covariates=tuple(told["covariates"]),
        mean=single["mean"],
        spread=single["spread"],
        networks=tuple(
            dict(arrays[first + number * len(PARTS) : first + (number + 1) * len(PARTS)]) for number in range(networks)
        ),
        stretch=single["stretch"].astype(np.float64),
        law=Law(**told["law"]),
        peak_trust=single["peak_trust"].astype(np.float64),
        path_trust=single["path_trust"].astype(np.float64),
    )


def between_knots(knots: Sequence[int] | npt.NDArray[np.int64] = PATH_KNOTS) -> Float64:
    """Return how much each knot counts at each step, shape (n_knots, STEPS): linear in the logarithm of the step."""
    steps = np.log1p(np.arange(STEPS))
    return np.array([np.interp(steps, np.log1p(knots), row) for row in np.eye(len(knots))])


BETWEEN = between_knots()


def _softmax(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _gelu(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Gaussian error linear unit, in its tanh form (Hendrycks and Gimpel, 2016)."""
    return 0.5 * values * (1.0 + np.tanh(0.7978845608028654 * (values + 0.044715 * values**3)))
