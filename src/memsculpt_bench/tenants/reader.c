// SPDX-License-Identifier: Apache-2.0
/*
 * A program that does nothing but read memory at random, and tells how fast: operations of READS reads each, counted
 * in a histogram of their durations that lies in a shared file (64 octaves of 32 steps), for whoever maps it.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define READS 64
#define STEPS 32

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static unsigned row_of(uint64_t ns)
{
	unsigned octave = 63 - __builtin_clzll(ns | 1);

	return octave < 5 ? ns : octave * STEPS + ((ns >> (octave - 5)) & (STEPS - 1));
}

int main(int count, char **words)
{
	uint64_t bytes, pages, chance = 88172645463325252ULL, sum = 0;
	uint64_t *told;
	volatile uint64_t *memory;
	int file;

	if (count != 3)
		return 2;
	bytes = strtoull(words[1], NULL, 10);
	pages = bytes / 4096;
	file = open(words[2], O_RDWR);
	told = mmap(NULL, 64 * STEPS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (file < 0 || told == MAP_FAILED || memory == MAP_FAILED)
		return 1;
	for (uint64_t page = 0; page < pages; page++)
		memory[page * 512] = page;
	puts("ready");
	fflush(stdout);
	for (;;) {
		uint64_t began = now_ns();

		for (int i = 0; i < READS; i++) {
			chance ^= chance << 13;
			chance ^= chance >> 7;
			chance ^= chance << 17;
			sum += memory[(chance >> 20) % pages * 512];
		}
		told[row_of(now_ns() - began)]++;
		if (sum == 1)
			return 3;
	}
}
