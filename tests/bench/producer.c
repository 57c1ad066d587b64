/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reports random accesses at a rate: producer SOCKET HOW RATE SECONDS SPAN CAPACITY
 *
 * Begins when a line comes from standard input. HOW is "batches" (of up to 4096) or "singles", RATE in reports per second,
 * SPAN bytes of addresses, a power of two. At the end: sent, dropped, nanoseconds it took, nanoseconds of CPU time.
 */
#define _GNU_SOURCE
#include "kdamon_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define BATCH 4096

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static uint64_t seed = 88172645463325252u;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void report(struct kdamon_reports *r, bool singles, uint64_t n, uint64_t span)
{
	static const struct kdamon_report_record blank = KDAMON_REPORT_INIT;
	static struct kdamon_report_record records[BATCH];
	int32_t pid = kdamon_report_pid(r);
	uint64_t i;

	for (i = 0; i < n; i++) {
		if (singles) {
			kdamon_report(r, next_random() & (span - 1), 1, pid, false, -1, 0);
		} else {
			records[i] = blank;
			records[i].addr = next_random() & (span - 1);
			records[i].pid = pid;
		}
	}
	if (!singles)
		kdamon_report_batch(r, records, n);
}

int main(int argc, char **argv)
{
	uint64_t begin, elapsed, rate, length, span, due, n;
	struct timespec nap = { 0, 200000 };
	struct kdamon_reports *r;
	bool singles;

	if (argc != 7)
		return 2;
	singles = !strcmp(argv[2], "singles");
	rate = strtoull(argv[3], NULL, 0);
	length = strtod(argv[4], NULL) * 1e9;
	span = strtoull(argv[5], NULL, 0);
	r = kdamon_report_open_sized(argv[1], atoi(argv[6]));
	if (!r) {
		perror(argv[1]);
		return 1;
	}
	getchar();
	begin = now(CLOCK_MONOTONIC);
	while ((elapsed = now(CLOCK_MONOTONIC) - begin) < length) {
		due = (uint64_t)((double)elapsed * 1e-9 * (double)rate) - kdamon_report_sent(r);
		if (due < BATCH / 4)
			nanosleep(&nap, NULL);
		for (; due; due -= n) {
			n = due < BATCH ? due : BATCH;
			report(r, singles, n, span);
		}
	}
	printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", kdamon_report_sent(r), kdamon_report_dropped(r), elapsed,
	       now(CLOCK_PROCESS_CPUTIME_ID));
	kdamon_report_close(r);
	return 0;
}
