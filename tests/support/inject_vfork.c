// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process and its child of vfork(), without randomised addresses. "inject_vfork" writes the child's pid, an int, to
 * its standard output. What it has on its stack reaches down to the end, so it is to be linked with "-z now". A byte on
 * its standard input has the child, which lives in its parent's memory until then, exec() this program to sleep. At the
 * next byte the parent prints "good", or "differs" if its stack is not as it was.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <unistd.h>

#define SIZE (256 << 10)

static int work(void)
{
	static char *const argv[] = { "sleeping", "sleep", NULL };
	char kept[SIZE], byte;
	int i, pid;

	memset(kept, 'k', SIZE);
	__asm__ volatile("" : : "r"(kept) : "memory");
	if (vfork() == 0) {
		pid = getpid();
		fcntl(1, F_SETFD, FD_CLOEXEC);
		if (write(1, &pid, sizeof(pid)) == sizeof(pid) && read(0, &byte, 1) == 1)
			execve("/proc/self/exe", argv, NULL);
		_exit(1);
	}
	if (read(0, &byte, 1) != 1)
		return 1;
	__asm__ volatile("" : : "r"(kept) : "memory");
	for (i = 0; i < SIZE && kept[i] == 'k'; i++)
		;
	puts(i == SIZE ? "good" : "differs");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return sleep(3600);
	if (personality(0xffffffff) & ADDR_NO_RANDOMIZE)
		return work();
	personality(ADDR_NO_RANDOMIZE);
	execv("/proc/self/exe", argv);
	return 1;
}
