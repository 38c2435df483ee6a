// The io_uring client: connect, send and receive never pass the system calls that seccomp or a preload would watch.
// No liburing; numbers only, no names (there is no resolver in io_uring).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CONNECTS 20

static int ring;
static struct io_uring_params params;
static unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;

static void set_up(void) {
    ring = syscall(SYS_io_uring_setup, 64, &params);
    if (ring < 0) {
        printf("{\"client\":\"io_uring\",\"error\":\"io_uring_setup: %s\"}\n", strerror(errno));
        exit(1);
    }
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(0, sq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(0, cq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    sqes = mmap(0, params.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    sq_tail = (unsigned *)(sq + params.sq_off.tail);
    sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
    sq_array = (unsigned *)(sq + params.sq_off.array);
    cq_head = (unsigned *)(cq + params.cq_off.head);
    cq_tail = (unsigned *)(cq + params.cq_off.tail);
    cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
    cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
}

static void queue(int op, int fd, const void *at, unsigned length, unsigned long long offset) {
    unsigned tail = *sq_tail, slot = tail & *sq_mask;
    sqes[slot] = (struct io_uring_sqe){.opcode = op, .fd = fd, .addr = (unsigned long)at, .len = length, .off = offset};
    sq_array[slot] = slot;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
}

// Submits `count` and reaps as many; the last one's result, or the first error.
static int run(int count) {
    int result = 0, reaped = 0;
    int entered = syscall(SYS_io_uring_enter, ring, count, count, IORING_ENTER_GETEVENTS, NULL, 0);
    if (entered < 0) return -errno;
    while (reaped < count) {
        unsigned head = *cq_head;
        if (head == __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE)) {
            syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
            continue;
        }
        int answer = cqes[head & *cq_mask].res;
        if (result >= 0) result = answer;
        __atomic_store_n(cq_head, head + 1, __ATOMIC_RELEASE);
        reaped++;
    }
    return result;
}

static struct sockaddr_in address_of(const char *text) {
    char host[64];
    int port = 80;
    sscanf(text, "%63[^:]:%d", host, &port);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    return address;
}

static int connect_one(const char *text, int *fd) {
    struct sockaddr_in address = address_of(text);
    *fd = socket(AF_INET, SOCK_STREAM, 0);
    queue(IORING_OP_CONNECT, *fd, &address, 0, sizeof address);
    return run(1);
}

static void print_http(const char *url) {
    char host[256], path[256] = "/", request[600], answer[65536];
    int fd;
    if (sscanf(url, "http://%255[^/]%255s", host, path) < 1) return;
    int error = connect_one(host, &fd);
    if (error < 0) {
        printf("\"!%s\"", strerror(-error));
        return;
    }
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host);
    queue(IORING_OP_SEND, fd, request, length, 0);
    run(1);
    queue(IORING_OP_RECV, fd, answer, sizeof answer - 1, 0);
    int n = run(1);
    answer[n < 0 ? 0 : n] = 0;
    char *body = strstr(answer, "\r\n\r\n");
    body = body ? body + 4 : answer;
    body[strcspn(body, "\r\n")] = 0;
    printf("\"%s\"", body);
}

static double connect_many(const char *text) {
    struct sockaddr_in address = address_of(text);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < CONNECTS; i++)
        queue(IORING_OP_CONNECT, socket(AF_INET, SOCK_STREAM, 0), &address, 0, sizeof address);
    if (run(CONNECTS) < 0) return -1;
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6;
}

int main(int argc, char **argv) {
    int fd;
    if (argc != 5) return 64;
    set_up();
    printf("{\"client\":\"io_uring\"");
    if (strcmp(argv[2], "-")) {
        printf(",\"http\":");
        print_http(argv[2]);
    }
    if (strcmp(argv[3], "-")) {
        int error = connect_one(argv[3], &fd);
        printf(",\"refused\":\"%s\"", error == -ECONNREFUSED ? "ECONNREFUSED" : error < 0 ? strerror(-error) : "connected");
    }
    if (strcmp(argv[4], "-")) printf(",\"connects_ms\":%.3f", connect_many(argv[4]));
    printf("}\n");
    return 0;
}
