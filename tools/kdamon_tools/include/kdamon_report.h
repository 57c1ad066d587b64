/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Report memory accesses to a running kdamon.
 *
 *	struct kdamon_reports *r = kdamon_report_open(NULL);
 *
 *	if (!r)
 *		err(1, "no kdamon");
 *	kdamon_report(r, (uintptr_t)p, 64, kdamon_report_pid(r), true, -1, gettid());
 *	...
 *	kdamon_report_close(r);
 *
 * Nothing to link with: include this file, from C99, C11 or C++ (GCC or Clang, any libc on Linux).
 *
 * Reports go into a ring in memory that is shared with kdamon. Reporting makes no system call, takes no lock and never
 * waits: a report that finds no room is dropped and counted. If kdamon ends, however it ends, the ring just fills. Only
 * kdamon_report_open() waits for kdamon, KDAMON_REPORT_PATIENCE seconds at most.
 *
 * A ring has one writer: use one for each thread, or a lock of your own. After fork() a child opens its own.
 *
 * What may be reported: accesses of the processes that this one could look at with ptrace, itself included. pid 0,
 * physical memory, takes CAP_SYS_PTRACE. kdamon drops and counts the rest. It reads pids as numbers of its own PID
 * namespace: kdamon_report_pid() is this process's.
 */
#ifndef KDAMON_REPORT_H
#define KDAMON_REPORT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KDAMON_REPORT_MAGIC	UINT64_C(0x52526e6f6d61646b)	/* "kdamonRR" */
#define KDAMON_REPORT_VERSION	1
#define KDAMON_REPORT_HEADER	4096	/* bytes before the first record */
#ifndef KDAMON_REPORT_PATIENCE
#define KDAMON_REPORT_PATIENCE	10	/* seconds to wait for a kdamon that does not answer */
#endif
/* As <fcntl.h> has them for _GNU_SOURCE alone. */
#define KDAMON_REPORT_GET_SEALS		1034
#define KDAMON_REPORT_SEAL_SHRINK	0x0002

/* One report, as it is in the ring. Start from KDAMON_REPORT_INIT and set what is known. */
struct kdamon_report_record {
	int32_t pid;		/* whose memory; 0: physical memory */
	uint32_t reserved_1;	/* 0: this is a report, no name */
	uint64_t addr;		/* first byte */
	uint64_t size;		/* bytes, at least 1; must not wrap around */
	int32_t nr_accesses;	/* at least 1 */
	int32_t node_id;	/* NUMA node of the CPU that made the access; -1: unknown */
	uint8_t write;		/* 1: a write, 0: a read */
	uint8_t reserved_2[3];	/* 0 */
	int32_t cpu;		/* that made the access; -1: unknown */
	int32_t tid;		/* that made the access; 0: unknown */
	uint32_t reserved_3;	/* 0 */
};

#define KDAMON_REPORT_INIT { 0, 0, 0, 1, 1, -1, 0, { 0, 0, 0 }, -1, 0, 0 }

/*
 * A name of an area of memory, among the reports; and a record that goes on with it where the text is longer than 20
 * bytes. A kdamon that does not know names counts both as malformed.
 */
#define KDAMON_NAME_MAX		56	/* bytes of a name */
#define KDAMON_NAME_BEGIN	UINT32_C(0x656d616e)	/* "name" */
#define KDAMON_NAME_MORE	UINT32_C(0x65726f6d)	/* "more" */

struct kdamon_name_record {
	int32_t pid;		/* whose memory */
	uint32_t kind;		/* KDAMON_NAME_BEGIN */
	uint64_t addr;		/* first byte */
	uint64_t size;		/* bytes, at least 1; must not wrap around */
	int32_t length;		/* the negative number of bytes of the text; 0 takes the name away */
	char text[20];		/* the first of them */
};

struct kdamon_name_more {
	int32_t pid;		/* the same */
	uint32_t kind;		/* KDAMON_NAME_MORE */
	char middle[16];	/* the next bytes of the text */
	int32_t zero;		/* 0 */
	char end[20];		/* the last bytes of the text */
};

