/*
 * The load in the Linux guest: what `bench blk` and `bench pmem` do in ours, as cheaply as Linux lets a program do it. One request at
 * a time by pread and pwrite; more by io_uring, with buffers and file registered. fio would measure itself.
 *
 *   load FILE read|randread|write|randwrite BYTES DEPTH COUNT [FSYNC] [latencies]
 *   load FILE flush COUNT
 *   load udp echo PORT
 *
 * The last sends datagrams back until one of two bytes comes. One of a single byte begins what is measured, and that one ends it.
 *
 * The marks around the work are those of kernel/src/platform/arch/marker.rs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 256, PAGE = 4096 };

static void mark_start(void) { __asm__ volatile(".byte 0x0f,0x1f,0x84,0x00,0x01,0x00,0x34,0x52" ::: "memory"); }
static void mark_end(void) { __asm__ volatile(".byte 0x0f,0x1f,0x84,0x00,0x02,0x00,0x34,0x52" ::: "memory"); }

static void fail(const char *what)
{
    printf("error: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

static int file, is_random, is_write;
static uint64_t places, bytes, state;

/* The same places as in our guest: kernel/src/shell/commands/bench/places.rs. */
static uint64_t next_offset(void)
{
    uint64_t number = state;
    if (is_random) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        number = (unsigned __int128)state * places >> 64;
    } else {
        state = state + 1 == places ? 0 : state + 1;
    }
    return number * bytes;
}

/* Of each request, if they are wanted. */
static uint64_t *latencies, latencies_known;

static uint64_t begin(void) { return latencies ? now() : 0; }

static void note(uint64_t begun)
{
    if (latencies)
        latencies[latencies_known++] = now() - begun;
}

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* As our guest does: kernel/src/shell/commands/blk/mod.rs. */
static void print_latencies(void)
{
    static const unsigned per_mille[] = {0, 10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 999, 1000};
    if (!latencies_known)
        return;
    qsort(latencies, latencies_known, sizeof *latencies, compare);
    printf("latencies ns");
    for (size_t i = 0; i < sizeof per_mille / sizeof *per_mille; i++)
        printf(" %u=%llu", per_mille[i], (unsigned long long)latencies[(latencies_known - 1) * per_mille[i] / 1000]);
    printf("\n");
}

static void one_by_one(uint64_t count, uint64_t fsync_every)
{
    void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (buffer == MAP_FAILED)
        fail("mmap");
    mark_start();
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t offset = next_offset(), begun = begin();
        ssize_t done = is_write ? pwrite(file, buffer, bytes, offset) : pread(file, buffer, bytes, offset);
        if (done != (ssize_t)bytes)
            fail("transfer");
        note(begun);
        if (fsync_every && i % fsync_every == 0 && fdatasync(file))
            fail("fdatasync");
    }
    mark_end();
}

static int ring;
static struct io_uring_params params;
static unsigned *sq_tail, *sq_array, *cq_head, *cq_tail, sq_mask, cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static uint64_t begun_at[MAX_DEPTH];

static void ring_open(unsigned depth, char *buffers)
{
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    ring = syscall(SYS_io_uring_setup, depth, &params);
    if (ring < 0)
        fail("io_uring_setup");
    size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int access = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    char *sq = mmap(NULL, sq_bytes, access, flags, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_bytes, access, flags, ring, IORING_OFF_CQ_RING);
    sqes = mmap(NULL, params.sq_entries * sizeof *sqes, access, flags, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
        fail("mapping the ring");
    sq_tail = (unsigned *)(sq + params.sq_off.tail);
    sq_mask = *(unsigned *)(sq + params.sq_off.ring_mask);
    sq_array = (unsigned *)(sq + params.sq_off.array);
    cq_head = (unsigned *)(cq + params.cq_off.head);
    cq_tail = (unsigned *)(cq + params.cq_off.tail);
    cq_mask = *(unsigned *)(cq + params.cq_off.ring_mask);
    cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    struct iovec vectors[MAX_DEPTH];
    for (unsigned i = 0; i < depth; i++)
        vectors[i] = (struct iovec){buffers + i * bytes, bytes};
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, vectors, depth))
        fail("registering buffers");
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &file, 1))
        fail("registering the file");
}

