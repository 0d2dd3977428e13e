// SPDX-License-Identifier: Apache-2.0
/*
 * restless SEED - a program whose memory is never quite the same: once a second, between 256 KiB and 2 MiB of it, in
 * steps of 256 KiB, is touched, and the rest given back. Ends with its parent.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STEP (256UL << 10)
#define STEPS 8UL
#define PAGE 4096UL

int main(int argc, char **argv)
{
	uint64_t state = argc > 1 ? strtoull(argv[1], NULL, 10) * 2654435761UL + 1 : 1;
	unsigned char *area;

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
		return 1;
	area = mmap(NULL, STEPS * STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		return 1;
	/* 4 KiB pages: a huge page would be the same size at every step. */
	madvise(area, STEPS * STEP, MADV_NOHUGEPAGE);
	for (;;) {
		uint64_t wanted;

		state = state * 6364136223846793005UL + 1442695040888963407UL;
		wanted = (1 + (state >> 33) % STEPS) * STEP;
		for (uint64_t at = 0; at < wanted; at += PAGE)
			area[at] = 1;
		if (wanted < STEPS * STEP)
			madvise(area + wanted, STEPS * STEP - wanted, MADV_DONTNEED);
		sleep(1);
	}
}
