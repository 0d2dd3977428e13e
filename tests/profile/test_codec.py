# SPDX-License-Identifier: Apache-2.0
"""The codec: what precision is promised is kept, codes come back as they went in, and a broken byte is found out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from memsculpt.domain.series import METRICS
from memsculpt.errors import CorruptRecord
from memsculpt.profile import codec
from memsculpt.profile.codec import MISSING

UNITS = np.array([one.unit for one in METRICS])
BITS = np.array([one.bits for one in METRICS])

numbers = st.floats(-(2.0**62), 2.0**62) | st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 4096.0, 2.0**63])
tables = arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(len(METRICS))), elements=numbers)
codes = arrays.arrays(
    np.int32,
    st.tuples(st.integers(1, 40), st.integers(0, 12)),
    elements=st.just(MISSING) | st.integers(-20, 20) | st.integers(-(1 << 24) + 1, (1 << 24) - 1),
)


@given(values=tables)
def test_the_stated_precision_holds_for_whatever_is_measured(values):
    """Half a unit, or one part in 2 ** (bits + 1); signs stay; what is no finite number is unknown."""
    found, is_known = codec.restore(codec.quantise(values))

    assert (is_known == np.isfinite(values)).all()
    truth = np.where(is_known, values, 0.0)
    bound = np.maximum(0.5 * UNITS, np.abs(truth) * 2.0 ** -(BITS + 1.0))
    assert (np.abs(found - truth) <= bound * (1 + 1e-12)).all()
    assert (found * truth >= 0.0).all()


@given(values=tables)
def test_larger_values_never_have_smaller_codes(values):
    order = np.sort(np.nan_to_num(values, posinf=0.0, neginf=0.0), axis=0)
    assert (np.diff(codec.quantise(order).astype(np.int64), axis=0) >= 0).all()


def test_sizes_are_exact_to_the_page_up_to_four_mebibytes():
    pages = np.arange(1 << 10) * 4096.0
    values = np.zeros((len(pages), len(METRICS)))
    values[:, 0] = pages
    assert (codec.restore(codec.quantise(values))[0][:, 0] == pages).all()


@given(table=codes, place=st.binary(max_size=8))
def test_codes_come_back_as_they_went_in(table, place):
    """Gaps at the beginning, the end and in between, constants, jumps from one end of the scale to the other."""
    content = codec.encode(table, place=place)
    assert (codec.decode(content, place=place, name="it") == table).all()


@given(table=codes, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(table, at, bit):
    content = bytearray(codec.encode(table, place=b"here"))
    content[at % len(content)] ^= 1 << bit
    with pytest.raises(CorruptRecord, match="here it was"):
        codec.decode(bytes(content), place=b"here", name="here it was")


@given(table=codes, keep=st.integers(0, 10**6))
def test_no_missing_end_goes_unnoticed(table, keep):
    content = codec.encode(table, place=b"here")
    with pytest.raises(CorruptRecord):
        codec.decode(content[: keep % len(content)], place=b"here", name="it")


def test_bytes_in_the_wrong_place_are_found_out():
    table = np.zeros((3, 2), np.int32)
    with pytest.raises(CorruptRecord):
        codec.decode(codec.encode(table, place=b"a"), place=b"b", name="it")
    with pytest.raises(CorruptRecord):
        codec.unpack(codec.pack(b"model", place=b"a"), place=b"b", name="it")


@given(content=st.binary(max_size=300))
def test_models_come_back_byte_by_byte(content):
    assert codec.unpack(codec.pack(content, place=b"m"), place=b"m", name="it") == content


def test_a_calm_series_costs_next_to_nothing():
    """A thousand constant samples of all metrics take less than a tenth of a byte each."""
    table = codec.quantise(np.full((1000, len(METRICS)), 3.0e9))
    assert len(codec.encode(table, place=b"")) < 0.1 * table.size
