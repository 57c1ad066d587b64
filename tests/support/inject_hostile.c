// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process that answers in place of the kernel when it is made to call something. "inject_hostile HOW WHAT" works in
 * its current directory: it prints "ready", and the file "hits" counts how often it answered.
 *
 * HOW text: the code that makes system calls is that of a file, which a second thread changes as soon as it sees that
 * the frames for the call are there. HOW seccomp: that thread has all threads filtered then, and answers by the filter.
 * HOW rseq: it says that the first thread is in a restartable sequence that is at no address.
 *
 * WHAT socket: the answer to userfaultfd() is a socket whose last close() waits for an hour. WHAT other: the
 * userfaultfd of another process. WHAT errno: an error that the kernel does not have.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Below all other libraries: the first one that has the code is taken. */
#define PLACE ((void *)0x10000000UL)
#define PAGE 4096
/* Where in it there is a jump to this program's own code, and where threads return from signals. */
#define FAR 32
#define FROM_SIGNAL 64

/* syscall; ret, what it becomes, and where threads return from signals. Who comes back from a call still finds ret. */
static const uint8_t gadget[8] = { 0x0f, 0x05, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90 };
static const uint8_t jump[8] = { 0xeb, FAR - 2, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90 };
static const uint8_t from_signal[9] = { 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05 };

volatile int *hits;
int handed, wrong;
static volatile uint64_t *text;
static char *stack;
static int seccomp;

void evil(void);
/* In place of close_range(), userfaultfd() and madvise(): getpid(), dup() of what is handed over. */
asm(".globl evil\n"
    "evil: cmp $436, %eax\n je 1f\n cmp $28, %eax\n je 1f\n cmp $323, %eax\n je 2f\n syscall\n ret\n"
    "1: mov hits(%rip), %r9\n lock incl (%r9)\n mov $39, %eax\n syscall\n ret\n"
    "2: mov hits(%rip), %r9\n lock incl (%r9)\n mov $32, %eax\n mov handed(%rip), %edi\n syscall\n ret\n");

static void must(int right, const char *what)
{
	if (right)
		return;
	perror(what);
	_exit(1);
}

static void map_text(void)
{
	int fd = open("libc-hostile.so", O_RDWR | O_CREAT | O_TRUNC, 0700);
	int32_t distance = (char *)evil - ((char *)PLACE + FAR + 5);
	uint8_t page[PAGE] = { 0 };

	memcpy(page, gadget, sizeof(gadget));
	page[FAR] = 0xe9;
	memcpy(page + FAR + 1, &distance, sizeof(distance));
	memcpy(page + FROM_SIGNAL, from_signal, sizeof(from_signal));
	must(write(fd, page, PAGE) == PAGE, "write");
	text = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(text != MAP_FAILED, "mmap");
	must(mmap(PLACE, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0) == PLACE, "mmap of text");
	close(fd);
}

static int lingering_socket(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	struct linger linger = { 1, 3600 };
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
	static char data[1 << 20];

	must(bind(listener, (void *)&address, length) == 0 && listen(listener, 1) == 0, "listen");
	must(getsockname(listener, (void *)&address, &length) == 0, "getsockname");
	must(connect(fd, (void *)&address, length) == 0, "connect");
	must(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0, "SO_LINGER");
	while (send(fd, data, sizeof(data), MSG_DONTWAIT) > 0)
		;
	return fd;
}

/* A child, which goes on as the process that is attacked, has the userfaultfd of its parent. */
static int others_userfaultfd(void)
{
	int fd = syscall(SYS_userfaultfd, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	pid_t child;

	must(fd >= 0, "userfaultfd");
	child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		return fd;
	}
	waitpid(child, NULL, 0);
	_exit(0);
}

static int present(void)
{
	static int pagemap = -1;
	uint64_t entry = 0;

	if (pagemap < 0)
		pagemap = open("/proc/self/pagemap", O_RDONLY);
	must(pread(pagemap, &entry, 8, (uintptr_t)stack / PAGE * 8) == 8, "pagemap");
	return entry >> 63;
}

static void find_stack(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "[stack]"))
			stack = (char *)strtoul(line, NULL, 16);
	fclose(maps);
}

static void answer_by_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof(code) / sizeof(*code), code };
	unsigned long flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH | SECCOMP_FILTER_FLAG_NEW_LISTENER;
	struct seccomp_notif call = { 0 };
	struct seccomp_notif_addfd addition = { 0 };
	struct seccomp_notif_resp response = { 0 };
	int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);

	if (listener < 0)
		return;
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
		return;
	if (wrong) {
		response.id = call.id;
		response.error = -3000;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0)
			++*hits;
	} else {
		addition.id = call.id;
		addition.flags = SECCOMP_ADDFD_FLAG_SEND;
		addition.srcfd = handed;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &addition) >= 0)
			++*hits;
	}
}

static void *spoil(void *sequence)
{
	char name[64], line[8] = "";
	FILE *file;

	snprintf(name, sizeof(name), "/proc/self/task/%d/syscall", getpid());
	while (strncmp(line, "7 ", 2)) {
		file = fopen(name, "r");
		must(file != NULL, name);
		must(fgets(line, sizeof(line), file) != NULL, name);
		fclose(file);
	}
	((struct rseq *)sequence)->rseq_cs = ~0ULL;
	printf("%d\n", getpid());
	fflush(stdout);
	return NULL;
}

static void *attack(void *unused)
{
	uint64_t good, bad;
	int waited, before;

	memcpy(&good, gadget, 8);
	memcpy(&bad, jump, 8);
	for (;;) {
		while (!present())
			;
		before = *hits;
		if (seccomp)
			answer_by_filter();
		else
			*text = bad;
		for (waited = 0; waited < 300 && *hits == before; waited++)
			usleep(1000);
		/* What it changed stays for a while: who looks must have seen it. */
		usleep(300000);
		*text = good;
		madvise(stack, 2 * PAGE, MADV_DONTNEED);
	}
	return unused;
}

int main(int argc, char **argv)
{
	int fd = open("hits", O_RDWR | O_CREAT | O_TRUNC, 0600);
	pthread_t thread;

	must(argc == 3, "arguments");
	must(ftruncate(fd, PAGE) == 0, "ftruncate");
	hits = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	seccomp = !strcmp(argv[1], "seccomp");
	wrong = !strcmp(argv[2], "errno");
	handed = !strcmp(argv[2], "other") ? others_userfaultfd() : lingering_socket();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	if (!strcmp(argv[1], "rseq")) {
		pthread_create(&thread, NULL, spoil, (char *)__builtin_thread_pointer() + __rseq_offset);
		for (;;)
			poll(NULL, 0, -1);
	}
	map_text();
	find_stack();
	pthread_create(&thread, NULL, attack, NULL);
	printf("%d\n", getpid());
	fflush(stdout);
	for (;;)
		poll(NULL, 0, 1000);
}
