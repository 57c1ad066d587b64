/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A process with many mappings, or with many addresses: mappings KIND NUMBER
 *
 * KIND is "many" (NUMBER mappings of a page, side by side), "apart" (NUMBER mappings of 64 KiB with gaps, a page of
 * each populated) or "reserved" (NUMBER MiB, of which 64 are populated). For each line from standard input one page more
 * is mapped.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define PART (16 * PAGE)
#define POPULATED (64ul << 20)

static char *map(size_t size)
{
	char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (m == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return m;
}

int main(int argc, char **argv)
{
	char line[16], *m;
	size_t n;

	if (argc != 3)
		return 2;
	n = strtoul(argv[2], NULL, 0);
	if (!strcmp(argv[1], "many")) {
		m = map(n * PAGE);
		for (size_t i = 1; i < n; i += 2)
			if (mprotect(m + i * PAGE, PAGE, PROT_NONE))
				return 1;
	} else if (!strcmp(argv[1], "apart")) {
		m = map(2 * n * PART);
		for (size_t i = 0; i < n; i++) {
			m[2 * i * PART] = 1;
			if (munmap(m + (2 * i + 1) * PART, PART))
				return 1;
		}
	} else {
		m = map(n << 20);
		madvise(m, n << 20, MADV_NOHUGEPAGE);
		memset(m, 1, POPULATED);
	}
	do {
		puts("ready");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 0;
		/* Of a kind that does not merge with its neighbours. */
		m = mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	} while (m != MAP_FAILED);
	return 1;
}
