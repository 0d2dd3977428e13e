// SPDX-License-Identifier: Apache-2.0
// Stands in for a QEMU that costs nothing: takes any arguments, starts threads like virtual processors, and sleeps.
//
//   THREADS_FILE=PATH paused ...    writes the numbers of its threads, one a line, to PATH

#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS 4

static pthread_barrier_t all_written;
static FILE *numbers;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void *sleep_for_ever(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&one_at_a_time);
    fprintf(numbers, "%d\n", (int)gettid());
    pthread_mutex_unlock(&one_at_a_time);
    pthread_barrier_wait(&all_written);
    pause();
    return NULL;
}

int main(void)
{
    const char *path = getenv("THREADS_FILE");
    numbers = path ? fopen(path, "w") : NULL;
    if (!numbers) {
        perror("THREADS_FILE");
        return 1;
    }
    pthread_barrier_init(&all_written, NULL, THREADS + 1);
    for (int number = 0; number < THREADS; number++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, sleep_for_ever, NULL) != 0)
            return 1;
    }
    pthread_barrier_wait(&all_written);
    fclose(numbers);
    for (;;)
        pause();
}
