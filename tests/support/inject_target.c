// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process that notices when something is done to it. "inject_target KIND" prints "ready", then does the same thing
 * over and over and compares what it gets with what it must get, until its standard input ends. It prints "good" at the
 * end, or at once what differs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000L

static atomic_int over;
static volatile sig_atomic_t alarms;
static sigset_t mask_at_start;

static void must(int right, const char *what)
{
	if (right)
		return;
	printf("differs: %s (errno %d)\n", what, errno);
	fflush(stdout);
	_exit(1);
}

static void on_alarm(int number)
{
	(void)number;
	alarms++;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void check_mask(void)
{
	sigset_t mask;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	must(!memcmp(&mask, &mask_at_start, 8), "signal mask");
}

/* All registers that a system call may not touch, the flags and the red zone, for some milliseconds. */
__attribute__((target("avx"), noinline)) static void spin(void)
{
	uint64_t got[16], zone[16], flags, want = 0x0123456789abcdefULL;
	uint8_t vectors[16][32], pattern[32];
	int i, k;

	for (i = 0; i < 32; i++)
		pattern[i] = i * 7 + 3;
	asm volatile(
		"mov %[got], %%rax\n vmovdqu (%[pattern]), %%ymm0\n"
		"vmovdqa %%ymm0, %%ymm1\n vmovdqa %%ymm0, %%ymm2\n vmovdqa %%ymm0, %%ymm3\n vmovdqa %%ymm0, %%ymm4\n"
		"vmovdqa %%ymm0, %%ymm5\n vmovdqa %%ymm0, %%ymm6\n vmovdqa %%ymm0, %%ymm7\n vmovdqa %%ymm0, %%ymm8\n"
		"vmovdqa %%ymm0, %%ymm9\n vmovdqa %%ymm0, %%ymm10\n vmovdqa %%ymm0, %%ymm11\n vmovdqa %%ymm0, %%ymm12\n"
		"vmovdqa %%ymm0, %%ymm13\n vmovdqa %%ymm0, %%ymm14\n vmovdqa %%ymm0, %%ymm15\n"
		"mov %[want], %%r8\n lea 1(%%r8), %%r9\n lea 2(%%r8), %%r10\n lea 3(%%r8), %%r11\n lea 4(%%r8), %%r12\n"
		"lea 5(%%r8), %%r13\n lea 6(%%r8), %%r14\n lea 7(%%r8), %%r15\n lea 8(%%r8), %%rdx\n"
		"lea 9(%%r8), %%rbx\n"
		"mov %%r8, -8(%%rsp)\n mov %%r9, -64(%%rsp)\n mov %%r10, -128(%%rsp)\n"
		"mov $2000000, %%ecx\n stc\n"
		"1: loop 1b\n"
		"mov %%r8, 0(%%rax)\n mov %%r9, 8(%%rax)\n mov %%r10, 16(%%rax)\n mov %%r11, 24(%%rax)\n"
		"mov %%r12, 32(%%rax)\n mov %%r13, 40(%%rax)\n mov %%r14, 48(%%rax)\n mov %%r15, 56(%%rax)\n"
		"mov %%rdx, 64(%%rax)\n mov %%rbx, 72(%%rax)\n mov %%rcx, 80(%%rax)\n"
		"mov -8(%%rsp), %%r8\n mov -64(%%rsp), %%r9\n mov -128(%%rsp), %%r10\n"
		"mov %%r8, 0(%[zone])\n mov %%r9, 8(%[zone])\n mov %%r10, 16(%[zone])\n"
		"sbb %%r8, %%r8\n mov %%r8, 24(%[zone])\n"
		"mov %[vectors], %%rax\n"
		"vmovdqu %%ymm0, 0(%%rax)\n vmovdqu %%ymm1, 32(%%rax)\n vmovdqu %%ymm2, 64(%%rax)\n"
		"vmovdqu %%ymm3, 96(%%rax)\n vmovdqu %%ymm4, 128(%%rax)\n vmovdqu %%ymm5, 160(%%rax)\n"
		"vmovdqu %%ymm6, 192(%%rax)\n vmovdqu %%ymm7, 224(%%rax)\n vmovdqu %%ymm8, 256(%%rax)\n"
		"vmovdqu %%ymm9, 288(%%rax)\n vmovdqu %%ymm10, 320(%%rax)\n vmovdqu %%ymm11, 352(%%rax)\n"
		"vmovdqu %%ymm12, 384(%%rax)\n vmovdqu %%ymm13, 416(%%rax)\n vmovdqu %%ymm14, 448(%%rax)\n"
		"vmovdqu %%ymm15, 480(%%rax)\n vzeroupper\n"
		:
		: [got] "m"(*(void *[]){ got }), [want] "m"(want), [pattern] "S"(pattern), [zone] "D"(zone),
		  [vectors] "m"(*(void *[]){ vectors })
		: "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0",
		  "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
		  "xmm13", "xmm14", "xmm15");
	for (i = 0; i < 10; i++)
		must(got[i] == want + i, "a general register");
	must(got[10] == 0, "rcx");
	for (k = 0; k < 3; k++)
		must(zone[k] == want + k, "the red zone");
	flags = zone[3];
	must(flags == (uint64_t)-1, "the carry flag");
	for (i = 0; i < 16; i++)
		must(!memcmp(vectors[i], pattern, 32), "a vector register");
}

static void sleep_some(void)
{
	struct timespec ts = { 0, 30 * MS };
	double start = now();

	must(nanosleep(&ts, NULL) == 0, "nanosleep");
	must(now() - start >= 0.03, "nanosleep's time");
	start = now();
	must(usleep(30000) == 0, "usleep");
	must(clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL) == 0, "clock_nanosleep");
	must(now() - start >= 0.06, "clock_nanosleep's time");
}

