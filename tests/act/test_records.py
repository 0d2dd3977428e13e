# SPDX-License-Identifier: Apache-2.0
"""The journal's stored format: version 1 stays readable for ever, and nothing that is broken is taken for a record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.act import records
from memsculpt.act.records import (
    BalloonAsked,
    BalloonKey,
    CgroupCreated,
    LimitChange,
    LimitKept,
    Origin,
    PagesMoved,
    ProcessMoved,
    SentToSlowNode,
    SlowKey,
    Undone,
    frame,
    header,
    parse,
)
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.vm import VmId
from memsculpt.domain.workload import CgroupPath, Instance

BECAUSE = Origin(action_id=7, at_s=12.5, why="shrink", boot="b00t")
ODD = CgroupPath("odd\udcff name/x")  # a byte that is no UTF-8, as os.fsdecode gives it

GOLDEN = [
    LimitChange(
        cgroup=ODD,
        kind=LimitKind.LIMIT,
        old_text="9223372036854771712\n",
        old_bytes=UNLIMITED_BYTES,
        low_bytes=1 << 30,
        high_bytes=UNLIMITED_BYTES,
        squeezes=True,
        origin=BECAUSE,
    ),
    LimitKept(cgroup=ODD, kind=LimitKind.LIMIT, text="1073741824\n"),
    CgroupCreated(cgroup=CgroupPath("memsculpt/batch"), origin=BECAUSE),
    ProcessMoved(
        process=Instance(pid=812, start_ticks=99),
        from_cgroup=CgroupPath(""),
        via_cgroup=CgroupPath(""),
        to_cgroup=CgroupPath("memsculpt/batch"),
        origin=BECAUSE,
    ),
    Undone(change=(CgroupPath("cache"), LimitKind.GUARANTEE), text="0\n"),
    Undone(change=CgroupPath("memsculpt/old")),
    Undone(change=Instance(pid=5, start_ticks=6)),
    PagesMoved(out_bytes=4096, in_bytes=0),
]

# A file of version 1 with the records above. Never change it: journals like this one lie on people's disks.
GOLDEN_V1 = bytes.fromhex(
    """
    4d534a4f55524e4c01000000e62c9705dc000000408389a17b226b223a226c696d6974222c226367726f7570223a226f64645c7564636666
    206e616d652f78222c226c696d6974223a226c696d6974222c226f6c64223a22393232333337323033363835343737313731325c6e222c22
    73697a65223a393232333337323033363835343737353830372c226c6f77223a313037333734313832342c2268696768223a393232333337
    323033363835343737353830372c2273717565657a6573223a747275652c226964223a372c226174223a31322e352c22776879223a227368
    72696e6b222c22626f6f74223a2262303074227d4e000000f248c2e77b226b223a226b657074222c226367726f7570223a226f64645c7564
    636666206e616d652f78222c226c696d6974223a226c696d6974222c2274657874223a22313037333734313832345c6e227d580000002c28
    07a17b226b223a2263726561746564222c226367726f7570223a226d656d7363756c70742f6261746368222c226964223a372c226174223a
    31322e352c22776879223a22736872696e6b222c22626f6f74223a2262303074227d7a0000007bdb6a307b226b223a226d6f766564222c22
    706964223a3831322c227374617274223a39392c2266726f6d223a22222c22766961223a22222c22746f223a226d656d7363756c70742f62
    61746368222c226964223a372c226174223a31322e352c22776879223a22736872696e6b222c22626f6f74223a2262303074227d40000000
    231404cb7b226b223a22756e646f6e65222c226367726f7570223a226361636865222c226c696d6974223a2267756172616e746565222c22
    74657874223a22305c6e227d31000000022496197b226b223a22756e646f6e65222c226367726f7570223a226d656d7363756c70742f6f6c
    64222c2274657874223a22227d2a0000007cac2abb7b226b223a22756e646f6e65222c22706964223a352c227374617274223a362c227465
    7874223a22227d1f00000034e404b27b226b223a227061676573222c226f7574223a343039362c22696e223a307d
    """
)

GOLDEN_SLOW = [
    SentToSlowNode(process=Instance(pid=812, start_ticks=99), origin=BECAUSE),
    Undone(change=SlowKey(process=Instance(pid=812, start_ticks=99))),
]

# As above, of the first version that moves pages to a slow node.
GOLDEN_SLOW_V1 = bytes.fromhex(
    """
    4d534a4f55524e4c01000000e62c97054f0000006b619b497b226b223a22736c6f77222c22706964223a3831322c227374617274223a3939
    2c226964223a372c226174223a31322e352c22776879223a22736872696e6b222c22626f6f74223a2262303074227d2e000000d5b0d27e7b
    226b223a22756e646f6e65222c22736c6f77223a3831322c227374617274223a39392c2274657874223a22227d
    """
)

GOLDEN_BALLOON = [
    BalloonAsked(
        vm=VmId("name:web"),
        process=Instance(pid=812, start_ticks=99),
        old_bytes=512 << 20,
        low_bytes=256 << 20,
        high_bytes=512 << 20,
        origin=BECAUSE,
    ),
    Undone(change=BalloonKey(vm=VmId("name:web"))),
]

# The kind that came later. Never change it either.
GOLDEN_BALLOON_V1 = bytes.fromhex(
    """
    4d534a4f55524e4c01000000e62c970593000000cc3c5d5f7b226b223a2262616c6c6f6f6e222c22766d223a226e616d653a776562222c22
    706964223a3831322c227374617274223a39392c226f6c64223a3533363837303931322c226c6f77223a3236383433353435362c22686967
    68223a3533363837303931322c226964223a372c226174223a31322e352c22776879223a22736872696e6b222c22626f6f74223a22623030
    74227d28000000e5d34f4d7b226b223a22756e646f6e65222c22766d223a226e616d653a776562222c2274657874223a22227d
    """
)

texts = st.text(max_size=12)
paths = st.binary(max_size=12).map(lambda name: CgroupPath(name.decode("utf-8", "surrogateescape")))
sizes = st.integers(0, UNLIMITED_BYTES)
origins = st.builds(Origin, action_id=st.integers(0, 1 << 40), at_s=st.floats(0, 1e9), why=texts, boot=texts)
instances = st.builds(Instance, pid=st.integers(1, 1 << 22), start_ticks=sizes)
kinds = st.sampled_from(LimitKind)
any_record = st.one_of(
    st.builds(
        LimitChange,
        cgroup=paths,
        kind=kinds,
        old_text=texts,
        old_bytes=sizes,
        low_bytes=sizes,
        high_bytes=sizes,
        squeezes=st.booleans(),
        origin=origins,
    ),
    st.builds(LimitKept, cgroup=paths, kind=kinds, text=texts),
    st.builds(CgroupCreated, cgroup=paths, origin=origins),
    st.builds(ProcessMoved, process=instances, from_cgroup=paths, via_cgroup=paths, to_cgroup=paths, origin=origins),
    st.builds(
        BalloonAsked,
        vm=texts.map(VmId),
        process=instances,
        old_bytes=sizes,
        low_bytes=sizes,
        high_bytes=sizes,
        origin=origins,
    ),
    st.builds(
        Undone,
        change=st.one_of(paths, instances, st.tuples(paths, kinds), texts.map(VmId).map(lambda vm: BalloonKey(vm=vm))),
        text=texts,
    ),
    st.builds(PagesMoved, out_bytes=sizes, in_bytes=sizes),
)


def test_version_1_is_read_and_written_as_it_was_released():
    """The golden file gives these records, and these records give the golden file."""
    assert parse(GOLDEN_V1, place="golden") == (GOLDEN, [])
    assert header() + b"".join(map(frame, GOLDEN)) == GOLDEN_V1


def test_the_balloons_records_are_read_and_written_as_they_were_released():
    assert parse(GOLDEN_BALLOON_V1, place="golden") == (GOLDEN_BALLOON, [])
    assert parse(GOLDEN_SLOW_V1, place="golden") == (GOLDEN_SLOW, [])
    assert header() + b"".join(map(frame, GOLDEN_BALLOON)) == GOLDEN_BALLOON_V1


@given(written=st.lists(any_record, max_size=6))
def test_what_is_written_is_read_again(written):
    """Every record comes back equal, with names that are no UTF-8 and texts of any kind."""
    assert parse(header() + b"".join(map(frame, written)), place="x") == (written, [])


@given(end=st.integers(0, len(GOLDEN_V1)))
def test_a_torn_file_gives_the_records_before_the_tear(end):
    """Cut anywhere: what is whole is read, the rest is one complaint."""
    ends = [len(header())]
    for record in GOLDEN:
        ends.append(ends[-1] + len(frame(record)))
    whole_count = sum(each <= end for each in ends[1:])
    found, broken = parse(GOLDEN_V1[:end], place="x")
    assert found == GOLDEN[:whole_count]
    assert len(broken) == (end not in ends)


@given(at=st.integers(len(header()), len(GOLDEN_V1) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_record_and_is_said(at, bit):
    """Bit rot never invents a record; what stands before it is read, and what stands behind it where it can be."""
    rotten = bytearray(GOLDEN_V1)
    rotten[at] ^= 1 << bit
    found, broken = parse(bytes(rotten), place="journal")
    assert broken
    assert all(record in GOLDEN for record in found)
    assert "journal, byte" in broken[0].place


@given(tail=st.binary(max_size=64), zeros=st.integers(0, 64))
def test_a_tail_of_zeros_or_rubbish_is_no_record(tail, zeros):
    """A file that was extended but never filled reads as what was there before."""
    found, broken = parse(GOLDEN_V1 + bytes(zeros) + tail, place="x")
    assert found[: len(GOLDEN)] == GOLDEN
    assert len(found) == len(GOLDEN)
    assert bool(broken) == bool(zeros or tail)


@given(content=st.binary(max_size=200))
def test_no_bytes_at_all_make_it_fail(content):
    """Whatever stands in the file, reading it is a matter of complaints, not of exceptions."""
    assert parse(content, place="x")[0] == []
    parse(header() + content, place="x")


def test_a_kind_that_is_not_known_counts_as_never_written():
    """A record of another kind with a right checksum is skipped, not guessed at."""
    unknown = frame(PagesMoved(out_bytes=1, in_bytes=2)).replace(b"pages", b"cages")
    payload = unknown[8:]
    import struct
    import zlib

    framed = struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    found, broken = parse(header() + framed + frame(GOLDEN[1]), place="x")
    assert found == [GOLDEN[1]]
    assert len(broken) == 1


@pytest.mark.parametrize("content", [b"", header()[:-1], b"\0" * 16, header()[:-1] + b"?"])
def test_what_has_no_header_has_no_version(content):
    """A header that is torn or altered tells nothing."""
    assert records.read_version(content) is None
