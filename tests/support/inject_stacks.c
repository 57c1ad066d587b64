// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process whose threads run on stacks of all kinds, beside memory that must stay as it is. "inject_stacks KIND" prints
 * "ready", then compares that memory over and over until its standard input ends. It prints "good" at the end, or at once
 * what differs.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <linux/userfaultfd.h>
#endif

#define STACK (64 << 10)
#define STACKS 4

static char bss[STACKS][STACK] __attribute__((aligned(4096)));

/* What must stay as it is: nothing is there twice. */
static struct {
	char *start, *end;
} kept[8];
static int ranges;

static char byte_at(const char *p)
{
	return (uintptr_t)p * 0x9e3779b97f4a7c15ULL >> 56 | 1;
}

static void keep(char *start, char *end)
{
	char *p;

	for (p = start; p < end; p++)
		*p = byte_at(p);
	kept[ranges].start = start;
	kept[ranges++].end = end;
}

static void check(void)
{
	char *p;
	int i;

	for (i = 0; i < ranges; i++)
		for (p = kept[i].start; p < kept[i].end; p++)
			if (*p != byte_at(p)) {
				printf("differs: range %d at %zu of %zu\n", i, p - kept[i].start, kept[i].end - kept[i].start);
				fflush(stdout);
				_exit(1);
			}
}

static void check_until_the_end(void)
{
	struct pollfd input = { 0, POLLIN, 0 };
	char byte;

	puts("ready");
	fflush(stdout);
	for (;;) {
		check();
		if (poll(&input, 1, 1) > 0 && read(0, &byte, 1) <= 0)
			break;
	}
	check();
	puts("good");
	fflush(stdout);
	_exit(0);
}

/* The lower end of the stack that runs, if it is one of the program's. */
static char *lowest;

static void deep(void)
{
	volatile char *room = alloca((char *)__builtin_frame_address(0) - lowest - 3000);

	room[0] = 1;
	check_until_the_end();
}

static ucontext_t back, coroutine;

/* musl has none of these functions. */
#ifndef __GLIBC__
#define getcontext(context) abort()
#define makecontext(context, run, count) ((void)(run))
#define swapcontext(here, there) ((void)0)
#endif

static void run_on(char *stack, size_t size, void (*run)(void))
{
	lowest = stack;
	getcontext(&coroutine);
	coroutine.uc_stack.ss_sp = stack;
	coroutine.uc_stack.ss_size = size;
	coroutine.uc_link = &back;
	makecontext(&coroutine, run, 0);
	swapcontext(&back, &coroutine);
}

/* The third of four stacks side by side: the one below and the ones above are other coroutines'. */
static void run_on_the_third(char *stacks, void (*run)(void))
{
	keep(stacks, stacks + 2 * STACK);
	keep(stacks + 3 * STACK, stacks + STACKS * STACK);
	run_on(stacks + 2 * STACK, STACK, run);
}

