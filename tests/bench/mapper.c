/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Times its own mmap(), touch and munmap() while it uses memory: mapper FILE MIB
 *
 * MIB of the file and as much of anonymous memory are read again and again. For each line from standard input it prints
 * how many were timed since the last one, and the time in microseconds that 50, 99 and 99.9 % of them did not exceed,
 * and the longest.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define LIMIT 1000000

static unsigned int times[LIMIT];
static volatile size_t timed;
static unsigned char *memory[2];
static size_t size;
static volatile unsigned char sum;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void *time_mappings(void *unused)
{
	double begin;
	unsigned char *m;

	for (;;) {
		begin = now();
		m = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		m[0] = m[PAGE] = 1;
		munmap(m, 4 * PAGE);
		if (timed < LIMIT)
			times[timed++] = now() - begin;
		usleep(50);
	}
	return unused;
}

static void *use_memory(void *unused)
{
	for (;;)
		for (size_t at = 0; at < size; at += PAGE) {
			sum += memory[0][at] + memory[1][at];
			if (at % (128 * PAGE) == 0)
				usleep(500);
		}
	return unused;
}

static int ascending(const void *a, const void *b)
{
	const unsigned int *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line[16];
	int fd;

	if (argc != 3)
		return 2;
	size = strtoul(argv[2], NULL, 0) << 20;
	fd = open(argv[1], O_RDONLY);
	memory[0] = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	memory[1] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fd < 0 || memory[0] == MAP_FAILED || memory[1] == MAP_FAILED)
		return 1;
	madvise(memory[1], size, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < size; at += PAGE)
		memory[1][at] = 1;
	pthread_create(&thread, NULL, use_memory, NULL);
	pthread_create(&thread, NULL, time_mappings, NULL);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		size_t n = timed;

		qsort(times, n, sizeof(*times), ascending);
		if (n)
			printf("%zu %u %u %u %u\n", n, times[n / 2], times[n * 99 / 100], times[n * 999 / 1000], times[n - 1]);
		else
			puts("0 0 0 0 0");
		fflush(stdout);
		timed = 0;
	}
	return 0;
}
