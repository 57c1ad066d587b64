/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A process with memory of many names: named FILE
 *
 * Prints lines "KIND ADDRESS SIZE", and "-" in place of the address of what this kernel or machine lacks; then writes
 * to all of it until its standard input ends. A thread named "sleeper" waits.
 */
#define _GNU_SOURCE
#include "kdamon_report.h"

#include <pthread.h>
#include <sys/prctl.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define SIZE (1ul << 20)

static char data[SIZE] = { 1 };
static char bss[SIZE];
static char area[SIZE];
static const char rodata[SIZE] = { 1 };
static volatile bool known;

static void say(const char *kind, const volatile void *at, size_t size)
{
	if (at)
		printf("%s %lu %zu\n", kind, (unsigned long)at, size);
	else
		printf("%s - 0\n", kind);
	fflush(stdout);
}

static void *sleeper(void *unused)
{
	volatile char own[4096] = { 0 };

	(void)unused;
	prctl(PR_SET_NAME, "sleeper");
	own[0] = 1;
	say("stack", own, sizeof(own));
	known = true;
	pause();
	return (void *)(uintptr_t)own[0];
}

static char *mapped(int fd, int flags)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, fd < 0 ? 0 : 8192);

	return at == MAP_FAILED ? NULL : at;
}

int main(int argc, char **argv)
{
	char *heap, *file, *anonymous, *named;
	struct pollfd end = { 0, POLLIN, 0 };
	pthread_t thread;
	int fd;

	if (argc != 2)
		return 2;
	fd = open(argv[1], O_RDWR);
	heap = (char *)sbrk(SIZE);
	file = mapped(fd, MAP_SHARED);
	anonymous = mapped(-1, MAP_PRIVATE | MAP_ANONYMOUS);
	named = mapped(-1, MAP_PRIVATE | MAP_ANONYMOUS);
	if (fd < 0 || heap == (char *)-1 || !file || !anonymous || !named)
		return 1;
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, SIZE, "arena 7"))
		named = NULL;
	say("data", data, SIZE);
	say("bss", bss, SIZE);
	say("rodata", rodata, SIZE);
	say("heap", heap, SIZE);
	say("file", file, SIZE);
	say("anonymous", anonymous, SIZE);
	say("named", named, SIZE);
	say("area", kdamon_name(area, SIZE, "buffer \xe2\x80\xae\x1b[31mpool") ? area : NULL, SIZE);
	pthread_create(&thread, NULL, sleeper, NULL);
	while (!known)
		usleep(1000);
	say("end", data, 0);
	for (int n = 0; !poll(&end, 1, 0); n++) {
		memset(data, n, SIZE);
		memset(bss, n, SIZE);
		memset(area, n, SIZE);
		memset(heap, n, SIZE);
		memset(file, n, SIZE);
		memset(anonymous, n, SIZE);
		usleep(1000);
	}
	return 0;
}
