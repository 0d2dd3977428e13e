# SPDX-License-Identifier: Apache-2.0
"""How chosen runs are cut, and which swap devices count as prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux import runs, transfer
from tests.host.linux.test_runs import PAGE, page_sets, runs_from

HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@given(page_sets, st.sampled_from([1, 3, 64]), st.lists(st.integers(0, 200), max_size=4))
def test_stretches_are_the_whole_in_order(pages, count, cuts):
    """Every part but the last is full, nothing is lost or doubled, and neighbours that were apart stay apart."""
    chosen = runs.split(runs_from(pages), [cut * PAGE for cut in sorted(cuts)])
    parts = list(transfer.stretches_of(chosen, count * PAGE))
    addresses = [address for part in parts for address in runs.pages_of(part, PAGE).tolist()]
    starts = {start for part in parts for start, _ in part.tolist()}

    assert addresses == runs.pages_of(chosen, PAGE).tolist()
    assert all(runs.size_of(part) == count * PAGE for part in parts[:-1])
    assert starts >= {start for start, _ in chosen.tolist()}


@pytest.mark.parametrize(
    ("devices", "prompt"),
    [
        ((), True),
        (("/dev/zram0",), True),
        (("/dev/zram0", "/dev/zram12"), True),
        (("/swapfile",), False),
        (("/dev/zram0", "/dev/nvme0n1p3"), False),
        (("/srv/dev/zram0",), False),
        (("/dev/zram-store/swap",), False),
    ],
)
def test_compressed_memory_is_prompt_and_disks_are_not(tmp_path, devices, prompt):
    """One disk among them is enough: a page may have gone there."""
    rows = "".join(f"{device}\tpartition\t1048572\t0\t-2\n" for device in devices)
    (tmp_path / "swaps").write_text(HEADER + rows)

    assert transfer.is_prompt(str(tmp_path)) is prompt
