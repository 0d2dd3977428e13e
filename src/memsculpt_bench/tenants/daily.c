// SPDX-License-Identifier: Apache-2.0
/*
 * daily BASE_MIB PEAK_MIB PERIOD_MS DAY_MS RAMP_MS OFFSET_MS TOLD
 *
 * A service with a daily rhythm, compressed in time: at night it works on BASE_MIB, in its day on PEAK_MIB. The day
 * begins with a ramp of RAMP_MS in which memory is taken, and ends with all of it given back at once. What it has is
 * touched once a second, a tenth every STEP_MS; in between it sleeps. Every step is timed: one that takes longer than
 * STEP_MS is late, and what it is late by is the service's stall. Every second a line is appended to TOLD:
 *
 *     seconds-since-start held-mib steps stall-ms longest-ms
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STEP_MS 100
#define PAGE 4096
#define PARTS 10
/* Of each page so many bytes are random, so that it compresses to about a quarter, as heaps do. */
#define RANDOM_BYTES 1024

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_until(int64_t at_ns)
{
	struct timespec at = { at_ns / 1000000000LL, at_ns % 1000000000LL };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
		;
}

static uint64_t noise[2 * RANDOM_BYTES / 8];

static void make_noise(void)
{
	uint64_t state = 0x9e3779b97f4a7c15ULL;

	for (size_t at = 0; at < sizeof(noise) / 8; at++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		noise[at] = state;
	}
}

/* No two of many pages are alike. */
static void fill(unsigned char *page, uint64_t number)
{
	uint64_t *word = (uint64_t *)page;
	size_t from = number % (RANDOM_BYTES / 8);

	for (size_t at = 0; at < RANDOM_BYTES / 8; at++)
		word[at] = noise[from + at] + number;
	word[PAGE / 8 - 1] = number;
}

/* What it works on at a time of its day, in pages. */
static long wanted_pages(int64_t at_ms, long base, long peak, long day_ms, long ramp_ms)
{
	if (at_ms >= day_ms)
		return base;
	if (at_ms >= ramp_ms)
		return peak;
	return base + (peak - base) * at_ms / ramp_ms;
}

int main(int count, char **words)
{
	long base, peak, period_ms, day_ms, ramp_ms, offset_ms, held = 0, steps = 0, worst_ms = 0, stall_ms = 0;
	unsigned char *memory;
	int64_t begin_ns, due_ns;
	int told;

	if (count != 8)
		return 2;
	base = atol(words[1]) * 256;
	peak = atol(words[2]) * 256;
	period_ms = atol(words[3]);
	day_ms = atol(words[4]);
	ramp_ms = atol(words[5]);
	offset_ms = atol(words[6]);
	told = open(words[7], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	memory = mmap(NULL, peak * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (told < 0 || memory == MAP_FAILED || peak < base || period_ms <= 0)
		return 2;
	madvise(memory, peak * PAGE, MADV_NOHUGEPAGE);
	make_noise();
	begin_ns = due_ns = now_ns();
	for (;; steps++) {
		int64_t at_ms = ((due_ns - begin_ns) / 1000000 + period_ms - offset_ms) % period_ms, took_ms;
		long wanted = wanted_pages(at_ms, base, peak, day_ms, ramp_ms);

		for (; held < wanted; held++)
			fill(memory + held * PAGE, held);
		if (held > wanted) {
			madvise(memory + wanted * PAGE, (held - wanted) * PAGE, MADV_DONTNEED);
			held = wanted;
		}
		for (long page = steps % PARTS; page < held; page += PARTS) {
			uint64_t *last = (uint64_t *)(memory + page * PAGE + PAGE - 8);

			if (*last != (uint64_t)page)
				return 3; /* what was written is not what is there */
			*(volatile uint64_t *)last = page;
		}
		took_ms = (now_ns() - due_ns) / 1000000;
		worst_ms = took_ms > worst_ms ? took_ms : worst_ms;
		if (took_ms > STEP_MS)
			stall_ms += took_ms - STEP_MS;
		if (steps % PARTS == 0) {
			char line[128];
			int length = snprintf(line, sizeof(line), "%.3f %ld %ld %ld %ld\n",
					      (now_ns() - begin_ns) / 1e9, held / 256, steps, stall_ms, worst_ms);

			if (write(told, line, length) != length)
				return 4;
			worst_ms = 0;
		}
		/* A step that is late is not made up for: the next begins when it should, or now. */
		due_ns += STEP_MS * 1000000LL;
		if (due_ns < now_ns())
			due_ns = now_ns();
		sleep_until(due_ns);
	}
}
