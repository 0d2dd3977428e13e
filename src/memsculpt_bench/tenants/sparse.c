// SPDX-License-Identifier: Apache-2.0
/*
 * A heap of which every other region of 2 MiB is in use and the rest holds one page in SPARSE, read at random where it
 * is in use; counts its reads in a shared file, for whoever maps it.
 *
 * sparse HOT_BYTES SPARSE MODE FILE; MODE: 4k (huge pages switched off for it), thp (asked for everywhere, as a kernel
 * that gives them always would), plain (as the kernel does by itself).
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096UL
#define REGION (2UL << 20)
#define WORDS (REGION / 8)
#define READS 4096

int main(int count, char **words)
{
	uint64_t regions, sparse, chance = 88172645463325252ULL, sum = 0;
	volatile uint64_t *told;
	char *place;
	uint64_t *heap;
	int file;

	if (count != 5)
		return 2;
	regions = strtoull(words[1], NULL, 10) / REGION;
	sparse = strtoull(words[2], NULL, 10);
	if (!strcmp(words[3], "4k") && prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		return 1;
	file = open(words[4], O_RDWR);
	told = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	place = mmap(NULL, (2 * regions + 1) * REGION, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (file < 0 || told == MAP_FAILED || place == MAP_FAILED)
		return 1;
	heap = (uint64_t *)(((uintptr_t)place + REGION - 1) / REGION * REGION);
	if (!strcmp(words[3], "thp") && madvise(heap, 2 * regions * REGION, MADV_HUGEPAGE))
		return 1;
	for (uint64_t page = 0; page < 2 * regions * (REGION / PAGE); page++)
		if (page / (REGION / PAGE) % 2 == 0 || page % sparse == 0)
			heap[page * (PAGE / 8)] = page;
	puts("ready");
	fflush(stdout);
	for (;;) {
		for (int i = 0; i < READS; i++) {
			chance ^= chance << 13;
			chance ^= chance >> 7;
			chance ^= chance << 17;
			sum += ((volatile uint64_t *)heap)[(chance >> 44) % regions * 2 * WORDS +
							   (chance & (WORDS - 1))];
		}
		*told += READS;
		if (sum == 1)
			return 3;
	}
}
