// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process whose accesses are known: it maps memory, prints "<address> <pages>", and touches exactly the pages that
 * it is told to on standard input: a byte 'r', 'w', 'a' or a command, a u32 count, that many u32 page numbers. It answers
 * each order with '.', or with what a command tells.
 *
 * usage: workload KIND PAGES [FILE]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)

static char *memory;
static size_t pages;
static uint32_t order[1 << 20];
static uint32_t count;
static char kind;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void receive(void *to, size_t size)
{
	for (char *at = to; size;) {
		ssize_t got = read(0, at, size);
		if (got <= 0)
			exit(0);
		at += got;
		size -= got;
	}
}

static void touch_all(void)
{
	volatile char *at = memory;
	for (uint32_t i = 0; i < count; i++) {
		size_t offset = order[i] * PAGE + 128;
		if (kind == 'w')
			at[offset] = (char)(order[i] * 7 + 3);
		else if (kind == 'a') /* reads, then writes */
			at[offset] += 1;
		else
			(void)at[offset];
	}
}

/* The data is what touching by 'w' wrote: counts the touched pages that hold anything else. */
static uint32_t spoilt(void)
{
	uint32_t wrong = 0;
	for (uint32_t i = 0; i < count; i++)
		wrong += memory[order[i] * PAGE + 128] != (char)(order[i] * 7 + 3);
	return wrong;
}

static void *toucher(void *barrier)
{
	for (;;) {
		pthread_barrier_wait(barrier);
		touch_all();
		pthread_barrier_wait(barrier);
	}
	return NULL;
}

static void *heater(void *unused)
{
	static uint32_t hot[1 << 10];
	uint32_t number = count < (1 << 10) ? count : 1 << 10;

	memcpy(hot, order, number * sizeof(hot[0]));
	if (write(1, ".", 1) != 1)
		die("write");
	for (;;)
		for (uint32_t i = 0; i < number; i++)
			(void)((volatile char *)memory)[hot[i] * PAGE];
	return unused;
}

/* Let the kernel write to the touched pages: read(2) into them. */
static void read_into(void)
{
	int zero = open("/dev/zero", O_RDONLY);
	for (uint32_t i = 0; i < count; i++)
		if (read(zero, memory + order[i] * PAGE, PAGE) != (ssize_t)PAGE)
			die("read");
	close(zero);
}

/* A child writes to the touched pages and ends; 0 or 1 in a byte says whether it could. */
static char written_by_child(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		kind = 'w';
		touch_all();
		_exit(spoilt() != 0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		die("fork");
	return status == 0;
}

/* A userfaultfd of our own, that stays open. */
static int own_userfaultfd(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
	return fd;
}

/* Write-protect the touched pages by it. */
static void protect_by_ourselves(void)
{
	int fd = own_userfaultfd();
	struct uffdio_api api = { .api = UFFD_API, .features = 1 << 15 };
	struct uffdio_register all = {
		.range = { (unsigned long)memory, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_WP,
	};
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &all))
		die("userfaultfd");
	for (uint32_t i = 0; i < count; i++) {
		struct uffdio_writeprotect one = {
			.range = { (unsigned long)memory + order[i] * PAGE, PAGE }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};
		if (ioctl(fd, UFFDIO_WRITEPROTECT, &one))
			die("UFFDIO_WRITEPROTECT");
	}
}

static void *anonymous(size_t size, int flags)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static char *file(const char *path, int prot, int flags)
{
	int fd = open(path, O_RDWR);
	if (fd < 0)
		die(path);
	char *at = mmap(NULL, pages * PAGE, prot, flags, fd, 0);
	if (at == MAP_FAILED)
		die("mmap");
	/* The kernel would take the pages out of the page table to make a huge one of them. */
	madvise(at, pages * PAGE, MADV_NOHUGEPAGE);
	close(fd);
	volatile char sum = 0;
	for (size_t i = 0; i < pages; i++)
		sum += at[i * PAGE];
	return at;
}

