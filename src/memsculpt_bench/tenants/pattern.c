// SPDX-License-Identifier: Apache-2.0
/* Fills memory with a pattern that depends on a seed and on each page's number, and then does as it is told.
 *
 *   pattern BYTES SEED FIFO ANSWERS
 *
 * Commands are lines of FIFO, answers lines of ANSWERS:
 *   verify       every page: "verified PAGES bad BAD"
 *   loop A B     reads a byte of each page from A up to B, every 20 ms, from now on; "loop A B"
 *   where PAGE   the page's guest-physical address (proc/PID/pagemap, for root): "where PAGE ADDRESS"
 *   digest PAGE  the first eight bytes of the page as a number: "digest PAGE VALUE"
 * A page is a fifth noise and the rest repeated, so that it compresses like most memory and no two are alike.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L
#define WORDS (PAGE / 8)
#define NOISE 96
#define FRAME ((1ULL << 55) - 1)

static uint64_t *memory;
static long pages;
static uint64_t seed;

/* The finaliser of MurmurHash3: every bit of the input changes half of the output. */
static uint64_t mixed(uint64_t value)
{
	value ^= value >> 33;
	value *= 0xff51afd7ed558ccdULL;
	value ^= value >> 33;
	value *= 0xc4ceb9fe1a85ec53ULL;
	return value ^ (value >> 33);
}

static uint64_t word_of(long page, long number)
{
	uint64_t own = mixed(seed + (uint64_t)page);

	return number < NOISE ? mixed(own + (uint64_t)number) : own;
}

static long count_bad(void)
{
	long bad = 0;

	for (long page = 0; page < pages; page++)
		for (long number = 0; number < WORDS; number++)
			if (memory[page * WORDS + number] != word_of(page, number)) {
				bad++;
				break;
			}
	return bad;
}

static uint64_t address_of(long page)
{
	uint64_t entry = 0;
	int map = open("/proc/self/pagemap", O_RDONLY);

	if (map < 0)
		return 0;
	if (pread(map, &entry, 8, (off_t)((uintptr_t)(memory + page * WORDS) / PAGE * 8)) != 8)
		entry = 0;
	close(map);
	return (entry & FRAME) * PAGE;
}

int main(int count, char **words)
{
	char line[256];
	long low = 0, high = 0, first, last;

	if (count != 5)
		return 2;
	pages = atol(words[1]) / PAGE;
	seed = strtoull(words[2], NULL, 0);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	for (long page = 0; page < pages; page++)
		for (long number = 0; number < WORDS; number++)
			memory[page * WORDS + number] = word_of(page, number);
	struct pollfd asked = {.fd = open(words[3], O_RDWR), .events = POLLIN};
	FILE *answers = fopen(words[4], "w");

	if (asked.fd < 0 || answers == NULL)
		return 1;
	fprintf(answers, "ready %ld\n", pages);
	fflush(answers);
	for (;;) {
		if (poll(&asked, 1, high > low ? 20 : -1) == 0) {
			for (long page = low; page < high; page++)
				(void)*(volatile uint64_t *)(memory + page * WORDS);
			continue;
		}
		ssize_t got = read(asked.fd, line, sizeof(line) - 1);

		if (got <= 0)
			return 1;
		line[got] = 0;
		if (strncmp(line, "verify", 6) == 0) {
			fprintf(answers, "verified %ld bad %ld\n", pages, count_bad());
		} else if (sscanf(line, "loop %ld %ld", &first, &last) == 2 && first >= 0 && last <= pages) {
			low = first;
			high = last;
			fprintf(answers, "loop %ld %ld\n", low, high);
		} else if (sscanf(line, "where %ld", &first) == 1 && first >= 0 && first < pages) {
			fprintf(answers, "where %ld %llu\n", first, (unsigned long long)address_of(first));
		} else if (sscanf(line, "digest %ld", &first) == 1 && first >= 0 && first < pages) {
			fprintf(answers, "digest %ld %llu\n", first, (unsigned long long)memory[first * WORDS]);
		} else {
			fprintf(answers, "what %s\n", line);
		}
		fflush(answers);
	}
}