static void on_pool(void)
{
	char *pool = mmap(NULL, 4096 + STACKS * STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(pool + 4096, STACKS * STACK, PROT_READ | PROT_WRITE);
	run_on_the_third(pool + 4096, deep);
}

static void on_heap(void)
{
	run_on_the_third(malloc(STACKS * STACK), deep);
}

static void on_bss(void)
{
	run_on_the_third(bss[0], deep);
}

/* Coroutines on an array of the first thread's own stack. */
static void on_main(void)
{
	char stacks[STACKS * STACK] __attribute__((aligned(4096)));

	run_on_the_third(stacks, deep);
}

static void handler(int number)
{
	(void)number;
	deep();
}

static void raise_on(char *stack)
{
	stack_t alternate = { .ss_sp = stack, .ss_size = STACK };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	/* Live while the handler runs. */
	char live[3 * STACK];

	lowest = stack;
	keep(live, live + sizeof(live));
	sigaltstack(&alternate, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
}

static void signal_heap(void)
{
	char *stacks = malloc(2 * STACK);

	keep(stacks, stacks + STACK);
	raise_on(stacks + STACK);
}

static void signal_bss(void)
{
	keep(bss[0], bss[2]);
	raise_on(bss[2]);
}

/* Below the handler lies all that the interrupted functions have. */
static __attribute__((noinline)) void signal_own(void)
{
	char stack[STACK] __attribute__((aligned(16)));

	raise_on(stack);
}

static void *thread(void *run)
{
	((void (*)(void))run)();
	return NULL;
}

/* A thread on a stack that the program gave it, while the first thread is no more. */
static void thread_on(char *stack, size_t size, void (*run)(void))
{
	pthread_attr_t attributes;
	pthread_t started;

	lowest = stack;
	pthread_attr_init(&attributes);
	if (stack)
		pthread_attr_setstack(&attributes, stack, size);
	pthread_create(&started, &attributes, thread, (void *)run);
	pthread_exit(NULL);
}

static void some(void)
{
	char room[1000];

	memset(room, 1, sizeof(room));
	check_until_the_end();
}

/* Stacks side by side, ours never used before ... */
static void threads_fresh(void)
{
	char *stacks = mmap(NULL, STACKS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	keep(stacks, stacks + 2 * STACK);
	keep(stacks + 3 * STACK, stacks + STACKS * STACK);
	thread_on(stacks + 2 * STACK, STACK, some);
}

/* ... and one in which a program has put something, as marks that show how much of it is used. */
static void threads_marked(void)
{
	char *stacks = mmap(NULL, STACKS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	keep(stacks, stacks + 3 * STACK - STACK / 4);
	keep(stacks + 3 * STACK, stacks + STACKS * STACK);
	thread_on(stacks + 2 * STACK, STACK, some);
}

/* As wide as can be, and nearly used up. */
static void threads_deep(void)
{
	char *stacks = mmap(NULL, STACKS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	keep(stacks, stacks + 2 * STACK);
	keep(stacks + 3 * STACK, stacks + STACKS * STACK);
	thread_on(stacks + 2 * STACK, STACK, deep);
}

/* What is not there yet is to come from somebody else, who never answers. */
/* musl comes without the headers of the kernel. */
#ifdef __GLIBC__
static void threads_lazy(void)
{
	char *stack = mmap(NULL, STACKS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register lazy = { .range = { (uintptr_t)stack, STACKS * STACK }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, 0);

	memset(stack + (STACKS - 1) * STACK, 1, STACK);
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &lazy))
		abort();
	thread_on(stack, STACKS * STACK, some);
}
#else
#define threads_lazy abort
#endif

static void *arena(void *unused)
{
	/* An arena of its own, which has a mapping without permissions around it. */
	char *before = malloc(STACK), *stack = malloc(STACK + 123), *after = malloc(STACK);
	pthread_attr_t attributes;
	pthread_t started;

	keep(before, before + STACK);
	keep(after, after + STACK);
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, stack, STACK + 123);
	pthread_create(&started, &attributes, thread, (void *)some);
	return unused;
}

static void threads_arena(void)
{
	pthread_t started;

	pthread_create(&started, NULL, arena, NULL);
	pthread_exit(NULL);
}

/* Coroutines and handlers on an array of a thread's own stack. */
static void thread_coroutine(void)
{
	thread_on(NULL, 0, on_main);
}

static void thread_signal(void)
{
	thread_on(NULL, 0, signal_own);
}

static void thread_plain(void)
{
	thread_on(NULL, 0, some);
}

static void on_usr1(int number)
{
	volatile char room[100 << 10];
	size_t i;

	(void)number;
	for (i = 0; i < sizeof(room); i += 4096)
		room[i] = 1;
}

static void *watch_input(void *unused)
{
	char byte;

	while (read(0, &byte, 1) > 0)
		;
	puts("good");
	fflush(stdout);
	_exit(0);
	return unused;
}

/* Until a signal comes, for whose handler there is just enough room. */
static void pause_tight(void)
{
	struct sigaction action = { .sa_handler = on_usr1 };

	sigaction(SIGUSR1, &action, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		pause();
		puts("got it");
		fflush(stdout);
	}
}

/* It takes no signal, and cannot be stopped: its stack is all used. */
static void start_watcher(void)
{
	static char stack[STACK];
	pthread_attr_t attributes;
	pthread_t watcher;
	sigset_t all, none;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &none);
	pthread_attr_init(&attributes);
	memset(stack, 1, sizeof(stack));
	pthread_attr_setstack(&attributes, stack, sizeof(stack));
	pthread_create(&watcher, &attributes, watch_input, NULL);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

static void thread_pause(void)
{
	size_t size = 128 << 10;

	start_watcher();
	thread_on(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), size, pause_tight);
}

static void main_pause(void)
{
	start_watcher();
	pause_tight();
}

/* The first thread, right at the end of what it ever used of its stack. */
static void main_deep(void)
{
	volatile char *room = alloca(1 << 20);

	room[0] = 1;
	check_until_the_end();
}

/* It has all that it may have. */
static void main_full(void)
{
	struct rlimit limit = { 512 << 10, 512 << 10 };
	volatile char *room;

	setrlimit(RLIMIT_STACK, &limit);
	room = alloca((512 << 10) - (32 << 10));
	room[0] = 1;
	check_until_the_end();
}

static void *sleep_on(void *unused)
{
	for (;;)
		usleep(100000);
	return unused;
}

/* Many threads without room, started before one that has it. */
static void threads_many(void)
{
	pthread_attr_t attributes;
	pthread_t started;
	char *stack;
	int i;

	for (i = 0; i < 150; i++) {
		stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(stack, 1, STACK);
		pthread_attr_init(&attributes);
		pthread_attr_setstack(&attributes, stack, STACK);
		pthread_create(&started, &attributes, sleep_on, NULL);
	}
	thread_on(NULL, 0, some);
}

/* Each thread starts another one and ends. */
static void *one_after_another(void *unused)
{
	struct pollfd input = { 0, POLLIN, 0 };
	pthread_attr_t attributes;
	pthread_t next;
	char byte;

	if (poll(&input, 1, 0) > 0 && read(0, &byte, 1) <= 0) {
		puts("good");
		fflush(stdout);
		_exit(0);
	}
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&next, &attributes, one_after_another, unused))
		abort();
	return NULL;
}

static void threads_short(void)
{
	puts("ready");
	fflush(stdout);
	one_after_another(NULL);
	pthread_exit(NULL);
}

static const struct {
	const char *name;
	void (*run)(void);
} kinds[] = {
	{ "on_pool", on_pool }, { "on_heap", on_heap }, { "on_bss", on_bss }, { "on_main", on_main },
	{ "signal_heap", signal_heap }, { "signal_bss", signal_bss }, { "signal_own", signal_own },
	{ "threads_fresh", threads_fresh }, { "threads_marked", threads_marked }, { "threads_deep", threads_deep },
	{ "threads_arena", threads_arena }, { "thread_coroutine", thread_coroutine }, { "thread_signal", thread_signal },
	{ "thread_plain", thread_plain }, { "thread_pause", thread_pause }, { "main_deep", main_deep },
	{ "main_full", main_full }, { "main_pause", main_pause },
	{ "threads_short", threads_short }, { "threads_many", threads_many }, { "threads_lazy", threads_lazy },
};

int main(int argc, char **argv)
{
	size_t i;

	for (i = 0; argc == 2 && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strcmp(kinds[i].name, argv[1]))
			kinds[i].run();
	return 2;
}