static void prepare(const char *name, const char *path)
{
	size_t size = pages * PAGE;

	if (!strcmp(name, "thp") || !strcmp(name, "small")) {
		memory = anonymous(size + HUGE, MAP_PRIVATE);
		memory = (char *)(((uintptr_t)memory + HUGE - 1) & ~(HUGE - 1));
		madvise(memory, size, !strcmp(name, "thp") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		memset(memory, 1, size);
		/* Small pages, that may become huge ones. */
		madvise(memory, size, MADV_HUGEPAGE);
	} else if (!strcmp(name, "shmem")) {
		memory = anonymous(size, MAP_SHARED);
		memset(memory, 1, size);
	} else if (!strcmp(name, "hugetlb")) {
		memory = anonymous(size, MAP_PRIVATE | MAP_HUGETLB);
		memset(memory, 1, size);
	} else if (!strcmp(name, "hugeshmem")) {
		memory = anonymous(size + HUGE, MAP_SHARED);
		memory = (char *)(((uintptr_t)memory + HUGE - 1) & ~(HUGE - 1));
		madvise(memory, size, MADV_HUGEPAGE);
		memset(memory, 1, size);
	} else if (!strcmp(name, "shared")) {
		memory = anonymous(size, MAP_SHARED);
	} else if (!strcmp(name, "file")) {
		memory = file(path, PROT_READ | PROT_WRITE, MAP_SHARED);
	} else if (!strcmp(name, "private")) {
		memory = file(path, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	} else if (!strcmp(name, "readonly")) {
		memory = file(path, PROT_READ, MAP_PRIVATE);
	} else {
		memory = anonymous(size, MAP_PRIVATE);
		madvise(memory, size, MADV_NOHUGEPAGE);
		if (!strcmp(name, "zero")) {
			volatile char sum = 0;
			for (size_t i = 0; i < pages; i++)
				sum += memory[i * PAGE];
		} else if (strcmp(name, "untouched")) {
			memset(memory, 1, size);
		}
		/* As many mappings as pages. */
		for (size_t i = 0; !strcmp(name, "many") && i < pages; i += 2)
			if (mprotect(memory + i * PAGE, PAGE, PROT_READ))
				die("mprotect");
		/* 4 TiB of addresses without memory. */
		if (!strcmp(name, "reserved") &&
		    mmap(NULL, 1ul << 42, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
			die("mmap");
	}
	if (!strcmp(name, "mlock") && mlock(memory, size))
		die("mlock");
	if (!strcmp(name, "fork") && fork() == 0) {
		/* Lives as long as the parent: its end of the pipe is the same. */
		for (;;) {
			sleep(1);
			if (getppid() == 1)
				_exit(0);
		}
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;
	pthread_barrier_t barrier;
	char again[32];

	if (argc < 3)
		return 2;
	pages = strtoul(argv[2], NULL, 0);
	/* Huge pages only where a test wants them, whatever the machine's setting is. */
	uintptr_t own = ((uintptr_t)order + PAGE - 1) & ~(PAGE - 1);
	madvise((void *)own, sizeof(order) - PAGE, MADV_NOHUGEPAGE);
	int threaded = !strcmp(argv[1], "threads");
	prepare(argv[1], argc > 3 ? argv[3] : NULL);
	pthread_barrier_init(&barrier, NULL, 2);
	if (threaded)
		pthread_create(&thread, NULL, toucher, &barrier);
	printf("%lu %zu\n", (unsigned long)memory, pages);
	fflush(stdout);

	for (;;) {
		receive(&kind, 1);
		receive(&count, sizeof(count));
		receive(order, count * sizeof(order[0]));
		switch (kind) {
		case 'x': /* exec self, as another kind of memory */
			snprintf(again, sizeof(again), "%zu", pages);
			execl("/proc/self/exe", argv[0], "anon", again, (char *)NULL);
			die("exec");
		case 'm': /* take the mapping away and put another in its place */
			munmap(memory, pages * PAGE);
			if (mmap(memory, pages * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != memory)
				die("mmap");
			madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
			break;
		case 'M': { /* move other memory, that is full, to its place */
			char *from = anonymous(pages * PAGE, MAP_PRIVATE);
			memset(from, 1, pages * PAGE);
			if (mremap(from, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory) != memory)
				die("mremap");
			break;
		}
		case 'p': /* let nobody write */
			if (mprotect(memory, pages * PAGE, PROT_READ))
				die("mprotect");
			break;
		case 's': /* let nobody write one page, which splits a huge one */
			if (mprotect(memory + PAGE, PAGE, PROT_READ))
				die("mprotect");
			break;
		case 'P': /* use memory that was mapped by 'N' */
			if (mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE))
				die("mprotect");
			memset(memory, 1, pages * PAGE);
			break;
		case 'u': /* take the mapping away for good */
			munmap(memory, pages * PAGE);
			break;
		case 'v': { /* vfork a child that leaves this memory later; tell its number then */
			pid_t child = vfork();
			if (child == 0) {
				usleep(300000);
				execlp("sleep", "sleep", "60", (char *)NULL);
				_exit(1);
			}
			if (write(1, &child, sizeof(child)) != sizeof(child))
				die("write");
			continue;
		}
		case 'N': /* as 'n', but nobody may access it yet */
		case 'n': /* map memory somewhere else, beside the old one; tell where */
		case 'R': { /* move the mapping; tell where */
			char *to = anonymous(pages * PAGE, MAP_PRIVATE);
			if (kind != 'R')
				madvise(to, pages * PAGE, MADV_NOHUGEPAGE);
			if (kind == 'N' && mprotect(to, pages * PAGE, PROT_NONE))
				die("mprotect");
			if (kind == 'n') {
				memset(to, 1, pages * PAGE);
			} else if (kind == 'R' && mremap(memory, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) {
				die("mremap");
			}
			memory = to;
			if (write(1, &memory, sizeof(memory)) != sizeof(memory))
				die("write");
			continue;
		}
		case 'd': /* give the pages back, but not the mapping */
			madvise(memory, pages * PAGE, MADV_DONTNEED);
			break;
		case 'k':
			read_into();
			break;
		case 'f': {
			char fine = written_by_child();
			if (write(1, &fine, 1) != 1)
				die("write");
			continue;
		}
		case 'T':
			own_userfaultfd();
			break;
		case 'U':
			protect_by_ourselves();
			break;
		case 'h': /* touch up to 1024 pages without end */
			pthread_create(&thread, NULL, heater, NULL);
			continue;
		case 'c': { /* count spoilt pages */
			uint32_t wrong = spoilt();
			if (write(1, &wrong, sizeof(wrong)) != sizeof(wrong))
				die("write");
			continue;
		}
		default:
			if (threaded) {
				pthread_barrier_wait(&barrier);
				pthread_barrier_wait(&barrier);
			} else {
				touch_all();
			}
		}
		if (write(1, ".", 1) != 1)
			die("write");
	}
}