/* The first page of the shared memory; docs/reports.md has it as a table. */
struct kdamon_report_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_size;
	uint32_t record_size;
	uint32_t reserved;
	uint64_t capacity;	/* number of records, a power of two */
	uint8_t pad_1[128 - 32];
	/* Written by the producer. */
	uint64_t head;		/* records written since the beginning */
	uint64_t sent;		/* reports made */
	uint64_t dropped;	/* of these, without room */
	uint8_t pad_2[128 - 24];
	/* Written by kdamon. */
	uint64_t tail;		/* records read since the beginning */
	uint64_t closed;	/* not 0: kdamon reads no more */
};

/* A ring; only the functions below look into it. */
struct kdamon_reports {
	struct kdamon_report_header *shared;
	struct kdamon_report_record *records;
	uint64_t mask;
	uint64_t head;
	uint64_t limit;		/* head may go up to here, as far as is known */
	uint64_t sent;
	uint64_t dropped;
	size_t size;
	int connection;
	int32_t pid;
};

/* What is said on the socket before and with the memory. */
struct kdamon_report_hello {
	uint64_t magic;
	uint32_t version;
	uint32_t capacity;	/* wanted number of records; 0: kdamon chooses */
};

struct kdamon_report_reply {
	uint64_t magic;
	uint32_t version;
	int32_t error;		/* errno, 0: the memory comes along */
	uint64_t size;		/* of the memory, bytes */
	int32_t pid;		/* of the producer, in kdamon's PID namespace */
	uint32_t reserved;
};

/* Monotonic time, microseconds. */
static inline int64_t kdamon_report_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Let the next call on the socket wait until "deadline" at most; -1 with ETIMEDOUT if that is over. */
static inline int kdamon_report_limit(int fd, int option, int64_t deadline)
{
	int64_t left = deadline - kdamon_report_now();
	struct timeval limit;

	if (left <= 0) {
		errno = ETIMEDOUT;
		return -1;
	}
	limit.tv_sec = left / 1000000;
	limit.tv_usec = left % 1000000;
	return setsockopt(fd, SOL_SOCKET, option, &limit, sizeof(limit));
}

