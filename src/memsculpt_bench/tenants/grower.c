// SPDX-License-Identifier: Apache-2.0
/*
 * A program whose allocations are known: it does all its work for each line on stdin, and answers with a line. Sizes
 * stand in memsculpt_bench/known_growth.py, too.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NEVER __attribute__((noinline))
#define MIB (1L << 20)
#define HUGE (2 * MIB)

char *kept[8];

NEVER void by_memset(long n)
{
	kept[0] = malloc(n);
	memset(kept[0], 1, n);
	__asm__ volatile("");
}

NEVER void by_loop(long n)
{
	char *p = malloc(n);

	for (long i = 0; i < n; i += 4096)
		p[i] = 1;
	kept[1] = p;
}

NEVER void freed(long n)
{
	char *p = malloc(n);

	memset(p, 1, n);
	__asm__ volatile("" ::"r"(p) : "memory");
	free(p);
}

NEVER void moved(long n)
{
	char *p = malloc(n);

	memset(p, 1, n);
	mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	kept[2] = realloc(p, 4 * n);
	__asm__ volatile("");
}

NEVER void small(long n)
{
	for (long i = 0; i < n; i += 240)
		memset(malloc(232), 2, 232);
	__asm__ volatile("");
}

NEVER void huge(long n)
{
	char *p = mmap(0, n + HUGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	p = (char *)(((long)p + HUGE - 1) & ~(HUGE - 1));
	madvise(p, n, MADV_HUGEPAGE);
	for (long i = 0; i < n; i += 4096)
		p[i] = 1;
	kept[3] = p;
}

int main(void)
{
	char line[9];

	mallopt(M_MMAP_THRESHOLD, MIB); /* else it rises with what is freed, and freed memory serves the next */
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		by_memset(32 * MIB);
		by_loop(16 * MIB);
		freed(8 * MIB);
		moved(8 * MIB);
		huge(16 * MIB);
		small(12 * MIB);
		puts("done");
		fflush(stdout);
	}
	return 0;
}