static void submit(unsigned slot, char *buffers)
{
    unsigned tail = *sq_tail, index = tail & sq_mask;
    sqes[index] = (struct io_uring_sqe){
        .opcode = is_write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED,
        .flags = IOSQE_FIXED_FILE,
        .off = next_offset(),
        .addr = (uint64_t)(buffers + slot * bytes),
        .len = bytes,
        .user_data = slot,
        .buf_index = slot,
    };
    begun_at[slot] = begin();
    sq_array[index] = index;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static void many(unsigned depth, uint64_t count)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    char *buffers = mmap(NULL, depth * bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (buffers == MAP_FAILED)
        fail("mmap");
    ring_open(depth, buffers);
    uint64_t begun = 0, done = 0;
    unsigned fresh = 0;
    mark_start();
    for (; begun < count && begun < depth; begun++, fresh++)
        submit(begun, buffers);
    while (done < count) {
        if (syscall(SYS_io_uring_enter, ring, fresh, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            fail("io_uring_enter");
        fresh = 0;
        unsigned head = *cq_head, tail = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
        for (; head != tail; head++) {
            struct io_uring_cqe *entry = &cqes[head & cq_mask];
            if (entry->res != (int)bytes) {
                errno = -entry->res;
                fail("transfer");
            }
            done++;
            note(begun_at[entry->user_data]);
            if (begun < count) {
                submit(entry->user_data, buffers);
                begun++;
                fresh++;
            }
        }
        __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
    }
    mark_end();
}

static void flushes(uint64_t count)
{
    mark_start();
    for (uint64_t i = 0; i < count; i++)
        if (fdatasync(file))
            fail("fdatasync");
    mark_end();
}

static void echo(uint16_t port)
{
    int socket_ = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)}, there;
    if (socket_ < 0 || bind(socket_, (struct sockaddr *)&here, sizeof here))
        fail("binding");
    for (;;) {
        static char bytes[65536];
        socklen_t length = sizeof there;
        ssize_t count = recvfrom(socket_, bytes, sizeof bytes, 0, (struct sockaddr *)&there, &length);
        if (count < 0)
            fail("receiving");
        if (count == 1)
            mark_start();
        if (count == 2)
            mark_end();
        if (sendto(socket_, bytes, count, 0, (struct sockaddr *)&there, length) != count)
            fail("sending");
        if (count == 2)
            return;
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const char *operation = argv[2];
    if (!strcmp(operation, "echo")) {
        echo(atoi(argv[3]));
        return 0;
    }
    file = open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (file < 0)
        fail(argv[1]);
    uint64_t size, before = now();
    if (ioctl(file, BLKGETSIZE64, &size))
        fail("size");
    if (!strcmp(operation, "flush")) {
        flushes(strtoull(argv[3], NULL, 10));
    } else {
        if (argc < 6)
            return 2;
        is_random = !strncmp(operation, "rand", 4);
        is_write = strstr(operation, "write") != NULL;
        bytes = strtoull(argv[3], NULL, 10);
        unsigned depth = atoi(argv[4]);
        uint64_t count = strtoull(argv[5], NULL, 10);
        if (!strcmp(argv[argc - 1], "latencies"))
            latencies = calloc(count, sizeof *latencies);
        if (bytes < 512 || depth < 1 || depth > MAX_DEPTH || size < bytes)
            return 2;
        places = size / bytes;
        if (depth == 1)
            one_by_one(count, argc > 6 ? strtoull(argv[6], NULL, 10) : 0);
        else
            many(depth, count);
    }
    printf("load %s us=%llu\n", operation, (unsigned long long)(now() - before) / 1000);
    print_latencies();
    return 0;
}
