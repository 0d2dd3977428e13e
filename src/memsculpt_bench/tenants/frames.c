// SPDX-License-Identifier: Apache-2.0
// Holds COUNT locked pages, each with a line of its own, and prints where they lie in physical memory: run as root.
//
//   frames COUNT    one line for each page: its physical address, and what stands in it; then it sleeps

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PRESENT (UINT64_C(1) << 63)
#define FRAME ((UINT64_C(1) << 55) - 1) // pagemap(5), bits 0 to 54

int main(int argc, char **argv)
{
    long count = argc == 2 ? strtol(argv[1], NULL, 10) : 0;
    if (count < 1 || count > 4096) {
        fprintf(stderr, "usage: frames COUNT\n");
        return 2;
    }
    char *memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mlock(memory, count * PAGE) != 0) {
        perror("memory");
        return 1;
    }
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (long page = 0; page < count; page++) {
        char *at = memory + page * PAGE;
        snprintf(at, PAGE, "memsculpt-frame-%ld-of-%ld", page, count);
        uint64_t entry = 0;
        off_t offset = (off_t)((uintptr_t)at / PAGE * sizeof entry);
        if (pread(pagemap, &entry, sizeof entry, offset) != sizeof entry || !(entry & PRESENT) || !(entry & FRAME)) {
            fprintf(stderr, "page %ld has no frame that this user may know\n", page);
            return 1;
        }
        printf("%" PRIu64 " %s\n", (entry & FRAME) * PAGE, at);
    }
    fflush(stdout);
    for (;;)
        pause();
}
