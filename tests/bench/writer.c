/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writes to memory and counts its writes: writer idle|sequential|random THREADS MIB SECONDS
 *
 * Prints "START END" of the memory in pages of 4 KiB, bytes. For each line from standard input it prints the time
 * (CLOCK_MONOTONIC, nanoseconds) and how many writes were done by then. It ends with its input, or after SECONDS.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define LINE 64
#define BATCH 1000
#define MOST_THREADS 64

/* Each in a cache line of its own. */
static struct {
	_Alignas(LINE) volatile uint64_t writes;
} counts[MOST_THREADS];
static volatile uint8_t *memory;
static size_t size;
static long threads;

/* Every cache line, one after the other; each thread begins in another part. */
static void *sequential(void *number)
{
	size_t at = size / threads * (size_t)number / LINE * LINE;

	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			memory[at]++;
			at += LINE;
			if (at >= size)
				at = 0;
		}
		counts[(size_t)number].writes += BATCH;
	}
	return NULL;
}

static void *anywhere(void *number)
{
	uint64_t x = 88172645463325252ull + (size_t)number;

	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memory[x % size]++;
		}
		counts[(size_t)number].writes += BATCH;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	void *(*work)(void *) = NULL;
	struct timespec now;
	pthread_t thread;
	char line[16];

	if (argc != 5)
		return 2;
	threads = atol(argv[2]);
	size = strtoul(argv[3], NULL, 0) << 20;
	if (threads < 1 || threads > MOST_THREADS || !size)
		return 2;
	if (!strcmp(argv[1], "sequential"))
		work = sequential;
	else if (!strcmp(argv[1], "random"))
		work = anywhere;
	else if (strcmp(argv[1], "idle"))
		return 2;
	alarm(atoi(argv[4]));

	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	madvise((void *)memory, size, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	for (long i = 0; work && i < threads; i++)
		if (pthread_create(&thread, NULL, work, (void *)i)) {
			perror("pthread_create");
			return 1;
		}
	printf("%lu %lu\n", (unsigned long)memory, (unsigned long)memory + size);
	fflush(stdout);

	while (fgets(line, sizeof(line), stdin)) {
		uint64_t sum = 0;

		clock_gettime(CLOCK_MONOTONIC, &now);
		for (int i = 0; i < MOST_THREADS; i++)
			sum += counts[i].writes;
		printf("%lu %lu\n", now.tv_sec * 1000000000ul + now.tv_nsec, (unsigned long)sum);
		fflush(stdout);
	}
	return 0;
}