static inline int kdamon_report_connect_to(const char *path)
{
	int64_t deadline = kdamon_report_now() + KDAMON_REPORT_PATIENCE * INT64_C(1000000);
	struct sockaddr_un address;
	int fd, error, failed;

	memset(&address, 0, sizeof(address));
	address.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	/* It waits while too many others do; a signal begins the time that a call may take anew. */
	do {
		failed = kdamon_report_limit(fd, SO_SNDTIMEO, deadline);
		if (!failed)
			failed = connect(fd, (struct sockaddr *)&address, sizeof(address));
	} while (failed && errno == EINTR);
	if (failed) {
		error = errno == EAGAIN ? ETIMEDOUT : errno;
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* An environment variable, but not of a program that has more rights than its user. */
static inline const char *kdamon_report_getenv(const char *name)
{
	return getauxval(AT_SECURE) ? NULL : getenv(name);
}

/* The path that was given, else $KDAMON_REPORTS, else the kdamon of this user, else root's. */
static inline int kdamon_report_connect(const char *path)
{
	const char *directory = kdamon_report_getenv("XDG_RUNTIME_DIR");
	char own[4096];
	int fd;

	if (!path)
		path = kdamon_report_getenv("KDAMON_REPORTS");
	if (path && *path)
		return kdamon_report_connect_to(path);
	if (geteuid()) {
		/* Relative to any working directory it would be invalid. */
		if (directory && *directory == '/')
			snprintf(own, sizeof(own), "%s/kdamon/reports", directory);
		else
			snprintf(own, sizeof(own), "/run/user/%u/kdamon/reports", (unsigned int)geteuid());
		fd = kdamon_report_connect_to(own);
		if (fd >= 0)
			return fd;
	}
	return kdamon_report_connect_to("/run/kdamon/reports");
}

/* Close the connection; but leave it to the end of the process if what is in it may take long to close. */
static inline void kdamon_report_hang_up(int connection)
{
	struct msghdr message;
	struct iovec data;
	char byte;
	int error = errno;

	memset(&message, 0, sizeof(message));
	data.iov_base = &byte;
	data.iov_len = 1;
	message.msg_iov = &data;
	message.msg_iovlen = 1;
	if (recvmsg(connection, &message, MSG_PEEK | MSG_DONTWAIT) <= 0 && !(message.msg_flags & MSG_CTRUNC))
		close(connection);
	errno = error;
}

/*
 * Receive the reply; returns the memory's file descriptor, or -1 with errno. Anything else that a stranger sends instead
 * of memory stays in the connection.
 */
static inline int kdamon_report_receive(int connection, struct kdamon_report_reply *reply)
{
	int64_t deadline = kdamon_report_now() + KDAMON_REPORT_PATIENCE * INT64_C(1000000);
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec data = { reply, sizeof(*reply) };
	struct msghdr message;
	struct cmsghdr *c;
	ssize_t n;
	int fd = -1, seals;

	do {
		memset(&message, 0, sizeof(message));
		message.msg_iov = &data;
		message.msg_iovlen = 1;
		message.msg_control = control.bytes;
		/* Not the size, which has room for two. */
		message.msg_controllen = CMSG_LEN(sizeof(int));
		if (kdamon_report_limit(connection, SO_RCVTIMEO, deadline))
			return -1;
		n = recvmsg(connection, &message, MSG_PEEK | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		if (errno == EAGAIN)
			errno = ETIMEDOUT;
		return -1;
	}
	c = CMSG_FIRSTHDR(&message);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	seals = fd >= 0 ? fcntl(fd, KDAMON_REPORT_GET_SEALS) : -1;
	if (message.msg_flags & MSG_CTRUNC || (fd >= 0 && seals < 0)) {
		errno = EPROTO;
		return -1;
	}
	/* The message is thrown away; we have its memory. */
	recv(connection, &message, 1, MSG_DONTWAIT);
	/* Accessing memory that was shrunk would kill this process. */
	if (n == (ssize_t)sizeof(*reply) && reply->magic == KDAMON_REPORT_MAGIC && !reply->error && fd >= 0 &&
	    seals & KDAMON_REPORT_SEAL_SHRINK)
		return fd;
	if (fd >= 0)
		close(fd);
	errno = n == (ssize_t)sizeof(*reply) && reply->error > 0 ? reply->error : EPROTO;
	return -1;
}

/* Map the memory and make sure that it is what it has to be; 0, or -1 with errno. */
static inline int kdamon_report_map(struct kdamon_reports *r, int memory, uint64_t size)
{
	struct kdamon_report_header *shared;
	struct stat status;
	uint64_t capacity;
	void *mapped;

	if (fstat(memory, &status) < 0)
		return -1;
	if (size <= KDAMON_REPORT_HEADER || (uint64_t)status.st_size != size) {
		errno = EPROTO;
		return -1;
	}
	mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (mapped == MAP_FAILED)
		return -1;
	shared = (struct kdamon_report_header *)mapped;
	capacity = (size - KDAMON_REPORT_HEADER) / sizeof(struct kdamon_report_record);
	if (shared->magic != KDAMON_REPORT_MAGIC || shared->version != KDAMON_REPORT_VERSION ||
	    shared->record_size != sizeof(struct kdamon_report_record) || shared->capacity != capacity ||
	    (capacity & (capacity - 1))) {
		munmap(mapped, size);
		errno = EPROTO;
		return -1;
	}
	r->shared = shared;
	r->records = (struct kdamon_report_record *)(void *)((char *)mapped + KDAMON_REPORT_HEADER);
	r->size = size;
	r->mask = capacity - 1;
	r->limit = capacity;
	return 0;
}

/*
 * Get a ring of "capacity" records, 0: as many as kdamon finds right (hundreds of thousands). A path of NULL stands for
 * $KDAMON_REPORTS or the default places. Returns NULL with errno: ENOENT or ECONNREFUSED no kdamon is there, EPERM it
 * does not know this process, EUSERS this user has too many rings, ETIMEDOUT it does not answer, EPROTO and
 * EPROTONOSUPPORT it is something else.
 */
static inline struct kdamon_reports *kdamon_report_open_sized(const char *path, uint32_t capacity)
{
	struct kdamon_report_hello hello = { KDAMON_REPORT_MAGIC, KDAMON_REPORT_VERSION, capacity };
	struct kdamon_report_reply reply;
	struct kdamon_reports *r;
	int memory, failed, error;

	r = (struct kdamon_reports *)calloc(1, sizeof(*r));
	if (!r)
		return NULL;
	r->connection = kdamon_report_connect(path);
	if (r->connection < 0)
		goto free_ring;
	/* After an immediate refusal the connection may be closed already, with the reason in it. */
	if (send(r->connection, &hello, sizeof(hello), MSG_NOSIGNAL) < 0 && errno != EPIPE)
		goto close_connection;
	memory = kdamon_report_receive(r->connection, &reply);
	if (memory < 0)
		goto close_connection;
	failed = kdamon_report_map(r, memory, reply.size);
	error = errno;
	close(memory);
	errno = error;
	if (failed)
		goto close_connection;
	r->pid = reply.pid;
	return r;

close_connection:
	kdamon_report_hang_up(r->connection);
free_ring:
	error = errno;
	free(r);
	errno = error;
	return NULL;
}

static inline struct kdamon_reports *kdamon_report_open(const char *path)
{
	return kdamon_report_open_sized(path, 0);
}

/* Room in the ring, in records. */
static inline uint64_t kdamon_report_room(struct kdamon_reports *r)
{
	/* Acquire: kdamon is done with the records before its tail. */
	r->limit = __atomic_load_n(&r->shared->tail, __ATOMIC_ACQUIRE) + r->mask + 1;
	/* A tail that makes no sense must not lead out of the ring. */
	if (r->limit - r->head > r->mask + 1)
		r->limit = r->head;
	return r->limit - r->head;
}

static inline void kdamon_report_count(struct kdamon_reports *r, uint64_t sent, uint64_t dropped)
{
	r->sent += sent;
	r->dropped += dropped;
	__atomic_store_n(&r->shared->sent, r->sent, __ATOMIC_RELAXED);
	if (dropped)
		__atomic_store_n(&r->shared->dropped, r->dropped, __ATOMIC_RELAXED);
}

static inline void kdamon_report_publish(struct kdamon_reports *r, uint64_t n)
{
	r->head += n;
	/* Release: a reader of the new head also sees the records. */
	__atomic_store_n(&r->shared->head, r->head, __ATOMIC_RELEASE);
}

/*
 * Report n accesses. Returns how many of them, from the first one on, found room. Much cheaper than one at a time if
 * there are many.
 */
static inline size_t kdamon_report_batch(struct kdamon_reports *r, const struct kdamon_report_record *records, size_t n)
{
	uint64_t room = r->limit - r->head, at = r->head & r->mask, first;
	size_t taken = n;

	if (taken > room)
		room = kdamon_report_room(r);
	if (taken > room)
		taken = (size_t)room;
	first = r->mask + 1 - at;
	if (first > taken)
		first = taken;
	memcpy(r->records + at, records, first * sizeof(*records));
	memcpy(r->records, records + first, (taken - first) * sizeof(*records));
	kdamon_report_count(r, n, n - taken);
	kdamon_report_publish(r, taken);
	return taken;
}

/*
 * Report one access to [addr, addr + size) of process "pid". cpu -1 and tid 0 stand for unknown. Returns false if there
 * was no room.
 */
static inline bool kdamon_report(struct kdamon_reports *r, uint64_t addr, uint64_t size, int32_t pid, bool write,
				 int32_t cpu, int32_t tid)
{
	struct kdamon_report_record *record = r->records + (r->head & r->mask);

	if (r->head == r->limit && !kdamon_report_room(r)) {
		kdamon_report_count(r, 1, 1);
		return false;
	}
	record->pid = pid;
	record->reserved_1 = 0;
	record->addr = addr;
	record->size = size;
	record->nr_accesses = 1;
	record->node_id = -1;
	record->write = write;
	memset(record->reserved_2, 0, sizeof(record->reserved_2));
	record->cpu = cpu;
	record->tid = tid;
	record->reserved_3 = 0;
	kdamon_report_count(r, 1, 0);
	kdamon_report_publish(r, 1);
	return true;
}

/*
 * Name [addr, addr + size) of process "pid", in place of the names that parts of it had. The label has KDAMON_NAME_MAX
 * bytes at most, a longer one is cut; "" or NULL takes the name away. Returns false if there was no room.
 */
static inline bool kdamon_report_name(struct kdamon_reports *r, uint64_t addr, uint64_t size, int32_t pid,
				      const char *label)
{
	struct kdamon_report_record records[2];
	struct kdamon_name_record begin;
	struct kdamon_name_more more;
	char text[KDAMON_NAME_MAX];
	size_t length = label ? strlen(label) : 0;
	uint64_t n = 1;

	memset(text, 0, sizeof(text));
	if (length > sizeof(text)) {
		length = sizeof(text);
		/* Not in the middle of a character of UTF-8. */
		while (length && ((unsigned char)label[length] & 0xc0) == 0x80)
			length--;
	}
	if (length)
		memcpy(text, label, length);
	memset(&begin, 0, sizeof(begin));
	begin.pid = pid;
	begin.kind = KDAMON_NAME_BEGIN;
	begin.addr = addr;
	begin.size = size;
	begin.length = -(int32_t)length;
	memcpy(begin.text, text, sizeof(begin.text));
	memcpy(&records[0], &begin, sizeof(begin));
	if (length > sizeof(begin.text)) {
		memset(&more, 0, sizeof(more));
		more.pid = pid;
		more.kind = KDAMON_NAME_MORE;
		memcpy(more.middle, text + sizeof(begin.text), sizeof(more.middle));
		memcpy(more.end, text + sizeof(begin.text) + sizeof(more.middle), sizeof(more.end));
		memcpy(&records[1], &more, sizeof(more));
		n = 2;
	}
	/* All of it or nothing. */
	if (r->limit - r->head < n && kdamon_report_room(r) < n) {
		kdamon_report_count(r, n, n);
		return false;
	}
	return kdamon_report_batch(r, records, (size_t)n) == n;
}

/* This process's number in kdamon's eyes; getpid() unless it runs in a PID namespace of its own. */
static inline int32_t kdamon_report_pid(const struct kdamon_reports *r)
{
	return r->pid;
}

/* Reports made so far, and those of them that found no room. */
static inline uint64_t kdamon_report_sent(const struct kdamon_reports *r)
{
	return r->sent;
}

static inline uint64_t kdamon_report_dropped(const struct kdamon_reports *r)
{
	return r->dropped;
}

/* Whether kdamon still reads. A system call: ask now and then. If it does not, close the ring and open another one. */
static inline bool kdamon_report_connected(const struct kdamon_reports *r)
{
	struct pollfd hangup = { r->connection, 0, 0 };

	if (__atomic_load_n(&r->shared->closed, __ATOMIC_RELAXED))
		return false;
	return poll(&hangup, 1, 0) <= 0;
}

/* Give the ring back. kdamon still reads what is in it. NULL is fine. */
static inline void kdamon_report_close(struct kdamon_reports *r)
{
	if (!r)
		return;
	munmap(r->shared, r->size);
	kdamon_report_hang_up(r->connection);
	free(r);
}

/*
 * Name an area of this process's memory, see kdamon_report_name(). Returns false if no kdamon takes names, which is no
 * error of the program. It connects each time, and leaves errno as it is: a program that names much keeps a ring.
 */
static inline bool kdamon_name(const void *addr, size_t size, const char *label)
{
	struct kdamon_reports *r;
	int error = errno;
	bool named = false;

	r = kdamon_report_open_sized(NULL, 256);
	if (r) {
		named = kdamon_report_name(r, (uintptr_t)addr, size, kdamon_report_pid(r), label);
		kdamon_report_close(r);
	}
	errno = error;
	return named;
}

#ifdef __cplusplus
}
#endif

#endif /* KDAMON_REPORT_H */