static void wait_epoll(void)
{
	static int fd = -1;
	struct epoll_event event;
	sigset_t none;

	if (fd < 0)
		fd = epoll_create1(0);
	sigemptyset(&none);
	must(epoll_wait(fd, &event, 1, 30) == 0, "epoll_wait");
	must(epoll_pwait(fd, &event, 1, 30, &none) == 0, "epoll_pwait");
}

static void wait_select(void)
{
	struct timeval tv = { 0, 30000 };
	struct timespec ts = { 0, 30 * MS };
	sigset_t none;

	sigemptyset(&none);
	must(select(0, NULL, NULL, NULL, &tv) == 0, "select");
	must(poll(NULL, 0, 30) == 0, "poll");
	must(ppoll(NULL, 0, &ts, &none) == 0, "ppoll");
	must(pselect(0, NULL, NULL, NULL, &ts, &none) == 0, "pselect");
}

static void wait_futex(void)
{
	static int word;
	struct timespec ts = { 0, 30 * MS };

	must(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &ts) == -1 && errno == ETIMEDOUT, "futex");
}

static void wait_ipc(void)
{
	static int semaphore = -1, queue;
	struct sembuf down = { 0, -1, 0 };
	struct timespec ts = { 0, 30 * MS };
	sigset_t set, before;

	if (semaphore < 0) {
		semaphore = semget(IPC_PRIVATE, 1, 0600);
		queue = msgget(IPC_PRIVATE, 0600);
	}
	must(semtimedop(semaphore, &down, 1, &ts) == -1 && errno == EAGAIN, "semtimedop");
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	must(sigtimedwait(&set, NULL, &ts) == -1 && errno == EAGAIN, "sigtimedwait");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (atomic_load(&over)) {
		semctl(semaphore, 0, IPC_RMID);
		msgctl(queue, IPC_RMID, NULL);
	}
}

static void wait_signal(void)
{
	struct itimerval soon = { { 0, 0 }, { 0, 30000 } };
	sigset_t set, before;
	int seen;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	seen = alarms;
	setitimer(ITIMER_REAL, &soon, NULL);
	must(sigsuspend(&before) == -1 && errno == EINTR, "sigsuspend");
	must(alarms == seen + 1, "sigsuspend's signal");
	seen = alarms;
	setitimer(ITIMER_REAL, &soon, NULL);
	must(ppoll(NULL, 0, NULL, &before) == -1 && errno == EINTR, "ppoll with a signal");
	must(alarms == seen + 1, "ppoll's signal");
	pthread_sigmask(SIG_SETMASK, &before, NULL);

	seen = alarms;
	setitimer(ITIMER_REAL, &soon, NULL);
	must(pause() == -1 && errno == EINTR, "pause");
	must(alarms == seen + 1, "pause's signal");
}

