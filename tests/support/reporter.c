/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A producer of reports for the tests: reporter SOCKET CAPACITY
 *
 * Says "ready PID" or "refused ERRNO", then does what the lines on its standard input say:
 *
 *	report PID ADDR SIZE N	reports N accesses one by one, at ADDR, ADDR + SIZE, ...; answers how many found room
 *	batch PID ADDR SIZE N	the same in batches of up to 1000
 *	flood PID N		reports N accesses of random addresses without a pause, in batches; answers likewise
 *	name PID ADDR SIZE TEXT	names an area; answers 1 if there was room
 *	dumpable 0|1		PR_SET_DUMPABLE; answers 0
 *	counters		answers SENT DROPPED
 *	connected		answers 0 or 1
 *	close			gives the ring back; answers 0
 */
#define _GNU_SOURCE
#include "kdamon_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/prctl.h>

#define BATCH 1000

static uint64_t batch(struct kdamon_reports *r, int32_t pid, uint64_t addr, uint64_t size, uint64_t n)
{
	static struct kdamon_report_record records[BATCH];
	const struct kdamon_report_record blank = KDAMON_REPORT_INIT;
	uint64_t taken = 0, i, part;

	for (; n; n -= part) {
		part = n < BATCH ? n : BATCH;
		for (i = 0; i < part; i++, addr += size) {
			records[i] = blank;
			records[i].pid = pid;
			records[i].addr = addr;
			records[i].size = size;
		}
		taken += kdamon_report_batch(r, records, part);
	}
	return taken;
}

static uint64_t flood(struct kdamon_reports *r, int32_t pid, uint64_t n)
{
	uint64_t seed = 88172645463325252u, taken = 0;

	while (n--) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		taken += kdamon_report(r, seed & 0xfffffff, 1, pid, seed >> 63, -1, 0);
	}
	return taken;
}

int main(int argc, char **argv)
{
	struct kdamon_reports *r;
	uint64_t addr, size, n, taken;
	char line[200], text[100];
	int32_t pid;

	if (argc != 3)
		return 2;
	r = kdamon_report_open_sized(argv[1], atoi(argv[2]));
	if (!r) {
		printf("refused %d\n", errno);
		return 1;
	}
	printf("ready %d\n", kdamon_report_pid(r));
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "report %d %" SCNu64 " %" SCNu64 " %" SCNu64, &pid, &addr, &size, &n) == 4) {
			for (taken = 0; n; n--, addr += size)
				taken += kdamon_report(r, addr, size, pid, false, 0, 0);
			printf("%" PRIu64 "\n", taken);
		} else if (sscanf(line, "batch %d %" SCNu64 " %" SCNu64 " %" SCNu64, &pid, &addr, &size, &n) == 4) {
			printf("%" PRIu64 "\n", batch(r, pid, addr, size, n));
		} else if (sscanf(line, "name %d %" SCNu64 " %" SCNu64 " %99[^\n]", &pid, &addr, &size, text) == 4) {
			printf("%d\n", kdamon_report_name(r, addr, size, pid, text));
		} else if (sscanf(line, "flood %d %" SCNu64, &pid, &n) == 2) {
			printf("%" PRIu64 "\n", flood(r, pid, n));
		} else if (!strcmp(line, "counters\n")) {
			printf("%" PRIu64 " %" PRIu64 "\n", kdamon_report_sent(r), kdamon_report_dropped(r));
		} else if (!strcmp(line, "connected\n")) {
			printf("%d\n", kdamon_report_connected(r));
		} else if (sscanf(line, "dumpable %d", &pid) == 1) {
			printf("%d\n", prctl(PR_SET_DUMPABLE, pid, 0, 0, 0));
		} else if (!strcmp(line, "close\n")) {
			kdamon_report_close(r);
			r = NULL;
			printf("0\n");
		}
		fflush(stdout);
	}
	kdamon_report_close(r);
	return 0;
}
