# SPDX-License-Identifier: Apache-2.0
"""Whole stacks without frame pointers, held against a program whose calls are known."""

import shutil
import subprocess

import pytest

from memsculpt_bench.known_growth import Worker, recorded

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("page_walk"), pytest.mark.timeout(60)]
MIB = 1 << 20
NOT_INLINED = "__attribute__((noinline, noipa))"
SOURCE = r"""
#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static char *fresh(long size) { return mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
NI long touch(char *at, long size) { for (long i = 0; i < size; i += 4096) at[i] = 1; return size + at[0]; }
NI long innermost(long size) { return touch(fresh(size), size) + 1; }
/* Room that is known only when it runs: the frame pointer holds its beginning. */
NI long with_room(long size, long room) {
	char *held = alloca(room);
	memset(held, 1, room);
	return innermost(size) + held[room / 2];
}
NI long outer(long size) { return with_room(size, size >> 12) + 2; }
/* Through the C library and back, and the fault in the C library. */
NI int compare(const void *a, const void *b) {
	static int done;
	if (!done++) outer(6 << 20);
	return *(int *)a - *(int *)b;
}
NI long sorts(void) { int some[3] = {3, 1, 2}; qsort(some, 3, sizeof(int), compare); return some[0]; }
NI long fills(long size) { return memset(fresh(size), 7, size) != 0; }
/* The kernel faults on the program's behalf. */
NI long reads(long size) { int zero = open("/dev/zero", O_RDONLY); return read(zero, fresh(size), size) + close(zero); }
NI long deep(long left, long size) { return left ? deep(left - 1, size) + 1 : innermost(size) + 1; }
NI void *of_thread(void *size) { return (void *)innermost((long)size); }
int main(void) {
	pthread_t other;
	puts("ready"); fflush(stdout); getchar();
	outer(4 << 20); sorts(); fills(3 << 20); reads(5 << 20); deep(20, 4 << 20);
	pthread_create(&other, 0, of_thread, (void *)(7L << 20)); pthread_join(other, 0);
	puts("done"); fflush(stdout);
	for (;;) getchar();
}
""".replace("NI ", NOT_INLINED + " ")
# When copies come too fast one fault in 13 has one: at either end of a chain 13 may go to its neighbour.
# Of the functions of the program itself, and how much they bring in MiB.
CHAINS = {
    ("touch", "innermost", "with_room", "outer", "main", "_start"): 4,
    ("touch", "innermost", "with_room", "outer", "compare", "sorts", "main", "_start"): 6,
    ("fills", "main", "_start"): 3,
    ("reads", "main", "_start"): 5,
    ("touch", "innermost", *["deep"] * 21, "main", "_start"): 4,
    ("touch", "innermost", "of_thread"): 7,
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    folder = tmp_path_factory.mktemp("unwound")
    (folder / "caller.c").write_text(SOURCE)
    flags = ("-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls")
    subprocess.run(["cc", *flags, "-o", folder / "caller", folder / "caller.c", "-lpthread"], check=True)
    program = Worker((str(folder / "caller"),))
    try:
        return recorded(program)
    finally:
        program.end()


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join(chain[:6]))
def test_calls_are_told_in_their_order(recording, chain):
    size_bytes = sum(
        one.touched_bytes
        for one in recording.stacks
        if tuple(function for function, module in one.frames if module.endswith("/caller")) == chain
    )

    assert size_bytes == pytest.approx(CHAINS[chain] * MIB, rel=0.02)


def test_every_stack_reaches_the_first_function_of_its_thread(recording):
    grown = [one for one in recording.stacks if one.kind != "file"]
    reaching = sum(
        one.touched_bytes for one in grown if one.frames and one.frames[-1][0].endswith(("_start", "clone3"))
    )

    assert reaching == pytest.approx(sum(one.touched_bytes for one in grown), rel=0.02)
    assert not any("before its first function" in note for note in recording.notes)