static void wait_socket(void)
{
	static int pair[2] = { -1, -1 }, listener;
	struct timeval tv = { 0, 30000 };
	char byte;

	if (pair[0] < 0) {
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
		setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
		listener = socket(AF_INET, SOCK_STREAM, 0);
		listen(listener, 1);
		setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	}
	must(recv(pair[0], &byte, 1, 0) == -1 && errno == EAGAIN, "recv with a timeout");
	must(read(pair[0], &byte, 1) == -1 && errno == EAGAIN, "read with a timeout");
	must(accept(listener, NULL, NULL) == -1 && errno == EAGAIN, "accept with a timeout");
}

static void wait_aio(void)
{
	static aio_context_t context;
	struct timespec ts = { 0, 30 * MS };
	struct io_event event;

	if (!context)
		must(syscall(SYS_io_setup, 1, &context) == 0, "io_setup");
	must(syscall(SYS_io_getevents, context, 1, 1, &event, &ts) == 0, "io_getevents");
}

static void *feed(void *arg)
{
	uint32_t number = 0;

	while (!atomic_load(&over)) {
		must(write(*(int *)arg, &number, 4) == 4, "write");
		number++;
		usleep(3000);
	}
	close(*(int *)arg);
	return NULL;
}

static void read_pipe(void)
{
	static int ends[2] = { -1, -1 };
	static uint32_t expected;
	static pthread_t feeder;
	uint32_t number;
	ssize_t got;

	if (ends[0] < 0) {
		must(pipe(ends) == 0, "pipe");
		pthread_create(&feeder, NULL, feed, &ends[1]);
	}
	got = read(ends[0], &number, 4);
	if (got == 0 && atomic_load(&over))
		return;
	must(got == 4, "read");
	must(number == expected++, "what was read");
}

static void count(void)
{
	static uint64_t counter[2];
	long i;

	for (i = 0; i < 200000; i++) {
		counter[0]++;
		asm volatile("" ::: "memory");
		counter[1]++;
	}
	must(counter[0] == counter[1], "memory");
}

static void *work(void *arg)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static uint64_t shared[2];
	uint64_t hash, first = 0, data[512];
	size_t i;

	while (!atomic_load(&over)) {
		hash = (uintptr_t)arg;
		for (i = 0; i < 512; i++)
			data[i] = hash = hash * 6364136223846793005ULL + 1;
		for (i = 0; i < 512; i++)
			hash ^= data[i] * (i + 1);
		if (!first)
			first = hash;
		must(hash == first, "a thread's memory");
		pthread_mutex_lock(&lock);
		must(shared[0] == shared[1], "what a lock protects");
		shared[0]++;
		shared[1]++;
		pthread_mutex_unlock(&lock);
		usleep(200);
	}
	return NULL;
}

static void *watch_input(void *arg)
{
	char byte;

	(void)arg;
	while (read(0, &byte, 1) > 0)
		;
	atomic_store(&over, 1);
	return NULL;
}

static void spin_and_check(void)
{
	spin();
	count();
}

static const struct {
	const char *name;
	void (*once)(void);
} kinds[] = {
	{ "spin", spin_and_check }, { "sleep", sleep_some }, { "epoll", wait_epoll }, { "select", wait_select },
	{ "futex", wait_futex }, { "ipc", wait_ipc }, { "signal", wait_signal }, { "socket", wait_socket },
	{ "aio", wait_aio }, { "pipe", read_pipe },
};

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_alarm };
	pthread_t watcher, workers[3];
	sigset_t all;
	size_t i;
	long k;

	must(argc == 2, "arguments");
	sigaction(SIGALRM, &action, NULL);
	/* The watcher takes no signal that another thread waits for. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask_at_start);
	sigaddset(&mask_at_start, SIGUSR2);
	pthread_create(&watcher, NULL, watch_input, NULL);
	if (!strcmp(argv[1], "threads"))
		for (k = 0; k < 3; k++)
			pthread_create(&workers[k], NULL, work, (void *)(k + 1));
	pthread_sigmask(SIG_SETMASK, &mask_at_start, NULL);
	if (!strcmp(argv[1], "threads")) {
		puts("ready");
		fflush(stdout);
		for (k = 0; k < 3; k++)
			pthread_join(workers[k], NULL);
	} else {
		for (i = 0; strcmp(kinds[i].name, argv[1]); i++)
			must(i + 1 < sizeof(kinds) / sizeof(kinds[0]), "kind");
		kinds[i].once();
		puts("ready");
		fflush(stdout);
		while (!atomic_load(&over)) {
			kinds[i].once();
			check_mask();
		}
	}
	printf("good\n");
	return 0;
}
