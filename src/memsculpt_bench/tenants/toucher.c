// SPDX-License-Identifier: Apache-2.0
/*
 * Memory whose touched pages are known. toucher KIND PAGES MARKS [FILE]
 *
 * KIND is private, huge, shared, inherited (shared with a child), copied (private, forked) or file (FILE, mapped shared). Every page is written
 * once, then the address is printed. MARKS is a file with one byte a page: each line on stdin has the pages touched
 * whose byte is set: "t" once, "w" once by writing, "s" again and again until the process is killed.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)

int main(int count, char **words)
{
	unsigned long pages, bytes, page, chosen = 0, sum = 0, *places;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, file = -1, marks;
	volatile char *memory;
	char *mark, line[16], *room;

	if (count < 4)
		return 2;
	pages = strtoul(words[2], NULL, 10);
	bytes = pages * PAGE;
	if (!strcmp(words[1], "file")) {
		file = open(words[4], O_RDWR);
		if (file < 0 || ftruncate(file, bytes))
			return 1;
		flags = MAP_SHARED;
	} else if (!strcmp(words[1], "shared") || !strcmp(words[1], "inherited")) {
		flags = MAP_SHARED | MAP_ANONYMOUS;
	}
	if (!strcmp(words[1], "huge")) {
		room = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
		memory = (char *)(((unsigned long)room + HUGE - 1) & ~(HUGE - 1));
		if (room == MAP_FAILED || madvise((void *)memory, bytes, MADV_HUGEPAGE))
			return 1;
	} else {
		memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
		if (memory == MAP_FAILED)
			return 1;
	}
	for (page = 0; page < pages; page++)
		memory[page * PAGE] = (char)page | 1;
	if (!strcmp(words[1], "inherited") || !strcmp(words[1], "copied")) {
		if (!fork()) { /* a second process that maps the same pages and touches none of them any more */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (flags & MAP_SHARED)
				for (page = 0; page < pages; page++)
					sum += memory[page * PAGE];
			for (;;)
				pause();
		}
		usleep(1000 + pages / 4);
	}
	printf("%lu\n", (unsigned long)memory);
	fflush(stdout);
	places = malloc(pages * sizeof(*places));
	while (fgets(line, sizeof(line), stdin)) {
		marks = open(words[3], O_RDONLY);
		mark = mmap(NULL, pages, PROT_READ, MAP_PRIVATE, marks, 0);
		if (mark == MAP_FAILED)
			return 1;
		for (chosen = 0, page = 0; page < pages; page++)
			if (mark[page])
				places[chosen++] = page * PAGE;
		munmap(mark, pages);
		close(marks);
		if (line[0] == 's') {
			puts("spinning");
			fflush(stdout);
		}
		do {
			for (page = 0; page < chosen; page++) {
				if (line[0] == 'w')
					memory[places[page]] = 3;
				else
					sum += memory[places[page]];
			}
		} while (line[0] == 's');
		printf("%lu\n", sum & 1 ? chosen : chosen);
		fflush(stdout);
	}
	return 0;
}
